"""Token scores and gate gradients against finite differences of the model itself."""

from __future__ import annotations

import pytest
import torch

from sparsecbm.attribution import Attribution, attribute
from sparsecbm.backbone import Gates
from sparsecbm.model import SparseCBM

STEP = 1e-4
IDS = torch.tensor([[3, 14, 7, 21, 9, 0, 0], [5, 11, 2, 28, 17, 25, 4]])  # no token twice, so a row is a token's own
MASK = (IDS != 0).long()


@pytest.fixture
def value_weights() -> torch.Tensor:
    """[batch, concepts, values], 0 where a concept lacks the value."""
    weights = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(8))
    weights[:, 1, 2] = 0
    return weights


@pytest.fixture
def found(pruned: SparseCBM, value_weights: torch.Tensor) -> Attribution:
    return attribute(pruned.double(), IDS, MASK, value_weights)


def weighted(logits: torch.Tensor, value_weights: torch.Tensor) -> torch.Tensor:
    """[batch, concepts], the sums that are attributed."""
    return torch.where(value_weights != 0, logits * value_weights, 0.0).sum(-1)


def test_logits_are_the_models(found: Attribution, pruned: SparseCBM) -> None:
    with torch.no_grad():
        torch.testing.assert_close(found.logits, pruned(IDS, MASK).logits)


@torch.no_grad()
def test_token_scores_are_the_derivatives_by_the_embeddings_scale(
    found: Attribution, pruned: SparseCBM, value_weights: torch.Tensor
) -> None:
    table = pruned.backbone.embeddings.token
    for text, position in MASK.nonzero().tolist():
        row = int(IDS[text, position])
        original = table[row].clone()
        sums = []
        for scale in (1 + STEP, 1 - STEP):
            table[row] = original * scale
            sums.append(weighted(pruned(IDS, MASK).logits, value_weights)[text])
        table[row] = original
        difference = (sums[0] - sums[1]) / (2 * STEP)
        torch.testing.assert_close(found.tokens[text, :, position], difference, rtol=1e-4, atol=1e-6)


def test_padding_has_no_score(found: Attribution) -> None:
    assert found.tokens[0, :, 5:].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@torch.no_grad()
def test_gate_gradients_are_the_derivatives_by_the_gates_of_kept_and_pruned_units(
    found: Attribution, pruned: SparseCBM, value_weights: torch.Tensor, kind: str
) -> None:
    masks = pruned.masks.clone()
    pruned.masks.heads[:] = True
    pruned.masks.neurons[:] = True

    def sums(concept: int, layer: int, unit: int, step: float) -> torch.Tensor:
        heads, neurons = masks.heads.double(), masks.neurons.double()
        gates = [[Gates(heads[k, at].repeat(2, 1), neurons[k, at].repeat(2, 1)) for at in range(2)] for k in range(2)]
        getattr(gates[concept][layer], kind)[:, unit] += step
        return weighted(pruned(IDS, MASK, gates).logits, value_weights)[:, concept]

    gradients = getattr(found, kind)
    assert gradients.shape == (2, *getattr(masks, kind).shape)
    for concept, layer, unit in torch.ones_like(getattr(masks, kind)).nonzero().tolist():
        difference = (sums(concept, layer, unit, STEP) - sums(concept, layer, unit, -STEP)) / (2 * STEP)
        torch.testing.assert_close(gradients[:, concept, layer, unit].double(), difference, rtol=1e-4, atol=1e-6)


def test_value_weights_of_zero_give_no_score(pruned: SparseCBM) -> None:
    found = attribute(pruned, IDS, MASK, torch.zeros(2, 2, 3))
    for scores in (found.tokens, found.heads, found.neurons):
        assert scores.count_nonzero() == 0


def test_a_concepts_scores_do_not_depend_on_the_other_concepts_weights(
    pruned: SparseCBM, value_weights: torch.Tensor
) -> None:
    other = value_weights.clone()
    other[:, 1] = 0
    alone, both = attribute(pruned, IDS, MASK, other), attribute(pruned, IDS, MASK, value_weights)
    for first, second in zip(alone[1:], both[1:], strict=True):
        torch.testing.assert_close(first[:, 0], second[:, 0])


def test_the_models_own_gradients_stay_empty(pruned: SparseCBM, value_weights: torch.Tensor) -> None:
    attribute(pruned, IDS, MASK, value_weights)
    assert all(parameter.grad is None for parameter in pruned.parameters())
