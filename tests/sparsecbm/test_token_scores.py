"""Token scores against the attribution that is exported, and against what they must add up to."""

from __future__ import annotations

import pytest
import torch

from sparsecbm.model import SparseCBM
from sparsecbm.token_scores import (
    gradient_times_input,
    integrated_gradients,
    leave_one_out,
    random_scores,
    weighted_logits,
)

IDS = torch.tensor([[3, 14, 7, 3, 9, 0, 0], [5, 11, 2, 28, 17, 25, 4]])
MASK = (IDS != 0).long()


@pytest.fixture
def weights() -> torch.Tensor:
    found = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    found[:, 1, 2] = 0
    return found


@torch.no_grad()
def test_gradient_times_input_is_the_derivative_by_an_embeddings_scale(
    pruned: SparseCBM, weights: torch.Tensor
) -> None:
    model, step = pruned.double(), 1e-5
    table = model.backbone.embeddings.token
    with torch.enable_grad():
        scores = gradient_times_input(model, IDS, MASK, weights)
    for text, position in ((0, 1), (1, 0), (1, 6)):  # tokens that occur once
        row = int(IDS[text, position])
        original, sums = table[row].clone(), []
        for scale in (1 + step, 1 - step):
            table[row] = original * scale
            sums.append(weighted_logits(model(IDS, MASK).logits, weights)[text])
        table[row] = original
        torch.testing.assert_close(scores[text, :, position], (sums[0] - sums[1]) / (2 * step), rtol=1e-4, atol=1e-6)


def test_two_occurrences_of_a_token_have_scores_of_their_own(pruned: SparseCBM, weights: torch.Tensor) -> None:
    scores = gradient_times_input(pruned.double(), IDS, MASK, weights)
    assert scores[0, 0, 0] != scores[0, 0, 3]


def test_integrated_gradients_add_up_to_the_change_from_the_baseline(pruned: SparseCBM, weights: torch.Tensor) -> None:
    model = pruned.double()
    scores = integrated_gradients(model, IDS, MASK, weights, steps=400)
    with torch.no_grad():
        whole = weighted_logits(model(IDS, MASK).logits, weights)
        model.backbone.embeddings.token.zero_()
        nothing = weighted_logits(model(IDS, MASK).logits, weights)
    torch.testing.assert_close(scores.sum(-1), whole - nothing, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_leaving_a_token_out_is_hiding_it(pruned: SparseCBM, weights: torch.Tensor) -> None:
    model = pruned.double()
    scores = leave_one_out(model, IDS, MASK, weights)
    hidden = MASK.clone()
    hidden[1, 3] = 0
    change = weighted_logits(model(IDS, MASK).logits, weights) - weighted_logits(model(IDS, hidden).logits, weights)
    torch.testing.assert_close(scores[1, :, 3], change[1])


@torch.no_grad()
def test_a_hidden_token_says_nothing(pruned: SparseCBM) -> None:
    hidden = MASK.clone()
    hidden[1, 3] = 0
    other = IDS.clone()
    other[1, 3] = 1
    torch.testing.assert_close(pruned(IDS, hidden).logits, pruned(other, hidden).logits)


def test_padding_has_no_score(pruned: SparseCBM, weights: torch.Tensor) -> None:
    for method in (gradient_times_input, integrated_gradients, leave_one_out):
        assert method(pruned, IDS, MASK, weights.float())[0, :, 5:].abs().max() == 0


def test_random_scores_follow_the_seed(pruned: SparseCBM, weights: torch.Tensor) -> None:
    torch.manual_seed(1)
    first = random_scores(pruned, IDS, MASK, weights)
    torch.manual_seed(1)
    assert torch.equal(random_scores(pruned, IDS, MASK, weights), first)
    assert first.shape == (2, 2, 7)
