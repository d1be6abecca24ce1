"""The graphs of a bundle: compact ones that predict and attribute, and one with gates that explains under any masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto

from export.graph import GraphBuilder
from export.layers import Attended, Emitter, ExportLayer, Norm, Trace, array
from export.products import ExactProduct, Product
from sparsecbm.backbone import BackboneConfig, distance_buckets
from sparsecbm.bundle import Precision
from sparsecbm.model import SparseCBM

PREDICT = "predict.onnx"
ATTRIBUTE = "attribute.onnx"
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
    """[batch, 1, length, length]: what attention adds to its scores, by query and key."""
    floats = graph.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    absent = graph.op("Mul", graph.op("Sub", floats, graph.floats(1.0)), graph.floats(1e4))
    bias = str(graph.op("Unsqueeze", absent, graph.ints(1, 2)))
    if not causal:
        length = graph.op("Slice", graph.op("Shape", "input_ids"), graph.ints(1), graph.ints(2))
        square = graph.op("Concat", graph.ints(1, 1), length, length, axis=0)
        return str(graph.op("Expand", bias, square))
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


class _Branch(NamedTuple):
    """A concept's forward pass."""

    traces: list[Trace]
    final_norm: Norm | None


class _Compact(NamedTuple):
    """The forward pass of the units that masks keep."""

    embedded: _Embedded
    trunk: list[Trace]
    branches: list[_Branch]
    share: str  # [batch, 1, length], each token's in the mean
    logits: str
    vectors: str


def _run_compact(emitter: Emitter, model: SparseCBM, precision: Precision) -> _Compact:
    graph, op = emitter.graph, emitter.graph.op
    bias = _attention_bias(graph, model.backbone.config.causal)
    embedded = _embed(emitter, model, precision)
    shared = embedded.hidden
    trunk = []
    for layer in _trunk_layers(model, precision):
        shared, trace = emitter.forward(shared, bias, layer)
        trunk.append(trace)
    share = _token_share(graph)
    all_layers = _branch_layers(model, precision)
    attended = _attend_together(emitter, model, shared, bias, all_layers[0][0]) if model.weight_masks is None else None
    branches, pooled = [], []
    for concept, layers in enumerate(all_layers):
        hidden, traces = shared, []
        for position, layer in enumerate(layers):
            heads, neurons = (kept.numpy() for kept in model.masks.kept(concept, position))
            known = attended[concept] if attended and not position else None
            hidden, trace = emitter.forward(hidden, bias, layer.compact(heads, neurons), attended=known)
            traces.append(trace)
        hidden, final_norm = _finish(emitter, model, hidden)
        branches.append(_Branch(traces, final_norm))
        pooled.append(op("Unsqueeze", op("MatMul", share, hidden), graph.ints(1)))
    logits, vectors = _read_concepts(graph, model, op("Concat", *pooled, axis=1))
    return _Compact(embedded, trunk, branches, share, logits, vectors)


def _attend_together(emitter: Emitter, model: SparseCBM, shared: str, bias: str, layer: ExportLayer) -> list[Attended]:
    """Each concept's attention in the first branch layer, where all read the same: a head is run once for all."""
    kept = model.masks.heads[:, 0].numpy()
    heads = np.flatnonzero(kept.any(axis=0))
    together = emitter.attend(shared, bias, layer.compact(heads, np.arange(0)))
    return [emitter.of_heads(together, np.flatnonzero(mask[heads])) for mask in kept]


def predict_graph(model: SparseCBM, precision: Precision, product: Product | None = None) -> onnx.ModelProto:
    """Tokens → every concept's logits and vectors; each branch holds only the units that its mask keeps.

    Where single weights are pruned, each branch has its own whole matrices, with zeros in them.

    Inputs ``input_ids``, ``attention_mask`` [batch, length] int64; outputs ``logits``
    [batch, concepts, values] and ``vectors`` [batch, concepts, values, width].

    Args:
        model: to export.
        precision: of the weights.
        product: how matrices are multiplied, exactly by default; see ``export.ranges`` for the int8 one.
    """
    graph, config = GraphBuilder(), model.backbone.config
    emitter = Emitter(graph, config, product or ExactProduct(), traced=False, distances=_distances(graph, config))
    run = _run_compact(emitter, model, precision)
    graph.rename(run.logits, "logits")
    graph.rename(run.vectors, "vectors")
    concepts, values = model.logit_bias.shape
    return graph.build(
        "predict",
        _TOKENS,
        {"logits": ("batch", concepts, values), "vectors": ("batch", concepts, values, model.width)},
    )


def _contrast(graph: GraphBuilder, model: SparseCBM, logits: str) -> str:
    """[batch, concepts, values]: 1 at the most probable value of each concept, and the others share -1."""
    present = np.isfinite(model.absent_values.numpy())
    concepts, values = present.shape
    others = present[:, None] & ~np.eye(values, dtype=bool)  # [concepts, chosen value, values]
    table = np.eye(values) - others / np.maximum(others.sum(-1, keepdims=True), 1)
    chosen = graph.op("ArgMax", logits, axis=2, keepdims=0)
    place = graph.op("Add", chosen, graph.constant(np.arange(concepts) * values))
    rows = graph.constant(table.reshape(-1, values).astype(np.float32), "contrast")
    return str(graph.op("Gather", rows, place))


def _spread(graph: GraphBuilder, kept: np.ndarray, gradient: str) -> str:
    """The gradient by all units, [batch, 1, units], of that by the kept ones, [batch, kept]; 0 at the others."""
    place = np.full(len(kept), kept.sum())
    place[kept] = np.arange(kept.sum())
    widened = graph.op("Pad", gradient, graph.ints(0, 0, 0, 1))
    return str(graph.op("Unsqueeze", graph.op("Gather", widened, graph.constant(place), axis=1), graph.ints(1)))


def attribute_graph(model: SparseCBM, precision: Precision, product: Product | None = None) -> onnx.ModelProto:
    """``predict.onnx`` with what speaks for each concept's most probable value rather than its others.

    Beside ``logits`` and ``vectors`` it gives, for s the most probable value's logit less the mean of the others':
    ``token_scores`` [batch, concepts, length], and ``head_gradients`` [batch, concepts, branch layers, heads] and
    ``neuron_gradients`` [batch, concepts, branch layers, neurons], as ``explain_graph`` does, but 0 at pruned units.
    That needs no pruned unit to be run. Arguments are those of ``predict_graph``; masks must be over units.
    """
    graph, config = GraphBuilder(), model.backbone.config
    op, ints = graph.op, graph.ints
    emitter = Emitter(graph, config, product or ExactProduct(), traced=True, distances=_distances(graph, config))
    run = _run_compact(emitter, model, precision)
    weights = op("Unsqueeze", _contrast(graph, model, run.logits), ints(2))
    by_pooled = op("MatMul", weights, graph.constant(array(model.logit_weight), "concept_rows"))
    by_token = op("Transpose", run.share, perm=[0, 2, 1])  # [batch, length, 1]
    gradients, by_heads, by_neurons = [], [], []
    for concept, branch in enumerate(run.branches):
        own = op("Gather", by_pooled, graph.constant(np.array(concept)), axis=1)  # [batch, 1, hidden]
        gradient = op("Mul", by_token, own)
        if branch.final_norm is not None:
            gradient = emitter.backward_norm(gradient, branch.final_norm)
        heads: list[str] = []
        neurons: list[str] = []
        for position, trace in reversed(list(enumerate(branch.traces))):
            gradient, units = emitter.backward(gradient, trace)
            assert units is not None
            heads.insert(0, _spread(graph, model.masks.heads[concept, position].numpy(), units.heads))
            neurons.insert(0, _spread(graph, model.masks.neurons[concept, position].numpy(), units.neurons))
        gradients.append(op("Unsqueeze", gradient, ints(1)))
        by_heads.append(op("Unsqueeze", op("Concat", *heads, axis=1), ints(1)))
        by_neurons.append(op("Unsqueeze", op("Concat", *neurons, axis=1), ints(1)))
    scores = _token_scores(emitter, run.embedded, run.trunk, op("Concat", *gradients, axis=1))
    outputs = {"logits": run.logits, "vectors": run.vectors, "token_scores": scores}
    outputs |= {
        "head_gradients": op("Concat", *by_heads, axis=1),
        "neuron_gradients": op("Concat", *by_neurons, axis=1),
    }
    for name, tensor in outputs.items():
        graph.rename(tensor, name)
    return graph.build("attribute", _TOKENS, _explanation_shapes(model))


def _token_scores(emitter: Emitter, embedded: _Embedded, trunk: list[Trace], gradient: str) -> str:
    """[batch, concepts, length], of the gradient by the trunk's output, [batch, concepts, length, hidden]."""
    op, ints = emitter.graph.op, emitter.graph.ints
    for trace in reversed(trunk):
        gradient, _ = emitter.backward(gradient, trace, shared=True)
    if embedded.norm is not None:
        gradient = emitter.backward_norm(gradient, emitter.widen_norm(embedded.norm))
    tokens = op("Unsqueeze", embedded.tokens, ints(1))
    return str(op("ReduceSum", op("Mul", gradient, tokens), ints(-1), keepdims=0))


def _explanation_shapes(model: SparseCBM) -> dict[str, tuple[str | int, ...]]:
    """What an explanation graph gives."""
    config, (concepts, values) = model.backbone.config, model.logit_bias.shape
    return {
        "logits": ("batch", concepts, values),
        "vectors": ("batch", concepts, values, model.width),
        "token_scores": ("batch", concepts, "length"),
        "head_gradients": ("batch", concepts, model.branch_layers, config.heads),
        "neuron_gradients": ("batch", concepts, model.branch_layers, config.neurons),
    }


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
    emitter = Emitter(graph, config, ExactProduct(), traced=True, distances=_distances(graph, config))
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
        branch_bias = op("Reshape", branch_bias, op("Concat", ints(-1, 1), length, length, axis=0))
        branch: list[Trace] = []
        for position, layer in enumerate(all_layers[members[0]]):
            at = graph.constant(np.array(position))
            heads = only(op("Gather", "head_gates", at, axis=2), members)
            heads = op("Reshape", heads, ints(-1, 1, config.heads, 1))
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
    scores = _token_scores(emitter, embedded, trunk, gradient)
    graph.rename(logits, "logits")
    graph.rename(vectors, "vectors")
    graph.rename(scores, "token_scores")
    graph.rename(joined(head_gradients), "head_gradients")
    graph.rename(joined(neuron_gradients), "neuron_gradients")
    head_shape, neuron_shape = (_explanation_shapes(model)[f"{kind}_gradients"] for kind in ("head", "neuron"))
    return graph.build(
        "explain",
        {
            **_TOKENS,
            "head_gates": (TensorProto.FLOAT, head_shape),
            "neuron_gates": (TensorProto.FLOAT, neuron_shape),
            "value_weights": (TensorProto.FLOAT, ("batch", concepts, values)),
        },
        _explanation_shapes(model),
    )
