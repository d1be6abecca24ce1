"""The two graphs of a bundle: ``predict.onnx``, compact, and ``explain.onnx``, gated and with gradients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from export.graph import GraphBuilder
from export.layers import Emitter, ExportLayer, Norm, Trace, array
from export.products import exact_product, fast_product
from sparsecbm.bundle import Precision
from sparsecbm.model import SparseCBM

PREDICT = "predict.onnx"
EXPLAIN = "explain.onnx"
_TOKENS = {
    "input_ids": (TensorProto.INT64, ("batch", "length")),
    "attention_mask": (TensorProto.INT64, ("batch", "length")),
}


class _Embedded(NamedTuple):
    tokens: str  # [batch, length, hidden], before positions are added
    hidden: str  # [batch, length, hidden], the first layer's input
    norm: Norm


def _attention_bias(graph: GraphBuilder) -> str:
    floats = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    absent = graph.op("Mul", graph.op("Sub", floats, graph.floats(1.0)), graph.floats(1e4))
    return str(graph.op("Unsqueeze", absent, graph.ints(1, 2)))


def _embed(emitter: Emitter, model: SparseCBM, precision: Precision) -> _Embedded:
    """Token and position embeddings; in int8, every token's row has its own scale."""
    graph, op, embeddings = emitter.graph, emitter.graph.op, model.backbone.embeddings
    table = array(embeddings.token)
    if precision == "int8":
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-12) / np.float32(127)
        values = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
        rows = op("Cast", op("Gather", graph.constant(values, "tokens"), "input_ids"), to=TensorProto.FLOAT)
        scales = op("Gather", graph.constant(scale.astype(np.float32), "token_scale"), "input_ids")
        tokens = op("Mul", rows, scales)
    else:
        tokens = op("Gather", graph.constant(table, "tokens"), "input_ids")
    length = op("Slice", op("Shape", "input_ids"), graph.ints(1), graph.ints(2))
    positions = graph.constant(array(embeddings.position), "positions")
    used = op("Slice", positions, graph.ints(0), length, graph.ints(0))
    summed = op("Add", tokens, used)
    hidden, norm = emitter.normalise(summed, array(embeddings.norm), array(embeddings.norm_bias))
    return _Embedded(tokens, hidden, norm)


def _layers(model: SparseCBM, precision: Precision) -> list[ExportLayer]:
    return [ExportLayer.of(layer.weights(), precision) for layer in model.backbone.layers]


def _token_share(graph: GraphBuilder) -> str:
    """[batch, 1, length]: the weight of each token in the mean over tokens."""
    floats = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    total = graph.op("ReduceSum", floats, graph.ints(1), keepdims=1)
    return str(graph.op("Unsqueeze", graph.op("Div", floats, total), graph.ints(1)))


def _read_concepts(graph: GraphBuilder, model: SparseCBM, pooled: str) -> tuple[str, str]:
    """[batch, concepts, 1, hidden] pooled outputs to logits and vectors, batched over concepts."""
    values, width = model.logit_bias.shape[1], model.width

    def read(weight: np.ndarray, bias: np.ndarray) -> str:
        product = graph.op("MatMul", pooled, graph.constant(weight.transpose(0, 2, 1), "concept"))
        squeezed = graph.op("Squeeze", product, graph.ints(2))
        return str(graph.op("Add", squeezed, graph.constant(bias, "concept_bias")))

    absent = model.absent_values.numpy().astype(np.float32)
    logits = read(array(model.logit_weight), array(model.logit_bias) + absent)
    vectors = read(array(model.vector_weight), array(model.vector_bias))
    shape = graph.ints(0, 0, values, width)
    return logits, str(graph.op("Reshape", vectors, shape))


def predict_graph(model: SparseCBM, precision: Precision) -> onnx.ModelProto:
    """Tokens → every concept's logits and vectors; each branch holds only the units that its mask keeps.

    Inputs ``input_ids``, ``attention_mask`` [batch, length] int64; outputs ``logits``
    [batch, concepts, values] and ``vectors`` [batch, concepts, values, width].
    """
    graph = GraphBuilder()
    emitter = Emitter(graph, model.backbone.config, fast_product, traced=False)
    layers = _layers(model, precision)
    bias = _attention_bias(graph)
    shared = _embed(emitter, model, precision).hidden
    for layer in layers[: model.trunk]:
        shared, _ = emitter.forward(shared, bias, layer)
    share = _token_share(graph)
    pooled = []
    for concept in range(len(model.concepts)):
        hidden = shared
        for position, layer in enumerate(layers[model.trunk :]):
            heads, neurons = (kept.numpy() for kept in model.masks.kept(concept, position))
            hidden, _ = emitter.forward(hidden, bias, layer.compact(heads, neurons))
        pooled.append(graph.op("Unsqueeze", graph.op("MatMul", share, hidden), graph.ints(1)))
    logits, vectors = _read_concepts(graph, model, graph.op("Concat", *pooled, axis=1))
    graph.rename(logits, "logits")
    graph.rename(vectors, "vectors")
    concepts, values = model.logit_bias.shape
    return graph.build(
        "predict",
        _TOKENS,
        {"logits": ("batch", concepts, values), "vectors": ("batch", concepts, values, model.width)},
    )


def explain_graph(model: SparseCBM, precision: Precision) -> onnx.ModelProto:
    """The same function, its unit gates an input and the gradients of a weighted sum of logits outputs.

    Beside the tokens it takes ``head_gates`` [batch, concepts, branch layers, heads], ``neuron_gates``
    [batch, concepts, branch layers, neurons] and ``value_weights`` [batch, concepts, values]. For each
    concept, with s the sum of its logits weighted by ``value_weights``, it gives beside ``logits`` and
    ``vectors``: ``token_scores`` [batch, concepts, length], the derivative of s by each token's embedding
    times that embedding (gradient × input, Shrikumar et al. 2017), and ``head_gradients`` and
    ``neuron_gradients``, the derivative of s by each gate, of the gates' shapes.
    """
    graph = GraphBuilder()
    op, ints, config = graph.op, graph.ints, model.backbone.config
    emitter = Emitter(graph, config, exact_product, traced=True)
    layers = _layers(model, precision)
    concepts, values = model.logit_bias.shape
    bias = _attention_bias(graph)
    embedded = _embed(emitter, model, precision)
    hidden = embedded.hidden
    trunk: list[Trace] = []
    for layer in layers[: model.trunk]:
        hidden, trace = emitter.forward(hidden, bias, layer)
        trunk.append(trace)

    def gates(name: str, layer: int, *shape: int) -> str:
        """One layer's gates, [batch · concepts, ..]."""
        one = op("Gather", name, graph.constant(np.array(layer)), axis=2)
        return str(op("Reshape", one, ints(-1, *shape)))

    length = op("Slice", op("Shape", "input_ids"), ints(1), ints(2))
    flat = op("Concat", ints(-1), length, ints(config.hidden), axis=0)
    spread = op("Expand", op("Unsqueeze", hidden, ints(1)), ints(1, concepts, 1, 1))
    hidden = op("Reshape", spread, flat)
    branch_bias = op("Expand", op("Unsqueeze", bias, ints(1)), ints(1, concepts, 1, 1, 1))
    branch_bias = op("Reshape", branch_bias, op("Concat", ints(-1, 1, 1), length, axis=0))
    branch: list[Trace] = []
    for position, layer in enumerate(layers[model.trunk :]):
        heads = gates("head_gates", position, config.heads, 1, 1)
        neurons = gates("neuron_gates", position, 1, config.neurons)
        hidden, trace = emitter.forward(hidden, branch_bias, layer, heads, neurons)
        branch.append(trace)
    by_concept = op("Concat", ints(-1, concepts), length, ints(config.hidden), axis=0)
    share = op("Unsqueeze", _token_share(graph), ints(1))  # [batch, 1, 1, length]
    pooled = op("MatMul", share, op("Reshape", hidden, by_concept))
    logits, vectors = _read_concepts(graph, model, pooled)

    weights = op("Unsqueeze", "value_weights", ints(2))
    by_pooled = op("MatMul", weights, graph.constant(array(model.logit_weight), "concept_rows"))
    gradient = op("Mul", op("Transpose", share, perm=[0, 1, 3, 2]), by_pooled)  # [batch, concepts, length, hidden]
    gradient = op("Reshape", gradient, flat)
    head_gradients: list[str] = []
    neuron_gradients: list[str] = []
    for trace in reversed(branch):
        gradient, units = emitter.backward(gradient, trace)
        assert units is not None
        shape = ints(-1, concepts, 1, config.heads)
        head_gradients.insert(0, op("Reshape", units.heads, shape))
        neuron_gradients.insert(0, op("Reshape", units.neurons, ints(-1, concepts, 1, config.neurons)))
    gradient = op("Reshape", gradient, by_concept)
    for trace in reversed(trunk):
        gradient, _ = emitter.backward(gradient, trace, shared=True)
    norm = embedded.norm._replace(
        inputs=op("Unsqueeze", embedded.norm.inputs, ints(1)),
        mean=op("Unsqueeze", embedded.norm.mean, ints(1)),
        inverse_deviation=op("Unsqueeze", embedded.norm.inverse_deviation, ints(1)),
    )
    gradient = emitter.backward_norm(gradient, norm)
    tokens = op("Unsqueeze", embedded.tokens, ints(1))
    scores = op("ReduceSum", op("Mul", gradient, tokens), ints(-1), keepdims=0)
    graph.rename(logits, "logits")
    graph.rename(vectors, "vectors")
    graph.rename(scores, "token_scores")
    graph.rename(op("Concat", *head_gradients, axis=2), "head_gradients")
    graph.rename(op("Concat", *neuron_gradients, axis=2), "neuron_gradients")
    head_shape = ("batch", concepts, model.branch_layers, config.heads)
    neuron_shape = ("batch", concepts, model.branch_layers, config.neurons)
    return graph.build(
        "explain",
        {
            **_TOKENS,
            "head_gates": (TensorProto.FLOAT, head_shape),
            "neuron_gates": (TensorProto.FLOAT, neuron_shape),
            "value_weights": (TensorProto.FLOAT, ("batch", concepts, values)),
        },
        {
            "logits": ("batch", concepts, values),
            "vectors": ("batch", concepts, values, model.width),
            "token_scores": ("batch", concepts, "length"),
            "head_gradients": head_shape,
            "neuron_gradients": neuron_shape,
        },
    )
