"""The bundle's two graphs, against the PyTorch model and its autograd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from export.graphs import attribute_graph, explain_graph, predict_graph
from export.products import Int8Product, quantise
from export.ranges import measure_ranges
from sparsecbm.attribution import Attribution, attribute
from sparsecbm.bundle import Granularity, Precision
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.data import Dataset
from sparsecbm.masks import UnitMasks
from sparsecbm.model import Bottleneck, SparseCBM
from sparsecbm.tokens import encode, pad, tokenizer_from_text

Open = Callable[[onnx.ModelProto], ort.InferenceSession]
MakeModel = Callable[..., SparseCBM]
Batch = tuple[np.ndarray, np.ndarray]

ACTIVATIONS = pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
FAMILIES = pytest.mark.parametrize("family", ["mpnet", "gpt2", "opt", "opt normalised after the sums"])
TRUNKS = pytest.mark.parametrize("trunk", [0, 2])


def answer(model: SparseCBM, batch: Batch) -> Bottleneck:
    with torch.inference_mode():
        output: Bottleneck = model(*map(torch.from_numpy, batch))
    return output


def int8(model: SparseCBM, batch: Batch) -> Int8Product:
    """Products of a model over the ranges that they have on a batch."""
    return Int8Product(measure_ranges(model, [only(batch, text)[0][0] for text in range(len(batch[0]))]))


def predict(session: ort.InferenceSession, batch: Batch) -> list[np.ndarray]:
    """Logits and vectors."""
    outputs: list[np.ndarray] = session.run(["logits", "vectors"], {"input_ids": batch[0], "attention_mask": batch[1]})
    return outputs


def only(batch: Batch, text: int) -> Batch:
    """One text of a batch, without its padding."""
    length = int(batch[1][text].sum())
    return batch[0][text : text + 1, :length], batch[1][text : text + 1, :length]


def predict_close(session: ort.InferenceSession, model: SparseCBM, batch: Batch) -> None:
    for actual, expected in zip(predict(session, batch), answer(model, batch), strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-4)


@ACTIVATIONS
def test_predict_answers_as_the_model_in_fp32(
    open_graph: Open, make_model: MakeModel, batch: Batch, activation: str
) -> None:
    model = make_model(activation=activation)
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


@pytest.mark.parametrize("values", [(3, 3), (3, 2)])
def test_predict_answers_as_a_model_whose_corrections_go_part_of_the_way(
    open_graph: Open, make_model: MakeModel, batch: Batch, values: tuple[int, ...]
) -> None:
    model = make_model(values=values)
    model.reach = 0.4
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


@FAMILIES
@pytest.mark.parametrize("trunk", [0, 1, 2])
def test_predict_answers_as_a_model_of_another_family(
    open_graph: Open, make_model: MakeModel, batch: Batch, family: str, trunk: int
) -> None:
    model = make_model(family=family, trunk=trunk)
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


@TRUNKS
def test_predict_answers_as_a_model_of_another_trunk(
    open_graph: Open, make_model: MakeModel, batch: Batch, trunk: int
) -> None:
    model = make_model(trunk=trunk)
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


def test_predict_answers_as_a_bert_on_texts(open_graph: Open, untrained: Checkpoint, labelled: Dataset) -> None:
    encoded = encode(tokenizer_from_text(untrained.tokenizer, 64), labelled.texts[:32])
    batch = pad(encoded.ids, untrained.config.backbone.pad_id)
    assert not batch[1].all()
    predict_close(open_graph(predict_graph(untrained.model, "fp32")), untrained.model, batch)


@TRUNKS
def test_predict_answers_as_a_model_of_pruned_weights(
    open_graph: Open, make_model: MakeModel, batch: Batch, trunk: int
) -> None:
    model = make_model(trunk=trunk, granularity="weights")
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


@pytest.mark.parametrize("granularity", ["units", "weights"])
def test_predict_answers_as_a_model_of_a_pruned_trunk(
    open_graph: Open, make_model: MakeModel, batch: Batch, granularity: Granularity
) -> None:
    model = make_model(trunk=2, trunk_density=0.4, granularity=granularity)
    assert model.trunk_masks.density() < 0.6
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


def test_predict_in_int8_is_near_a_model_of_pruned_weights(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    model = make_model(granularity="weights")
    logits, _ = predict(open_graph(predict_graph(model, "int8", int8(model, batch))), batch)
    expected = answer(model, batch).logits.numpy()
    assert np.abs(logits - expected).max() < 0.1 * expected.std()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_pruned_weights_are_zeros_in_predict(make_model: MakeModel, precision: Precision) -> None:
    model = make_model(granularity="weights", density=0.3)
    assert model.weight_masks is not None
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in predict_graph(model, precision).graph.initializer
        if tensor.name.startswith("weight")
    }
    for concept in range(2):
        kept = model.weight_masks.of(concept, 1)["up"].numpy().T
        like = [weight for weight in tensors.values() if weight.shape == kept.shape and not weight[~kept].any()]
        assert len(like) == 1 and (precision == "int8" or np.array_equal(like[0] != 0, kept))


@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2", "opt"])
def test_predict_reads_as_many_tokens_as_there_are_positions(
    open_graph: Open, make_model: MakeModel, family: str
) -> None:
    model = make_model(family=family)
    ids = np.arange(model.backbone.config.max_tokens)[None, :]
    predict_close(open_graph(predict_graph(model, "fp32")), model, (ids, np.ones_like(ids)))


def test_values_that_a_concept_lacks_have_minus_infinity_as_logit(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    logits, _ = predict(open_graph(predict_graph(make_model(values=(2, 3)), "fp32")), batch)
    assert np.isneginf(logits).tolist() == [[[False, False, True], [False, False, False]]] * 4


def test_predict_answers_as_a_model_whose_concepts_differ_in_values(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    model = make_model(values=(2, 3, 2))
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


def test_predict_answers_as_a_model_of_single_units(open_graph: Open, make_model: MakeModel, batch: Batch) -> None:
    model = make_model(density=0.0)
    assert (model.masks.heads.sum(-1) == 1).all() and (model.masks.neurons.sum(-1) == 1).all()
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


def test_predict_answers_as_a_dense_model(open_graph: Open, make_model: MakeModel, batch: Batch) -> None:
    model = make_model(density=1.0)
    predict_close(open_graph(predict_graph(model, "fp32")), model, batch)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_masked_units_are_absent_from_predict(make_model: MakeModel, precision: Precision) -> None:
    model = make_model(density=0.3)
    config = model.backbone.config
    heads = {(-1, tuple(range(config.heads)))}  # of the trunk's layer
    together = int(model.masks.heads[:, 0].any(0).sum())  # in the first branch layer, whose attention is run once
    neurons = {(-1, tuple(range(config.neurons)))}
    for concept in range(len(model.concepts)):
        for layer in range(model.branch_layers):
            kept = model.masks.kept(concept, layer)
            heads.add((layer, tuple(kept[0].tolist())))
            neurons.add((layer, tuple(kept[1].tolist())))
    expected: Counter[tuple[int, ...]] = Counter()  # equal selections are stored once
    expected.update([(config.hidden, 3 * together * config.head_width)])
    for layer, units in heads:
        width = len(units) * config.head_width
        expected.update(
            [(width, config.hidden)] if layer == 0 else [(config.hidden, 3 * width), (width, config.hidden)]
        )
    for _, units in neurons:
        expected.update([(config.hidden, len(units)), (len(units), config.hidden)])
    tensors = predict_graph(model, precision).graph.initializer
    assert Counter(tuple(tensor.dims) for tensor in tensors if tensor.name.startswith("weight")) == expected


@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2", "opt"])
def test_a_text_alone_is_answered_in_fp32_as_in_a_padded_batch(
    open_graph: Open, make_model: MakeModel, batch: Batch, family: str
) -> None:
    session = open_graph(predict_graph(make_model(family=family), "fp32"))
    for text, together in enumerate(zip(*predict(session, batch), strict=True)):
        for alone, expected in zip(predict(session, only(batch, text)), together, strict=True):
            np.testing.assert_allclose(alone[0], expected, rtol=1e-4, atol=1e-5)


def test_what_stands_in_padding_changes_no_answer_in_fp32(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    session = open_graph(predict_graph(make_model(), "fp32"))
    other = np.where(batch[1] == 1, batch[0], 17)
    for actual, expected in zip(predict(session, (other, batch[1])), predict(session, batch), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_predict_in_int8_answers_the_same_batch_the_same_twice(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    session = open_graph(predict_graph(make_model(), "int8", int8(make_model(), batch)))
    for first, second in zip(predict(session, batch), predict(session, batch), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2", "opt"])
def test_a_text_alone_is_answered_in_int8_as_in_a_padded_batch(
    open_graph: Open, make_model: MakeModel, batch: Batch, family: str
) -> None:
    model = make_model(family=family)
    session = open_graph(predict_graph(model, "int8", int8(model, batch)))
    for text, together in enumerate(zip(*predict(session, batch), strict=True)):
        for alone, expected in zip(predict(session, only(batch, text)), together, strict=True):
            np.testing.assert_allclose(alone[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2", "opt"])
def test_predict_in_int8_is_near_the_model(open_graph: Open, make_model: MakeModel, batch: Batch, family: str) -> None:
    model = make_model(family=family)
    logits, _ = predict(open_graph(predict_graph(model, "int8", int8(model, batch))), batch)
    expected = answer(model, batch).logits.numpy()
    assert np.abs(logits - expected).max() < 0.1 * expected.std()


def explain(
    session: ort.InferenceSession,
    model: SparseCBM,
    batch: Batch,
    value_weights: np.ndarray,
    masks: UnitMasks | None = None,
    gates: tuple[np.ndarray, np.ndarray] | None = None,
) -> Attribution:
    """Runs the graph with the gates of masks, by default the model's, for all texts, or with given ones."""
    if gates is None:
        units = masks or model.masks
        heads, neurons = (
            np.repeat(mask.numpy().astype(np.float32)[None], len(batch[0]), axis=0)
            for mask in (units.heads, units.neurons)
        )
        gates = (heads, neurons)
    feeds = {"input_ids": batch[0], "attention_mask": batch[1], "value_weights": value_weights}
    feeds |= {"head_gates": gates[0], "neuron_gates": gates[1]}
    names = ["logits", "token_scores", "head_gradients", "neuron_gradients"]
    return Attribution(*map(torch.from_numpy, session.run(names, feeds)))


def reference(model: SparseCBM, batch: Batch, value_weights: np.ndarray) -> Attribution:
    return attribute(model, *map(torch.from_numpy, (*batch, value_weights)))


def weigh(model: SparseCBM, batch: Batch) -> np.ndarray:
    """Weights of values that differ per text; 0 where a concept lacks the value."""
    shape = (len(batch[0]), *model.absent_values.shape)
    weights = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    return np.where(np.isfinite(model.absent_values.numpy()), weights, np.float32(0))


def close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        scale = float(tensor[tensor.isfinite()].abs().max())
        torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=2e-5 * scale)


@ACTIVATIONS
@pytest.mark.parametrize("output", Attribution._fields)
def test_explain_gives_what_autograd_gives(
    open_graph: Open, make_model: MakeModel, batch: Batch, activation: str, output: str
) -> None:
    model = make_model(activation=activation)
    weights = weigh(model, batch)
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights)
    close({output: getattr(actual, output)}, {output: getattr(reference(model, batch, weights), output)})


@FAMILIES
@pytest.mark.parametrize("trunk", [0, 1, 2])
def test_explain_gives_what_autograd_gives_for_another_family(
    open_graph: Open, make_model: MakeModel, batch: Batch, family: str, trunk: int
) -> None:
    model = make_model(family=family, trunk=trunk)
    weights = weigh(model, batch)
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights)
    close(actual._asdict(), reference(model, batch, weights)._asdict())
    close({"logits": actual.logits}, {"logits": answer(model, batch).logits})


@FAMILIES
@pytest.mark.parametrize("granularity", ["units", "weights"])
def test_explain_gives_what_autograd_gives_for_another_family_with_a_pruned_trunk(
    open_graph: Open, make_model: MakeModel, batch: Batch, family: str, granularity: Granularity
) -> None:
    model = make_model(family=family, trunk=2, trunk_density=0.4, granularity=granularity)
    weights = weigh(model, batch)
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights)
    close(actual._asdict(), reference(model, batch, weights)._asdict())


@TRUNKS
def test_explain_gives_what_autograd_gives_at_another_trunk(
    open_graph: Open, make_model: MakeModel, batch: Batch, trunk: int
) -> None:
    model = make_model(trunk=trunk)
    weights = weigh(model, batch)
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights)
    close(actual._asdict(), reference(model, batch, weights)._asdict())


@TRUNKS
@pytest.mark.parametrize("granularity", ["units", "weights"])
def test_explain_gives_what_autograd_gives_for_a_pruned_trunk_or_pruned_weights(
    open_graph: Open, make_model: MakeModel, batch: Batch, trunk: int, granularity: Granularity
) -> None:
    model = make_model(trunk=trunk, trunk_density=0.4, granularity=granularity, values=(3, 2, 3))
    weights = weigh(model, batch)
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights)
    close(actual._asdict(), reference(model, batch, weights)._asdict())
    close({"logits": actual.logits}, {"logits": answer(model, batch).logits})


def test_explain_takes_unit_gates_over_pruned_weights(open_graph: Open, make_model: MakeModel, batch: Batch) -> None:
    """So masks over units can be edited where weights are pruned: a gate of 0 is a unit that isn't there."""
    model, masks = make_model(granularity="weights"), make_model(seed=9).masks
    weights = weigh(model, batch)
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights, masks)
    model.masks = masks
    close(actual._asdict(), reference(model, batch, weights)._asdict())


def test_explain_gives_what_autograd_gives_where_concepts_differ_in_values(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    model = make_model(values=(2, 3))
    weights = weigh(model, batch)
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights)
    close(actual._asdict(), reference(model, batch, weights)._asdict())


def test_explain_takes_other_gates_for_every_text(open_graph: Open, make_model: MakeModel, batch: Batch) -> None:
    model, own = make_model(), [make_model(seed=seed).masks for seed in range(1, 5)]
    weights = weigh(model, batch)
    heads, neurons = (
        torch.stack([getattr(masks, kind) for masks in own]).float().numpy() for kind in ("heads", "neurons")
    )
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights, gates=(heads, neurons))
    expected = []
    for text, masks in enumerate(own):
        model.masks = masks
        one = slice(text, text + 1)
        expected.append(reference(model, (batch[0][one], batch[1][one]), weights[one]))
    close(actual._asdict(), {name: torch.cat([getattr(e, name) for e in expected]) for name in Attribution._fields})


def test_explain_answers_under_other_masks_as_a_model_that_has_them(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    model, masks = make_model(), make_model(seed=9).masks
    session = open_graph(explain_graph(model, "fp32"))
    logits = explain(session, model, batch, weigh(model, batch), masks).logits
    model.masks = masks
    close({"logits": logits}, {"logits": answer(model, batch).logits})


def test_explains_vectors_are_the_models(open_graph: Open, make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    feeds = {"input_ids": batch[0], "attention_mask": batch[1], "value_weights": weigh(model, batch)}
    for kind in ("heads", "neurons"):
        mask = getattr(model.masks, kind).numpy().astype(np.float32)
        feeds[f"{kind.removesuffix('s')}_gates"] = np.repeat(mask[None], 4, axis=0)
    (vectors,) = open_graph(explain_graph(model, "fp32")).run(["vectors"], feeds)
    np.testing.assert_allclose(vectors, answer(model, batch).vectors.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2", "opt"])
def test_padding_has_no_token_score(open_graph: Open, make_model: MakeModel, batch: Batch, family: str) -> None:
    model = make_model(family=family)
    scores = explain(open_graph(explain_graph(model, "fp32")), model, batch, weigh(model, batch)).tokens
    padding = np.broadcast_to(batch[1][:, None, :] == 0, scores.shape)
    assert not scores.numpy()[padding].any()


def test_a_concept_whose_values_weigh_nothing_has_no_gradient(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    model = make_model()
    weights = weigh(model, batch)
    weights[:, 0] = 0
    actual = explain(open_graph(explain_graph(model, "fp32")), model, batch, weights)
    assert not any(tensor[:, 0].any() for tensor in (actual.tokens, actual.heads, actual.neurons))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_text_alone_is_explained_as_in_a_padded_batch(
    open_graph: Open, make_model: MakeModel, batch: Batch, precision: Precision
) -> None:
    model = make_model()
    weights = weigh(model, batch)
    session = open_graph(explain_graph(model, precision))
    together = explain(session, model, batch, weights)
    for text in range(4):
        part = only(batch, text)
        expected = {name: tensor[text : text + 1] for name, tensor in together._asdict().items()}
        expected["tokens"] = expected["tokens"][..., : part[0].shape[1]]
        close(explain(session, model, part, weights[text : text + 1])._asdict(), expected)


def attributed(session: ort.InferenceSession, batch: Batch) -> Attribution:
    names = ["logits", "token_scores", "head_gradients", "neuron_gradients"]
    outputs = session.run(names, {"input_ids": batch[0], "attention_mask": batch[1]})
    return Attribution(*map(torch.from_numpy, outputs))


def contrast(model: SparseCBM, batch: Batch) -> np.ndarray:
    """Weights of each concept's most probable value rather than its others."""
    logits = answer(model, batch).logits.numpy()
    chosen = np.eye(logits.shape[-1])[logits.argmax(-1)]
    others = np.isfinite(logits) & (chosen == 0)
    weights: np.ndarray = (chosen - others / others.sum(-1, keepdims=True)).astype(np.float32)
    return weights


def kept(model: SparseCBM, attribution: Attribution) -> Attribution:
    """Without the gradients by pruned units."""
    heads, neurons = attribution.heads * model.masks.heads, attribution.neurons * model.masks.neurons
    return attribution._replace(heads=heads, neurons=neurons)


@FAMILIES
@pytest.mark.parametrize("trunk", [0, 1, 2])
def test_attribute_gives_what_autograd_gives_for_the_most_probable_values(
    open_graph: Open, make_model: MakeModel, batch: Batch, family: str, trunk: int
) -> None:
    model = make_model(family=family, trunk=trunk)
    actual = attributed(open_graph(attribute_graph(model, "fp32")), batch)
    close(actual._asdict(), kept(model, reference(model, batch, contrast(model, batch)))._asdict())


@ACTIVATIONS
def test_attribute_gives_what_autograd_gives_for_another_activation(
    open_graph: Open, make_model: MakeModel, batch: Batch, activation: str
) -> None:
    model = make_model(activation=activation, values=(2, 3))
    actual = attributed(open_graph(attribute_graph(model, "fp32")), batch)
    close(actual._asdict(), kept(model, reference(model, batch, contrast(model, batch)))._asdict())


def test_attribute_in_int8_is_near_autograd(open_graph: Open, make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    actual = attributed(open_graph(attribute_graph(model, "int8", int8(model, batch))), batch)
    expected = kept(model, reference(model, batch, contrast(model, batch)))
    for name, tensor in expected._asdict().items():
        assert np.corrcoef(getattr(actual, name).ravel(), tensor.ravel())[0, 1] > 0.98, name


def test_attribute_answers_to_the_bit_as_predict(open_graph: Open, make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    product = int8(model, batch)
    [expected, _] = predict(open_graph(predict_graph(model, "int8", product)), batch)
    actual = attributed(open_graph(attribute_graph(model, "int8", int8(model, batch))), batch)
    assert np.array_equal(actual.logits.numpy(), expected)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_text_alone_is_attributed_as_in_a_padded_batch(
    open_graph: Open, make_model: MakeModel, batch: Batch, precision: Precision
) -> None:
    model = make_model()
    session = open_graph(attribute_graph(model, precision, int8(model, batch) if precision == "int8" else None))
    together = attributed(session, batch)
    for text in range(4):
        part = only(batch, text)
        expected = {name: tensor[text : text + 1] for name, tensor in together._asdict().items()}
        expected["tokens"] = expected["tokens"][..., : part[0].shape[1]]
        close(attributed(session, part)._asdict(), expected)


def round_weights(model: SparseCBM) -> None:
    """Replaces the weights that the export stores as int8 by what they stand for."""

    def rounded(weight: Tensor) -> Tensor:
        values, scale = quantise(weight.numpy())
        return torch.from_numpy(values.astype(np.float32) * scale)

    with torch.no_grad():
        token, hidden = model.backbone.embeddings.token, model.backbone.config.hidden
        token.copy_(rounded(token.T).T)
        for layer in model.backbone.layers:
            layer.qkv.copy_(rounded(layer.qkv.reshape(-1, hidden).T).T.reshape(layer.qkv.shape))
            layer.out.copy_(rounded(layer.out.reshape(-1, hidden)).reshape(layer.out.shape))
            layer.up.copy_(rounded(layer.up.T).T)
            layer.down.copy_(rounded(layer.down))


@pytest.mark.parametrize("family", ["bert", "mpnet", "gpt2", "opt"])
def test_explain_in_int8_gives_what_autograd_gives_for_the_rounded_weights(
    open_graph: Open, make_model: MakeModel, batch: Batch, family: str
) -> None:
    model = make_model(family=family)
    session, weights = open_graph(explain_graph(model, "int8")), weigh(model, batch)
    round_weights(model)
    close(explain(session, model, batch, weights)._asdict(), reference(model, batch, weights)._asdict())
