"""Targets between majority and votes, class weights, and losses that are means over texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparsecbm.data import SILENT
from sparsecbm.losses import ClassWeights, Targets, concept_loss, cross_entropy, label_loss
from sparsecbm.model import Bottleneck, SparseCBM


@pytest.fixture
def targets(texts: Any) -> Targets:
    return Targets.of(texts.data, 0.5)


def test_targets_lie_between_the_majority_and_the_votes(texts: Any) -> None:
    texts.data.label_votes[0] = [0.5, 0.25, 0.25]
    texts.data.labels[0] = 0
    assert Targets.of(texts.data, 0.5).label_shares[0].tolist() == [0.75, 0.125, 0.125]
    assert Targets.of(texts.data, 0).label_shares[0].tolist() == [1, 0, 0]


@pytest.fixture
def silent(texts: Any) -> Targets:
    """Targets of texts of which the first says nothing of its label, and the second nothing of its first concept."""
    texts.data.labels[0], texts.data.label_votes[0] = SILENT, 0
    texts.data.concepts[1, 0], texts.data.concept_votes[1, 0] = SILENT, 0
    return Targets.of(texts.data, 0.5)


def test_nothing_said_is_no_target(silent: Targets) -> None:
    assert silent.label_shares[0].tolist() == [0, 0, 0] and silent.concept_shares[1, 0].tolist() == [0, 0, 0]
    assert silent.label_shares[1:].sum(-1).tolist() == [1] * (len(silent.label_shares) - 1)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_label_of_which_nothing_is_said_teaches_nothing(model: SparseCBM, silent: Targets, rate: float) -> None:
    targets, weights = silent.rows(np.array([0])), ClassWeights.even(silent)
    logits, vectors = torch.randn(1, 2, 3), torch.randn(1, 2, 3, 5, requires_grad=True)
    logits[:, 1, 2] = -torch.inf
    loss = label_loss(model, Bottleneck(logits, vectors), targets, weights, rate)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None and not vectors.grad.any()


def test_concept_of_which_nothing_is_said_teaches_nothing(silent: Targets) -> None:
    targets, weights = silent.rows(np.array([1])), ClassWeights.even(silent)
    logits = torch.randn(1, 2, 3, requires_grad=True)
    concept_loss(Bottleneck(logits, torch.zeros(1, 2, 3, 5)), targets, weights).backward()
    assert logits.grad is not None
    assert not logits.grad[0, 0].any() and logits.grad[0, 1].any()


def test_nothing_said_takes_no_weight_from_other_texts(silent: Targets) -> None:
    logits = torch.randn(len(silent.label_shares), 3)
    said = F.cross_entropy(logits[1:], silent.label_shares[1:], reduction="sum")
    loss = cross_entropy(logits, silent.label_shares, torch.ones(3))
    torch.testing.assert_close(loss * len(logits), said)


def test_balanced_weights_count_what_is_said_alone(silent: Targets) -> None:
    weights = ClassWeights.balanced(silent)
    said = weights.label * silent.label_shares
    torch.testing.assert_close(said.sum(), torch.tensor(float(len(silent.label_shares) - 1)))


def test_rows_are_those_of_the_texts_asked_for(texts: Any, targets: Targets) -> None:
    chosen = targets.rows(np.array([5, 2]))
    assert chosen.concepts.tolist() == texts.data.concepts[[5, 2]].tolist()
    assert torch.equal(chosen.label_shares, targets.label_shares[[5, 2]])


def test_balanced_weights_make_all_values_weigh_the_same(targets: Targets) -> None:
    weights = ClassWeights.balanced(targets)
    weighed = (weights.concepts * targets.concept_shares).sum(0)
    torch.testing.assert_close(weighed, torch.tensor([[16.0, 16, 16], [24, 24, 0]]))
    torch.testing.assert_close((weights.label * targets.label_shares).sum(0), torch.full((3,), 16.0))


def test_a_class_that_never_occurs_leaves_the_others_their_weight(targets: Targets) -> None:
    shares = torch.eye(3)[torch.tensor([0, 0, 0, 2])]
    weights = ClassWeights.balanced(targets._replace(label_shares=shares))
    torch.testing.assert_close(weights.label, torch.tensor([4 / 6, 0, 2]))


def test_cross_entropy_is_torchs_with_weights(targets: Targets) -> None:
    logits, weights = torch.randn(48, 3), torch.tensor([0.5, 1.0, 3.0])
    expected = F.cross_entropy(logits, targets.label_shares, weights)
    torch.testing.assert_close(cross_entropy(logits, targets.label_shares, weights), expected)


def test_a_value_that_a_concept_lacks_costs_nothing_and_has_no_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[1.0, 0, 0]]), torch.ones(3))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert logits.grad is not None and logits.grad.tolist() == [[-0.5, 0.5, 0]]


@pytest.mark.parametrize("weigh", [ClassWeights.even, ClassWeights.balanced])
def test_a_loss_is_the_mean_of_its_parts(model: SparseCBM, texts: Any, targets: Targets, weigh: Any) -> None:
    weights = weigh(targets)

    def loss(rows: list[int]) -> torch.Tensor:
        ids = torch.tensor([[1, 10 + a, 15 + b] for a, b in texts.data.concepts[rows]])
        output, chosen = model(ids, torch.ones_like(ids)), targets.rows(np.array(rows))
        return concept_loss(output, chosen, weights) + label_loss(model, output, chosen, weights, 0.0)

    torch.testing.assert_close(loss([0, 1, 2]), (loss([0]) + 2 * loss([1, 2])) / 3)


def test_with_every_concept_corrected_the_label_hears_nothing_of_the_logits(model: SparseCBM, targets: Targets) -> None:
    output = model(torch.full((2, 3), 5), torch.ones(2, 3, dtype=torch.int64))
    chosen, weights = targets.rows(np.array([0, 1])), ClassWeights.even(targets)
    other = output._replace(logits=output.logits.flip(0) * 3 + model.absent_values)
    assert label_loss(model, output, chosen, weights, 1.0) == label_loss(model, other, chosen, weights, 1.0)
