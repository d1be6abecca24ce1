"""The model: a subnetwork per concept, the concept layers and the label head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparsecbm.backbone import Gates
from sparsecbm.errors import TrainingError
from sparsecbm.model import SparseCBM, corrected, mean_over_tokens

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
        for parameter in (model.logit_weight, model.logit_bias, model.vector_weight, model.vector_bias):
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
    found = pruned(*batch, gates)
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
