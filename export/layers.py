"""The transformer layer as ONNX nodes: forward for both graphs, backward for the explanation graph.

The formulas are those of ``sparsecbm.backbone.run_layer`` and its derivative; the tests compare both with
PyTorch's autograd.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from export.graph import GraphBuilder
from export.products import Matrix, Product, real_values, transposed_product
from sparsecbm.backbone import BackboneConfig, LayerWeights
from sparsecbm.bundle import Precision


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


class Norm(NamedTuple):
    """What a layer normalisation leaves for its derivative: 1/deviation [.., 1]."""

    inverse_deviation: str
    weight: np.ndarray


class Trace(NamedTuple):
    """What a layer's forward pass leaves for its backward pass, by tensor name."""

    layer: ExportLayer
    attention: str
    context: str
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

    def forward(
        self,
        hidden: str,
        attention_bias: str,
        layer: ExportLayer,
        head_gates: str | None = None,
        neuron_gates: str | None = None,
    ) -> tuple[str, Trace]:
        """One layer.

        Args:
            hidden: [batch, length, hidden].
            attention_bias: [batch, 1, 1, length], or by query too, [batch, 1, length, length].
            layer: weights of the units to run.
            head_gates: [batch, heads, 1, 1], if any.
            neuron_gates: [batch, 1, neurons], if any.

        Returns:
            [batch, length, hidden], and the trace for ``backward``.
        """
        op, ints = self.graph.op, self.graph.ints
        heads, width, norm_first = layer.heads, self.config.head_width, self.config.norm_first
        inputs = hidden
        if norm_first:
            inputs, norm1 = self.normalise(hidden, layer.norm1, layer.norm1_bias)
        qkv = self.product(self.graph, inputs, layer.qkv, layer.qkv_bias)
        split = op("Reshape", qkv, ints(0, 0, 3, heads, width))
        parts = op("Transpose", split, perm=[2, 0, 3, 1, 4])  # [3, batch, heads, length, width]
        query, key, value = (op("Gather", parts, self.graph.constant(np.array(i)), axis=0) for i in range(3))
        scaled = op("Mul", query, self.graph.floats(1 / math.sqrt(width)))
        scores = op("MatMul", scaled, op("Transpose", key, perm=[0, 1, 3, 2]))
        if layer.distance_bias is not None:
            by_bucket = self.graph.constant(layer.distance_bias, "distance_bias")
            scores = op("Add", scores, op("Gather", by_bucket, self.distances, axis=1))
        attention = op("Softmax", op("Add", scores, attention_bias), axis=-1)
        context = op("MatMul", attention, value)  # [batch, heads, length, width]
        gated = op("Mul", context, head_gates) if head_gates else context
        joined = op("Reshape", op("Transpose", gated, perm=[0, 2, 1, 3]), ints(0, 0, heads * width))
        attended = self.product(self.graph, joined, layer.out, layer.out_bias)
        hidden = op("Add", hidden, attended)
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
        return hidden, Trace(layer, attention, context, norm1, before, inner, norm2, head_gates, neuron_gates)

    def backward(self, gradient: str, trace: Trace, shared: bool = False) -> tuple[str, UnitGradients | None]:
        """The derivative of one layer; attention weights, deviations and activations' factors count as constants.

        Args:
            gradient: by the layer's output, [batch, length, hidden], or, where several gradients share one
                forward pass, [batch, several, length, hidden].
            trace: of the forward pass.
            shared: whether it is the latter.

        Returns:
            The gradient by the layer's input, and by its gates where it has them.
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

        def join(tensor: str) -> str:
            return str(op("Reshape", op("Transpose", tensor, perm=to_heads), graph.ints(*keep, heads * width)))

        units = None
        by_sum = gradient if norm_first else self.backward_norm(gradient, trace.norm2)
        by_gated = transposed_product(graph, by_sum, real_values(graph, layer.down))
        by_inner = op("Mul", by_gated, trace.neuron_gates) if trace.neuron_gates else by_gated
        by_before = op("Mul", by_inner, self._activation_factor(trace.before_activation))
        by_inputs = transposed_product(graph, by_before, real_values(graph, layer.up))
        if norm_first:
            by_inputs = self.backward_norm(by_inputs, trace.norm2)
        by_sum = op("Add", by_sum, by_inputs)
        if not norm_first:
            by_sum = self.backward_norm(by_sum, trace.norm1)
        by_joined = transposed_product(graph, by_sum, real_values(graph, layer.out))
        by_context = op("Reshape", by_joined, graph.ints(*keep, heads, width))
        by_context = op("Transpose", by_context, perm=to_heads)  # [.., heads, length, width]
        if trace.head_gates and trace.neuron_gates:
            by_head = op("ReduceSum", op("Mul", by_context, trace.context), graph.ints(-2, -1), keepdims=0)
            by_neuron = op("ReduceSum", op("Mul", by_gated, trace.inner), graph.ints(-2), keepdims=0)
            units = UnitGradients(by_head, by_neuron)
            by_context = op("Mul", by_context, trace.head_gates)
        by_value = join(op("MatMul", swap(trace.attention), by_context))
        start, end = graph.ints(2 * heads * width), graph.ints(3 * heads * width)
        value_weight = op("Slice", real_values(graph, layer.qkv), start, end, graph.ints(1))
        by_inputs = transposed_product(graph, by_value, value_weight)
        if norm_first:
            by_inputs = self.backward_norm(by_inputs, trace.norm1)
        return op("Add", by_sum, by_inputs), units

    def _with_axis(self, trace: Trace) -> Trace:
        """The trace with an axis of 1 after the batch, against which several gradients broadcast."""
        axis = self.graph.ints(1)

        def widen(tensor: str) -> str:
            return str(self.graph.op("Unsqueeze", tensor, axis))

        return trace._replace(
            attention=widen(trace.attention),
            norm1=self.widen_norm(trace.norm1),
            before_activation=widen(trace.before_activation),
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

    def _activation_factor(self, inputs: str) -> str:
        """What the activation multiplies its input by: f(x) / x."""
        op, floats, kind = self.graph.op, self.graph.floats, self.config.activation
        if kind == "relu":
            return str(op("Cast", op("Greater", inputs, floats(0.0)), to=1))
        if kind == "silu":
            return str(op("Sigmoid", inputs))
        if kind == "gelu_tanh":  # (1 + tanh(c (x + a x³))) / 2
            slope, cubic = math.sqrt(2 / math.pi), 0.044715
            steep = op("Add", op("Mul", op("Mul", inputs, inputs), floats(slope * cubic)), floats(slope))
            rise = op("Tanh", op("Mul", inputs, steep))
        else:  # (1 + erf(x / √2)) / 2
            rise = op("Erf", op("Mul", inputs, floats(math.sqrt(0.5))))
        return str(op("Add", op("Mul", rise, floats(0.5)), floats(0.5)))
