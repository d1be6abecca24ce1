"""The reach of corrections: what it changes, what it leaves alone, and how it is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparsecbm.evaluation import run
from sparsecbm.model import SparseCBM, corrected
from sparsecbm.reach import REACHES, fit_reach

Batch = tuple[torch.Tensor, torch.Tensor]


def loss(model: SparseCBM, texts: Any) -> float:
    """The label's log loss once every concept has its true value."""
    output = run(model, texts.ids)
    mixture = corrected(output.logits.softmax(-1), torch.from_numpy(texts.data.concepts))
    logits = model.label_logits(mixture, output.vectors)
    return F.cross_entropy(logits, torch.from_numpy(texts.data.labels)).item()


@torch.no_grad()
def test_it_changes_nothing_without_corrections(model: SparseCBM, batch: Batch) -> None:
    answers = []
    for model.reach in (1.0, 0.4):
        output = model(*batch)
        answers.append(model.label_logits(output.logits.softmax(-1), output.vectors))
    torch.testing.assert_close(answers[1], answers[0])


@torch.no_grad()
def test_a_correction_moves_the_label_by_its_share(model: SparseCBM, batch: Batch) -> None:
    values = torch.tensor([[2, -1], [0, 1], [-1, -1]])
    moved = []
    for model.reach in (1.0, 0.4):
        output = model(*batch)
        probabilities = output.logits.softmax(-1)
        after = model.label_logits(corrected(probabilities, values), output.vectors)
        moved.append(after - model.label_logits(probabilities, output.vectors))
    torch.testing.assert_close(moved[1], 0.4 * moved[0])


def test_the_fitted_one_has_the_least_loss(model: SparseCBM, texts: Any) -> None:
    fitted = fit_reach(model, texts.data, texts.ids)
    assert model.reach == fitted
    losses = []
    for model.reach in REACHES:
        losses.append(loss(model, texts))
    assert fitted == REACHES[int(np.argmin(losses))]


@pytest.mark.parametrize(("size", "reach"), [(0.0, REACHES[0]), (1.0, 1.0)], ids=["misleading", "true"])
def test_values_that_mislead_reach_little_and_values_that_tell_reach_all(
    model: SparseCBM, texts: Any, size: float, reach: float
) -> None:
    with torch.no_grad():
        for weight in (model.strength_weight, model.value_vectors, model.head_weight, model.head_bias):
            weight.zero_()
        sign = 1.0 if size else -1.0
        for value in range(3):  # food alone tells or misleads: its value v speaks for or against label v
            model.value_vectors[0, value, value] = 3.0
            model.head_weight[value, 0, value] = sign
    data = texts.data
    told = np.minimum(data.concepts[:, 0], 2)
    data.labels[:] = told
    assert fit_reach(model, data, texts.ids) == reach
