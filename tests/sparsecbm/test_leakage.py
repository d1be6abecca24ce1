"""Probes on features that are known to tell all, or nothing, of the label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsecbm.evaluation import Outputs
from sparsecbm.leakage import fit_probe, halves, probe, representations
from sparsecbm.model import SparseCBM

LABELS = np.arange(400) % 4


def test_texts_of_a_group_are_in_the_same_half() -> None:
    groups = np.repeat(np.arange(20), 3)
    first = halves(groups)
    assert (first.reshape(20, 3).sum(1) % 3 == 0).all()
    assert first.sum() == 30


def test_features_that_are_the_label_tell_it() -> None:
    found = probe(np.eye(4)[LABELS], LABELS, 4, halves(np.arange(400)))
    assert found.right.all()
    assert found.bits.mean() < 0.3


def test_features_that_say_nothing_leave_the_labels_entropy() -> None:
    found = probe(np.ones((400, 2)), LABELS, 4, halves(np.arange(400)))
    assert found.bits.mean() == pytest.approx(2, abs=0.05)


def test_a_probe_is_judged_on_texts_that_it_was_not_fitted_on() -> None:
    noise = np.random.default_rng(0).normal(size=(60, 40))
    found = probe(noise, np.random.default_rng(1).integers(0, 2, 60), 2, halves(np.arange(60)))
    assert found.right.mean() < 0.75


def test_the_fit_is_where_the_loss_is_flat() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (50,), generator=generator)
    weight, bias = fit_probe(features, labels, 3)
    residual = (features @ weight + bias).softmax(-1) - torch.nn.functional.one_hot(labels, 3)
    assert (features.T @ residual + weight).abs().max() < 1e-2
    assert residual.sum(0).abs().max() < 1e-2


def test_representations_are_worked_out_by_hand(model: SparseCBM) -> None:
    logits = torch.log(torch.tensor([[[0.75, 0.25]]]))
    vectors = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    found = representations(model, Outputs(logits, vectors), np.array([[1]]))
    assert {kind: np.round(values[0, 0], 5).tolist() for kind, values in found.items()} == {
        "true value": [0, 1],
        "predicted value": [1, 0],
        "probabilities": [0.75, 0.25],
        "activation": [3, 2],
        "corrected activation": [0, 8],
    }
