"""The transformer layer as ONNX nodes: forward for both graphs, backward for the explanation graph.

The formulas are those of ``sparsecbm.backbone.run_layer`` and its derivative; the tests compare both with
PyTorch's autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from export.graph import GraphBuilder
from export.products import Columns, Matrix, Product, Rows
from sparsecbm.backbone import BackboneConfig, LayerWeights
from sparsecbm.bundle import Precision

_SOFTMAX = 3  # what ONNX's Attention gives as its fourth output: the scores' softmax


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as a float32 array."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(np.float32))


@dataclass(frozen=True, slots=True)
class ExportLayer:
    """A layer's weights as matrices [in, out]: qkv [hidden, 3·heads·width], out, up, down; biases and norms.

    ``distance_bias`` [heads, buckets] is there in the families that add to attention scores by distance.
    """

    heads: int
    qkv: Matrix
    qkv_bias: np.ndarray
    out: Matrix
    out_bias: np.ndarray
    norm1: np.ndarray
    norm1_bias: np.ndarray
    up: Matrix
    up_bias: np.ndarray
    down: Matrix
    down_bias: np.ndarray
    norm2: np.ndarray
    norm2_bias: np.ndarray
    distance_bias: np.ndarray | None

    @classmethod
    def of(cls, weights: LayerWeights, precision: Precision) -> ExportLayer:
        """Takes over a layer's weights, of all its units."""
        _, heads, _, hidden = weights.qkv.shape
        return cls(
            heads=heads,
            qkv=Matrix(array(weights.qkv.reshape(-1, hidden).T), precision),
            qkv_bias=array(weights.qkv_bias.reshape(-1)),
            out=Matrix(array(weights.out.reshape(-1, hidden)), precision),
            out_bias=array(weights.out_bias),
            norm1=array(weights.norm1),
            norm1_bias=array(weights.norm1_bias),
            up=Matrix(array(weights.up.T), precision),
            up_bias=array(weights.up_bias),
            down=Matrix(array(weights.down), precision),
            down_bias=array(weights.down_bias),
            norm2=array(weights.norm2),
            norm2_bias=array(weights.norm2_bias),
            distance_bias=None if weights.distance_bias is None else array(weights.distance_bias),
        )

    def compact(self, heads: np.ndarray, neurons: np.ndarray) -> ExportLayer:
        """The layer without the units that a mask leaves out.

        Args:
            heads: [kept] indices of heads.
            neurons: [kept] indices of neurons.
        """
        width = self.qkv_bias.size // (3 * self.heads)
        units = np.arange(self.heads * width).reshape(self.heads, width)[heads].ravel()
        columns = np.concatenate([part * self.heads * width + units for part in range(3)])
        return ExportLayer(
            heads=len(heads),
            qkv=self.qkv.select(columns=columns),
            qkv_bias=self.qkv_bias[columns],
            out=self.out.select(rows=units),
            out_bias=self.out_bias,
            norm1=self.norm1,
            norm1_bias=self.norm1_bias,
            up=self.up.select(columns=neurons),
            up_bias=self.up_bias[neurons],
            down=self.down.select(rows=neurons),
            down_bias=self.down_bias,
            norm2=self.norm2,
            norm2_bias=self.norm2_bias,
            distance_bias=None if self.distance_bias is None else self.distance_bias[heads],
        )


class Attended(NamedTuple):
    """What attention gives.

    Shapes: weights [batch, heads, length, length], only where a backward pass will follow; context [batch, length,
    heads · width]. ``value`` are the columns of a layer's qkv that its values come from.
    """

    weights: str
    context: str
    value: Columns


class Norm(NamedTuple):
    """What a layer normalisation leaves for its derivative: 1/deviation [.., 1]."""

    inverse_deviation: str
    weight: np.ndarray


class Trace(NamedTuple):
    """What a layer's forward pass leaves for its backward pass, by tensor name."""

    layer: ExportLayer
    attended: Attended
    norm1: Norm
    before_activation: str
    inner: str
    norm2: Norm
    head_gates: str | None
    neuron_gates: str | None


class UnitGradients(NamedTuple):
    """Derivatives by a layer's gates: heads [batch, heads], neurons [batch, neurons]."""

    heads: str
    neurons: str


@dataclass(frozen=True, slots=True)
class Emitter:
    """Adds layers to a graph.

    Attributes:
        graph: to add to.
        config: of the backbone.
        product: how matrices are multiplied.
        traced: whether a backward pass will follow.
        distances: [length, length] int64, by query and key the bucket of their distance, where layers have a bias
            by it.
    """

    graph: GraphBuilder
    config: BackboneConfig
    product: Product
    traced: bool
    distances: str = ""

    def normalise(self, inputs: str, weight: np.ndarray, bias: np.ndarray) -> tuple[str, Norm]:
        """Layer normalisation over the last axis."""
        operands = (inputs, self.graph.constant(weight, "norm"), self.graph.constant(bias, "norm"))
        epsilon = self.config.norm_epsilon
        if not self.traced:
            output = self.graph.op("LayerNormalization", *operands, epsilon=epsilon)
            return output, Norm("", weight)
        output, _, inverse = self.graph.op("LayerNormalization", *operands, epsilon=epsilon, outputs=3)
        return output, Norm(inverse, weight)

    def attend(self, hidden: str, attention_bias: str, layer: ExportLayer) -> Attended:
        """A layer's attention, up to its heads' output; arguments are those of ``forward``."""
        if self.config.norm_first:
            hidden, _ = self.normalise(hidden, layer.norm1, layer.norm1_bias)
        op = self.graph.op
        qkv = self.product(self.graph, hidden, layer.qkv, layer.qkv_bias)
        operands = op("Split", qkv, axis=-1, num_outputs=3, outputs=3)
        if layer.distance_bias is not None:
            by_bucket = self.graph.constant(layer.distance_bias, "distance_bias")
            by_distance = op("Gather", by_bucket, self.distances, axis=1)
            attention_bias = op("Add", attention_bias, by_distance)
        operands = (*operands, attention_bias)
        heads: dict[str, Any] = {"q_num_heads": layer.heads, "kv_num_heads": layer.heads}
        value = Columns(layer.qkv, np.arange(2 * layer.qkv_bias.size // 3, layer.qkv_bias.size))
        if not self.traced:
            return Attended("", op("Attention", *operands, **heads), value)
        context, _, _, weights = op(
            "Attention", *operands, **heads, qk_matmul_output_mode=_SOFTMAX, outputs=4, unused=(1, 2)
        )
        return Attended(weights, context, value)

    def of_heads(self, attended: Attended, chosen: np.ndarray) -> Attended:
        """What some heads give, of what several gave.

        Args:
            attended: of several heads.
            chosen: [kept] places of heads among them.
        """
        op, ints, width = self.graph.op, self.graph.ints, self.config.head_width
        split = op("Reshape", attended.context, ints(0, 0, -1, width))
        context = op("Gather", split, ints(*chosen), axis=2)
        weights = op("Gather", attended.weights, ints(*chosen), axis=1) if self.traced else ""
        assert attended.value.chosen is not None
        value = attended.value._replace(chosen=attended.value.chosen.reshape(-1, width)[chosen].ravel())
        return Attended(weights, op("Reshape", context, ints(0, 0, len(chosen) * width)), value)

    def forward(
        self,
        hidden: str,
        attention_bias: str,
        layer: ExportLayer,
        head_gates: str | None = None,
        neuron_gates: str | None = None,
        attended: Attended | None = None,
    ) -> tuple[str, Trace]:
        """One layer.

        Args:
            hidden: [batch, length, hidden].
            attention_bias: [batch, 1, length, length], by query and key.
            layer: weights of the units to run.
            head_gates: [batch, 1, heads, 1], if any.
            neuron_gates: [batch, 1, neurons], if any.
            attended: the layer's attention, where it is known already.

        Returns:
            [batch, length, hidden], and the trace for ``backward``.
        """
        op, ints = self.graph.op, self.graph.ints
        heads, width, norm_first = layer.heads, self.config.head_width, self.config.norm_first
        attended = attended or self.attend(hidden, attention_bias, layer)
        joined = attended.context
        if head_gates:
            split = op("Mul", op("Reshape", joined, ints(0, 0, heads, width)), head_gates)
            joined = op("Reshape", split, ints(0, 0, heads * width))
        added = self.product(self.graph, joined, layer.out, layer.out_bias)
        if norm_first:
            _, norm1 = self.normalise(hidden, layer.norm1, layer.norm1_bias)
        hidden = op("Add", hidden, added)
        if norm_first:
            inputs, norm2 = self.normalise(hidden, layer.norm2, layer.norm2_bias)
        else:
            hidden, norm1 = self.normalise(hidden, layer.norm1, layer.norm1_bias)
            inputs = hidden
        before = self.product(self.graph, inputs, layer.up, layer.up_bias)
        inner = self._activate(before)
        gated = op("Mul", inner, neuron_gates) if neuron_gates else inner
        fed = self.product(self.graph, gated, layer.down, layer.down_bias)
        hidden = op("Add", hidden, fed)
        if not norm_first:
            hidden, norm2 = self.normalise(hidden, layer.norm2, layer.norm2_bias)
        return hidden, Trace(layer, attended, norm1, before, inner, norm2, head_gates, neuron_gates)

    def backward(self, gradient: str, trace: Trace, shared: bool = False) -> tuple[str, UnitGradients | None]:
        """The derivative of one layer; attention weights, deviations and activations' factors count as constants.

        Args:
            gradient: by the layer's output, [batch, length, hidden], or, where several gradients share one
                forward pass, [batch, several, length, hidden].
            trace: of the forward pass.
            shared: whether it is the latter; such a layer has no gates.

        Returns:
            The gradient by the layer's input, and by its units' gates, which are 1 where there are none.
        """
        graph, op, layer = self.graph, self.graph.op, trace.layer
        heads, width, norm_first = layer.heads, self.config.head_width, self.config.norm_first
        if shared:
            trace = self._with_axis(trace)
        to_heads = [0, 1, 3, 2, 4] if shared else [0, 2, 1, 3]
        swapped = [0, 1, 2, 4, 3] if shared else [0, 1, 3, 2]
        keep = [0, 0, 0] if shared else [0, 0]

        def swap(tensor: str) -> str:
            return str(op("Transpose", tensor, perm=swapped))

        def split(tensor: str) -> str:
            """[.., length, heads · width] to [.., length, heads, width]."""
            return str(op("Reshape", tensor, graph.ints(*keep, heads, width)))

        units = None
        by_sum = gradient if norm_first else self.backward_norm(gradient, trace.norm2)
        by_gated = self.product.backward(graph, by_sum, Columns(layer.down))
        by_inner = op("Mul", by_gated.values, trace.neuron_gates) if trace.neuron_gates else by_gated.values
        by_up = self.product.backward(graph, by_inner, Columns(layer.up), self._activation_factor(trace))
        by_inputs = by_up.of(graph, by_gated).whole(graph)
        if norm_first:
            by_inputs = self.backward_norm(by_inputs, trace.norm2)
        by_sum = op("Add", by_sum, by_inputs)
        if not norm_first:
            by_sum = self.backward_norm(by_sum, trace.norm1)
        by_context = split(self.product.backward(graph, by_sum, Columns(layer.out)).whole(graph))
        if not shared:
            by_head = op(
                "ReduceSum", op("Mul", by_context, split(trace.attended.context)), graph.ints(1, 3), keepdims=0
            )
            by_neuron = self._sum_rows(by_gated._replace(values=op("Mul", by_gated.values, trace.inner)))
            units = UnitGradients(by_head, by_neuron)
        if trace.head_gates:
            by_context = op("Mul", by_context, trace.head_gates)
        by_context = op("Transpose", by_context, perm=to_heads)  # [.., heads, length, width]
        by_value = op("Transpose", op("MatMul", swap(trace.attended.weights), by_context), perm=to_heads)
        by_value = op("Reshape", by_value, graph.ints(*keep, heads * width))
        by_inputs = self.product.backward(graph, by_value, trace.attended.value).whole(graph)
        if norm_first:
            by_inputs = self.backward_norm(by_inputs, trace.norm1)
        return op("Add", by_sum, by_inputs), units

    def _with_axis(self, trace: Trace) -> Trace:
        """The trace with an axis of 1 after the batch, against which several gradients broadcast."""
        axis = self.graph.ints(1)

        def widen(tensor: str) -> str:
            return str(self.graph.op("Unsqueeze", tensor, axis))

        return trace._replace(
            attended=trace.attended._replace(weights=widen(trace.attended.weights)),
            norm1=self.widen_norm(trace.norm1),
            before_activation=widen(trace.before_activation),
            inner=widen(trace.inner),
            norm2=self.widen_norm(trace.norm2),
        )

    def widen_norm(self, norm: Norm) -> Norm:
        """The norm with an axis of 1 after the batch."""
        return norm._replace(inverse_deviation=self.graph.op("Unsqueeze", norm.inverse_deviation, self.graph.ints(1)))

    def backward_norm(self, gradient: str, norm: Norm) -> str:
        """The derivative of a layer normalisation by its input, its deviation taken for a constant."""
        op, last = self.graph.op, self.graph.ints(-1)
        by_normed = op("Mul", gradient, self.graph.constant(norm.weight, "norm"))
        mean = op("ReduceMean", by_normed, last, keepdims=1)
        return str(op("Mul", op("Sub", by_normed, mean), norm.inverse_deviation))

    def _activate(self, inputs: str) -> str:
        op, kind = self.graph.op, self.config.activation
        if kind == "silu":
            return str(op("Mul", inputs, op("Sigmoid", inputs)))
        if kind == "gelu_tanh":
            return str(op("Gelu", inputs, approximate="tanh"))
        return str(op({"gelu": "Gelu", "relu": "Relu"}[kind], inputs))

    def _activation_factor(self, trace: Trace) -> str:
        """What the activation multiplies its input by: f(x) / x, and 0 where x is exactly 0."""
        op = self.graph.op
        return str(op("Div", trace.inner, op("Add", trace.before_activation, self.graph.floats(1e-30))))

    def _sum_rows(self, rows: Rows) -> str:
        """The sum over the length, [batch, width]."""
        op, ints = self.graph.op, self.graph.ints
        if not rows.reach:
            return str(op("ReduceSum", rows.values, ints(1), keepdims=0))
        return str(op("Squeeze", op("MatMul", op("Transpose", rows.reach, perm=[0, 2, 1]), rows.values), ints(1)))
