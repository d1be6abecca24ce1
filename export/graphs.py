"""The two graphs of a bundle: ``predict.onnx``, compact, and ``explain.onnx``, gated and with gradients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto

from export.graph import GraphBuilder
from export.layers import Emitter, ExportLayer, Norm, Trace, array
from export.products import exact_product, fast_product
from sparsecbm.backbone import BackboneConfig, distance_buckets
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
    norm: Norm | None


def _attention_bias(graph: GraphBuilder, causal: bool) -> str:
    """[batch, 1, 1, length], or [batch, 1, length, length] where causal."""
    floats = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    absent = graph.op("Mul", graph.op("Sub", floats, graph.floats(1.0)), graph.floats(1e4))
    bias = str(graph.op("Unsqueeze", absent, graph.ints(1, 2)))
    if not causal:
        return bias
    later = graph.op("Cast", graph.op("Greater", _ahead(graph), graph.constant(np.array(0))), to=TensorProto.FLOAT)
    return str(graph.op("Min", bias, graph.op("Mul", later, graph.floats(-1e4))))


def _ahead(graph: GraphBuilder) -> str:
    """[length, length] int64: how far each key is ahead of each query."""
    op, ints = graph.op, graph.ints
    length = op("Squeeze", op("Slice", op("Shape", "input_ids"), ints(1), ints(2)))
    places = op("Range", graph.constant(np.array(0)), length, graph.constant(np.array(1)))
    return str(op("Sub", op("Unsqueeze", places, ints(0)), op("Unsqueeze", places, ints(1))))


def _distances(graph: GraphBuilder, config: BackboneConfig) -> str:
    """[length, length] int64, the bucket of each distance; nothing in the families without a bias by distance."""
    if not config.distance_buckets:
        return ""
    farthest = config.max_tokens - 1
    buckets = distance_buckets(torch.arange(-farthest, farthest + 1), config.distance_buckets).numpy()
    index = graph.op("Add", _ahead(graph), graph.constant(np.array(farthest)))
    return str(graph.op("Gather", graph.constant(buckets, "buckets"), index))


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
    if embeddings.norm is None or embeddings.norm_bias is None:
        return _Embedded(tokens, summed, None)
    hidden, norm = emitter.normalise(summed, array(embeddings.norm), array(embeddings.norm_bias))
    return _Embedded(tokens, hidden, norm)


def _finish(emitter: Emitter, model: SparseCBM, hidden: str) -> tuple[str, Norm | None]:
    """What follows the last layer: a normalisation, in the families that have one."""
    backbone = model.backbone
    if backbone.norm is None or backbone.norm_bias is None:
        return hidden, None
    return emitter.normalise(hidden, array(backbone.norm), array(backbone.norm_bias))


def _trunk_layers(model: SparseCBM, precision: Precision) -> list[ExportLayer]:
    """The shared layers, of the units that the trunk's mask keeps."""
    return [ExportLayer.of(weights, precision) for weights in model.trunk_weights()]


def _branch_layers(model: SparseCBM, precision: Precision) -> list[list[ExportLayer]]:
    """Each concept's branch layers with all their units: the same for all, unless single weights are pruned."""
    concepts = range(len(model.concepts) if model.weight_masks is not None else 1)
    layers = [
        [ExportLayer.of(model.full_weights(concept, position), precision) for position in range(model.branch_layers)]
        for concept in concepts
    ]
    return layers if model.weight_masks is not None else layers * len(model.concepts)


def _token_share(graph: GraphBuilder) -> str:
    """[batch, 1, length]: the weight of each token in the mean over tokens."""
    floats = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    total = graph.op("ReduceSum", floats, graph.ints(1), keepdims=1)
    return str(graph.op("Unsqueeze", graph.op("Div", floats, total), graph.ints(1)))


def _read_concepts(graph: GraphBuilder, model: SparseCBM, pooled: str) -> tuple[str, str]:
    """[batch, concepts, 1, hidden] pooled outputs to logits and vectors, batched over concepts."""

    def read(weight: np.ndarray) -> str:
        """[batch, concepts, 1, rows], of a weight [concepts, rows, hidden]."""
        return str(graph.op("MatMul", pooled, graph.constant(weight.transpose(0, 2, 1), "concept")))

    absent = model.absent_values.numpy().astype(np.float32)
    logits = graph.op("Squeeze", read(array(model.logit_weight)), graph.ints(2))
    logits = graph.op("Add", logits, graph.constant(array(model.logit_bias) + absent, "concept_bias"))
    strengths, values = read(array(model.strength_weight)), array(model.value_vectors)
    if model.reach < 1:  # what the mixture that was read keeps of a correction
        chances = graph.op("Unsqueeze", graph.op("Softmax", logits, axis=-1), graph.ints(2))
        kept = graph.op("MatMul", chances, graph.constant(np.float32(1 - model.reach) * values, "values"))
        strengths, values = graph.op("Add", strengths, kept), np.float32(model.reach) * values
    return logits, str(graph.op("Add", strengths, graph.constant(values, "values")))


def predict_graph(model: SparseCBM, precision: Precision) -> onnx.ModelProto:
    """Tokens → every concept's logits and vectors; each branch holds only the units that its mask keeps.

    Where single weights are pruned, each branch has its own whole matrices, with zeros in them.

    Inputs ``input_ids``, ``attention_mask`` [batch, length] int64; outputs ``logits``
    [batch, concepts, values] and ``vectors`` [batch, concepts, values, width].
    """
    graph = GraphBuilder()
    config = model.backbone.config
    emitter = Emitter(graph, config, fast_product, traced=False, distances=_distances(graph, config))
    bias = _attention_bias(graph, config.causal)
    shared = _embed(emitter, model, precision).hidden
    for layer in _trunk_layers(model, precision):
        shared, _ = emitter.forward(shared, bias, layer)
    share = _token_share(graph)
    pooled = []
    for concept, layers in enumerate(_branch_layers(model, precision)):
        hidden = shared
        for position, layer in enumerate(layers):
            heads, neurons = (kept.numpy() for kept in model.masks.kept(concept, position))
            hidden, _ = emitter.forward(hidden, bias, layer.compact(heads, neurons))
        hidden, _ = _finish(emitter, model, hidden)
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

    Concepts that share their weights run as one batch; where single weights are pruned, each runs by itself.
    """
    graph = GraphBuilder()
    op, ints, config = graph.op, graph.ints, model.backbone.config
    emitter = Emitter(graph, config, exact_product, traced=True, distances=_distances(graph, config))
    concepts, values = model.logit_bias.shape
    bias = _attention_bias(graph, config.causal)
    embedded = _embed(emitter, model, precision)
    hidden = embedded.hidden
    trunk: list[Trace] = []
    for layer in _trunk_layers(model, precision):
        hidden, trace = emitter.forward(hidden, bias, layer)
        trunk.append(trace)
    length = op("Slice", op("Shape", "input_ids"), ints(1), ints(2))
    flat = op("Concat", ints(-1), length, ints(config.hidden), axis=0)
    together = [list(range(concepts))] if model.weight_masks is None else [[concept] for concept in range(concepts)]

    def only(tensor: str, members: list[int]) -> str:
        """Some concepts' part of a tensor [batch, concepts, ..]."""
        return tensor if len(members) == concepts else str(op("Gather", tensor, ints(*members), axis=1))

    def joined(parts: list[str]) -> str:
        """The opposite of ``only``."""
        return parts[0] if len(parts) == 1 else str(op("Concat", *parts, axis=1))

    def by_concept(tensor: str, members: list[int]) -> str:
        """[batch · members, length, hidden] to [batch, members, length, hidden]."""
        shape = op("Concat", ints(-1, len(members)), length, ints(config.hidden), axis=0)
        return str(op("Reshape", tensor, shape))

    branches: list[list[Trace]] = []
    outputs = []
    all_layers = _branch_layers(model, precision)
    for members in together:
        spread = op("Expand", op("Unsqueeze", hidden, ints(1)), ints(1, len(members), 1, 1))
        state = op("Reshape", spread, flat)
        branch_bias = op("Expand", op("Unsqueeze", bias, ints(1)), ints(1, len(members), 1, 1, 1))
        by_query = [ints(-1, 1), length] if config.causal else [ints(-1, 1, 1)]
        branch_bias = op("Reshape", branch_bias, op("Concat", *by_query, length, axis=0))
        branch: list[Trace] = []
        for position, layer in enumerate(all_layers[members[0]]):
            at = graph.constant(np.array(position))
            heads = only(op("Gather", "head_gates", at, axis=2), members)
            heads = op("Reshape", heads, ints(-1, config.heads, 1, 1))
            neurons = only(op("Gather", "neuron_gates", at, axis=2), members)
            neurons = op("Reshape", neurons, ints(-1, 1, config.neurons))
            state, trace = emitter.forward(state, branch_bias, layer, heads, neurons)
            branch.append(trace)
        branches.append(branch)
        outputs.append(by_concept(state, members))
    share = op("Unsqueeze", _token_share(graph), ints(1))  # [batch, 1, 1, length]
    finished, final_norm = _finish(emitter, model, joined(outputs))
    pooled = op("MatMul", share, finished)
    logits, vectors = _read_concepts(graph, model, pooled)

    weights = op("Unsqueeze", "value_weights", ints(2))
    by_pooled = op("MatMul", weights, graph.constant(array(model.logit_weight), "concept_rows"))
    gradient = op("Mul", op("Transpose", share, perm=[0, 1, 3, 2]), by_pooled)  # [batch, concepts, length, hidden]
    if final_norm is not None:
        gradient = emitter.backward_norm(gradient, final_norm)
    gradients: list[str] = []
    head_gradients: list[str] = []
    neuron_gradients: list[str] = []
    for members, branch in zip(together, branches, strict=True):
        part = op("Reshape", only(gradient, members), flat)
        by_heads: list[str] = []
        by_neurons: list[str] = []
        for trace in reversed(branch):
            part, units = emitter.backward(part, trace)
            assert units is not None
            by_heads.insert(0, op("Reshape", units.heads, ints(-1, len(members), 1, config.heads)))
            by_neurons.insert(0, op("Reshape", units.neurons, ints(-1, len(members), 1, config.neurons)))
        head_gradients.append(op("Concat", *by_heads, axis=2))
        neuron_gradients.append(op("Concat", *by_neurons, axis=2))
        gradients.append(by_concept(part, members))
    gradient = joined(gradients)
    for trace in reversed(trunk):
        gradient, _ = emitter.backward(gradient, trace, shared=True)
    if embedded.norm is not None:
        gradient = emitter.backward_norm(gradient, emitter.widen_norm(embedded.norm))
    tokens = op("Unsqueeze", embedded.tokens, ints(1))
    scores = op("ReduceSum", op("Mul", gradient, tokens), ints(-1), keepdims=0)
    graph.rename(logits, "logits")
    graph.rename(vectors, "vectors")
    graph.rename(scores, "token_scores")
    graph.rename(joined(head_gradients), "head_gradients")
    graph.rename(joined(neuron_gradients), "neuron_gradients")
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
