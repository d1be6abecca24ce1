"""The model: a subnetwork per concept, the concept layers and the label head."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sparsecbm.backbone import Gates
from sparsecbm.errors import TrainingError
from sparsecbm.masks import WeightMasks
from sparsecbm.model import Probe, SparseCBM, corrected, matrices, mean_over_tokens

Batch = tuple[torch.Tensor, torch.Tensor]
MakeModel = Callable[..., SparseCBM]


@torch.no_grad()
def test_shapes_are_by_concept_value_and_width(model: SparseCBM, batch: Batch) -> None:
    output = model(*batch)
    assert output.logits.shape == (3, 2, 3)
    assert output.vectors.shape == (3, 2, 3, 5)
    assert model.label_logits(output.logits.softmax(-1), output.vectors).shape == (3, 3)


@torch.no_grad()
def test_a_value_that_a_concept_lacks_has_no_probability(model: SparseCBM, batch: Batch) -> None:
    probabilities = model(*batch).logits.softmax(-1)
    assert probabilities[:, 1, 2].tolist() == [0, 0, 0]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2))


@pytest.fixture
def twins(model: SparseCBM) -> SparseCBM:
    """A model whose two concepts have the same concept-layer weights."""
    with torch.no_grad():
        for parameter in (model.logit_weight, model.logit_bias, model.strength_weight, model.value_vectors):
            parameter[1] = parameter[0]
    return model


@torch.no_grad()
def test_concepts_with_the_same_weights_and_masks_agree(twins: SparseCBM, batch: Batch) -> None:
    vectors = twins(*batch).vectors
    torch.testing.assert_close(vectors[:, 0], vectors[:, 1])


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_concepts_with_the_same_weights_and_other_masks_differ(
    twins: SparseCBM, batch: Batch, kind: str, layer: int
) -> None:
    getattr(twins.masks, kind)[1, layer, 2] = False
    output = twins(*batch)
    assert ((output.vectors[:, 0] - output.vectors[:, 1]).abs().amax((1, 2)) > 1e-4).all()
    assert ((output.logits[:, 0, :2] - output.logits[:, 1, :2]).abs().amax(1) > 1e-5).all()


@pytest.mark.parametrize("concept", [0, 1])
@torch.no_grad()
def test_a_mask_changes_its_own_concept_only(pruned: SparseCBM, batch: Batch, concept: int) -> None:
    before = pruned(*batch)
    pruned.masks.neurons[concept, 0] = ~pruned.masks.neurons[concept, 0]
    after = pruned(*batch)
    for was, now in zip(before, after, strict=True):
        assert (was[:, concept] != now[:, concept]).flatten(1).any(1).all()
        assert torch.equal(was[:, 1 - concept], now[:, 1 - concept])


@torch.no_grad()
def test_masked_units_equal_gates_of_zero(pruned: SparseCBM, batch: Batch) -> None:
    wanted = pruned(*batch)
    masks = pruned.masks.clone()
    pruned.masks.heads[:] = True
    pruned.masks.neurons[:] = True
    heads, neurons = masks.heads.float(), masks.neurons.float()
    gates = [[Gates(heads[k, at].expand(3, -1), neurons[k, at].expand(3, -1)) for at in range(2)] for k in range(2)]
    found = pruned(*batch, Probe(gates))
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.vectors, wanted.vectors)


@torch.no_grad()
def test_a_texts_output_depends_on_no_other_text_and_no_padding(pruned: SparseCBM, batch: Batch) -> None:
    ids, mask = batch
    together = pruned(ids, mask)
    for text, length in enumerate(mask.sum(1).tolist()):
        alone = pruned(ids[text : text + 1, :length], mask[text : text + 1, :length])
        torch.testing.assert_close(alone.logits[0], together.logits[text], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.vectors[0], together.vectors[text], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_contributions_and_bias_sum_to_the_label_logit(pruned: SparseCBM, batch: Batch) -> None:
    output = pruned(*batch)
    probabilities, vectors = output.logits.softmax(-1).double(), output.vectors.double()
    pruned.double()
    activations = (probabilities[..., None] * vectors).sum(2)  # [batch, concepts, width]
    contributions = (activations[:, None] * pruned.head_weight).sum(-1)  # [batch, labels, concepts]
    found = pruned.label_logits(probabilities, vectors)
    torch.testing.assert_close(contributions.sum(-1) + pruned.head_bias, found, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_a_correction_moves_the_label_logits_by_its_own_contribution_only(pruned: SparseCBM, batch: Batch) -> None:
    output = pruned(*batch)
    probabilities = output.logits.softmax(-1)
    values = torch.tensor([[2, -1]]).expand(3, -1)
    moved = pruned.label_logits(corrected(probabilities, values), output.vectors)
    own = (output.vectors[:, 0, 2] - torch.einsum("bv,bvw->bw", probabilities[:, 0], output.vectors[:, 0])) @ (
        pruned.head_weight[:, 0].T
    )
    torch.testing.assert_close(moved - pruned.label_logits(probabilities, output.vectors), own, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_in_a_plain_bottleneck_the_label_reads_log_probabilities(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(bottleneck="logits")
    output = model(*batch)
    log_chances = output.logits.log_softmax(-1)
    log_chances = torch.where(log_chances.isfinite(), log_chances, math.log(1e-3))  # values that a concept lacks
    wanted = torch.einsum("bkv,ykv->by", log_chances, model.head_weight) + model.head_bias
    torch.testing.assert_close(model.label_logits(output.logits.softmax(-1), output.vectors), wanted)


@torch.no_grad()
def test_in_a_plain_bottleneck_a_correction_replaces_what_was_read(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(bottleneck="logits")
    output = model(*batch)
    mixture = corrected(output.logits.softmax(-1), torch.tensor([[1, 0]]).expand(3, -1))
    sure = torch.full((2, 3), math.log(1e-3))
    sure[0, 1] = sure[1, 0] = 0
    wanted = torch.einsum("kv,ykv->y", sure, model.head_weight) + model.head_bias
    torch.testing.assert_close(model.label_logits(mixture, output.vectors), wanted.expand(3, -1))


def test_corrected_is_one_hot_where_a_value_is_given() -> None:
    probabilities = torch.tensor([[[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]], [[0.1, 0.1, 0.8], [0.5, 0.5, 0.0]]])
    found = corrected(probabilities, torch.tensor([[0, -1], [-1, 1]]))
    assert (
        found.tolist()
        == torch.stack(
            (
                torch.stack((torch.tensor([1.0, 0, 0]), probabilities[0, 1])),
                torch.stack((probabilities[1, 0], torch.tensor([0.0, 1, 0]))),
            )
        ).tolist()
    )


def test_corrected_leaves_its_argument_alone() -> None:
    probabilities = torch.tensor([[[0.4, 0.6]]])
    corrected(probabilities, torch.tensor([[0]]))
    assert probabilities.tolist() == torch.tensor([[[0.4, 0.6]]]).tolist()


def test_the_mean_over_tokens_leaves_padding_out() -> None:
    hidden = torch.tensor([[[1.0, 2], [3, 4], [100, 100]]])
    assert mean_over_tokens(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2, 3]]


def test_branch_weights_hold_the_kept_units(pruned: SparseCBM) -> None:
    for layer, weights in enumerate(pruned.branch_weights(1)):
        heads, neurons = pruned.masks.kept(1, layer)
        assert torch.equal(weights.out, pruned.backbone.layers[1 + layer].out[heads])
        assert torch.equal(weights.down, pruned.backbone.layers[1 + layer].down[neurons])


@torch.no_grad()
def test_a_model_without_a_trunk_runs(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(trunk=0)
    assert model.masks.heads.shape == (2, 3, 4)
    assert model(*batch).logits.shape == (3, 2, 3)


@pytest.mark.parametrize("trunk", [-1, 3])
def test_a_trunk_that_leaves_no_branch_says_what_is_right(make_model: MakeModel, trunk: int) -> None:
    with pytest.raises(TrainingError, match=rf"^trunk must be from 0 to 2 for this backbone, got {trunk}\.$"):
        make_model(trunk=trunk)


def weight_masks(model: SparseCBM) -> WeightMasks:
    assert model.weight_masks is not None
    return model.weight_masks


@torch.no_grad()
def test_dense_weight_masks_change_nothing(make_model: MakeModel, batch: Batch) -> None:
    units, weights = make_model()(*batch), make_model(granularity="weights")(*batch)
    assert torch.equal(units.logits, weights.logits) and torch.equal(units.vectors, weights.vectors)


@pytest.mark.parametrize("matrix", ["qkv", "out", "up", "down"])
@pytest.mark.parametrize("concept", [0, 1])
@torch.no_grad()
def test_a_weight_mask_changes_its_own_concept_only(
    weight_pruned: SparseCBM, batch: Batch, concept: int, matrix: str
) -> None:
    before = weight_pruned(*batch)
    mask = weight_masks(weight_pruned).matrices[matrix]
    mask[concept, 1] = ~mask[concept, 1]
    after = weight_pruned(*batch)
    for was, now in zip(before, after, strict=True):
        assert (was[:, concept] != now[:, concept]).flatten(1).any(1).all()
        assert torch.equal(was[:, 1 - concept], now[:, 1 - concept])


@torch.no_grad()
def test_concepts_with_the_same_weights_and_other_weight_masks_differ(weight_pruned: SparseCBM, batch: Batch) -> None:
    for parameter in (weight_pruned.logit_weight, weight_pruned.strength_weight, weight_pruned.value_vectors):
        parameter[1] = parameter[0]
    vectors = weight_pruned(*batch).vectors
    assert ((vectors[:, 0] - vectors[:, 1]).abs().amax((1, 2)) > 1e-4).all()


@torch.no_grad()
def test_a_concept_answers_as_a_model_whose_weights_are_zero_where_its_mask_is(
    make_model: MakeModel, weight_pruned: SparseCBM, batch: Batch
) -> None:
    found = weight_pruned(*batch)
    for concept in range(2):
        zeroed = make_model()
        for layer in range(2):
            for name, mask in weight_masks(weight_pruned).of(concept, layer).items():
                getattr(zeroed.backbone.layers[1 + layer], name)[~mask] = 0
        wanted = zeroed(*batch)
        torch.testing.assert_close(found.logits[:, concept], wanted.logits[:, concept])
        torch.testing.assert_close(found.vectors[:, concept], wanted.vectors[:, concept])


def test_a_pruned_weight_gets_no_gradient_from_its_concept(weight_pruned: SparseCBM, batch: Batch) -> None:
    weight_pruned(*batch).vectors[:, 1].sum().backward()
    for layer in range(2):
        parameters = matrices(weight_pruned.backbone.layers[1 + layer].weights())
        for name, mask in weight_masks(weight_pruned).of(1, layer).items():
            gradient = parameters[name].grad
            assert gradient is not None and not gradient[~mask].any() and gradient[mask].any()


def test_a_probe_sees_the_gradient_by_each_concepts_own_weights(weight_pruned: SparseCBM, batch: Batch) -> None:
    """Together they are the shared weight's gradient, once the masks have been applied."""
    seen: dict[tuple[int, int, str], torch.Tensor] = {}

    def see(concept: int, layer: int, name: str, gradient: torch.Tensor) -> None:
        seen[concept, layer, name] = gradient

    weight_pruned(*batch, Probe(weights=see)).vectors.square().sum().backward()
    assert len(seen) == 2 * 2 * 4
    for layer in range(2):
        for name, parameter in matrices(weight_pruned.backbone.layers[1 + layer].weights()).items():
            masks = [weight_masks(weight_pruned).of(concept, layer)[name] for concept in range(2)]
            wanted = sum(seen[concept, layer, name] * masks[concept] for concept in range(2))
            assert parameter.grad is not None and isinstance(wanted, torch.Tensor)
            torch.testing.assert_close(parameter.grad, wanted)


def test_a_probe_sees_the_gradients_of_a_frozen_backbone_too(weight_pruned: SparseCBM, batch: Batch) -> None:
    weight_pruned.backbone.requires_grad_(False)
    seen: list[str] = []
    weight_pruned(*batch, Probe(weights=lambda *what: seen.append(what[2]))).vectors.sum().backward()
    assert sorted(seen) == sorted(["qkv", "out", "up", "down"] * 4)


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@torch.no_grad()
def test_a_trunk_mask_takes_effect_in_every_concept(model: SparseCBM, batch: Batch, kind: str) -> None:
    before = model(*batch).vectors
    getattr(model.trunk_masks, kind)[0, 0, 2] = False
    assert (before != model(*batch).vectors).flatten(2).any(2).all()


@torch.no_grad()
def test_masked_trunk_units_equal_gates_of_zero(model: SparseCBM, batch: Batch) -> None:
    heads, neurons = torch.ones(3, 4), torch.ones(3, 12)
    heads[:, 1], neurons[:, 5:9] = 0, 0
    wanted = model(*batch, Probe(trunk=[Gates(heads, neurons)]))
    model.trunk_masks.heads[0, 0, 1] = False
    model.trunk_masks.neurons[0, 0, 5:9] = False
    found = model(*batch)
    torch.testing.assert_close(found.vectors, wanted.vectors)


@pytest.mark.parametrize("granularity", ["units", "weights"])
def test_masks_come_back_from_their_tensors(make_model: MakeModel, granularity: str) -> None:
    generator = torch.Generator().manual_seed(3)
    model, other = make_model(granularity=granularity), make_model(seed=1, granularity=granularity)
    masks = [model.masks.heads, model.masks.neurons, model.trunk_masks.neurons]
    masks += list(weight_masks(model).matrices.values()) if granularity == "weights" else []
    for mask in masks:
        mask.copy_(torch.rand(mask.shape, generator=generator) < 0.5)
    tensors = model.mask_tensors()
    wanted = model.mask_shapes()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == wanted
    assert all(tensor.dtype == torch.uint8 for tensor in tensors.values())
    other.load_masks(tensors)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in other.mask_tensors().items())
    assert (other.density(), other.trunk_masks.density()) == (model.density(), model.trunk_masks.density())


def test_a_dense_trunks_masks_are_not_stored(model: SparseCBM) -> None:
    assert model.mask_tensors().keys() == {"heads", "neurons"}


def test_loading_masks_without_a_trunk_makes_it_dense(model: SparseCBM) -> None:
    tensors = model.mask_tensors()
    model.trunk_masks.neurons[:] = False
    model.load_masks(tensors)
    assert model.trunk_masks.density() == 1


def test_density_and_overlap_are_of_what_the_masks_are_over(weight_pruned: SparseCBM) -> None:
    assert weight_pruned.masks.density() == 1
    assert weight_pruned.density() == weight_masks(weight_pruned).density() < 0.6
    assert torch.equal(weight_pruned.overlap(), weight_masks(weight_pruned).overlap())
