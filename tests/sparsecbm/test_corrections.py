"""Gains as the server reckons them, and labels after one correction after another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from serving.bottleneck import LabelHead
from sparsecbm.bundle import Manifest
from sparsecbm.corrections import correct_one_by_one, expected_gains
from sparsecbm.evaluation import Outputs, run
from sparsecbm.model import SparseCBM, corrected


@pytest.fixture
def output(model: SparseCBM, texts: Any) -> Outputs:
    return run(model, texts.ids)


@pytest.fixture
def truth(texts: Any) -> torch.Tensor:
    return torch.from_numpy(texts.data.concepts)


@pytest.mark.parametrize("set_to", [-1, 1])
def test_gains_are_those_that_the_server_ranks_ask_next_by(model: SparseCBM, output: Outputs, set_to: int) -> None:
    head = SimpleNamespace(weight=model.head_weight.tolist(), bias=model.head_bias.tolist())
    corrections = np.full((48, 2), -1)
    corrections[:, 0] = set_to
    served = LabelHead(cast(Manifest, SimpleNamespace(head=head)))
    wanted = served.read(output.logits.numpy(), output.vectors.numpy(), corrections).gains
    mixture = corrected(output.logits.softmax(-1), torch.from_numpy(corrections))
    found = expected_gains(model, mixture, output.vectors)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_a_concept_that_is_set_promises_nothing(model: SparseCBM, output: Outputs, truth: torch.Tensor) -> None:
    gains = expected_gains(model, corrected(output.logits.softmax(-1), truth), output.vectors)
    assert float(gains.abs().max()) < 1e-6


def test_the_first_step_is_the_model_and_the_last_one_all_corrected(
    model: SparseCBM, output: Outputs, truth: torch.Tensor
) -> None:
    steps = correct_one_by_one(model, output, truth, torch.ones_like(truth, dtype=torch.bool))
    probabilities = output.logits.softmax(-1)
    assert torch.equal(steps[0], model.label_logits(probabilities, output.vectors))
    every = model.label_logits(corrected(probabilities, truth), output.vectors)
    assert torch.equal(steps[2], every)


def test_concepts_are_set_by_priority(model: SparseCBM, output: Outputs, truth: torch.Tensor) -> None:
    priority = torch.tensor([0.0, 1.0]).expand(48, 2)
    steps = correct_one_by_one(model, output, truth, torch.ones_like(truth, dtype=torch.bool), priority)
    second = torch.stack((torch.full((48,), -1), truth[:, 1]), 1)
    wanted = model.label_logits(corrected(output.logits.softmax(-1), second), output.vectors)
    assert torch.equal(steps[1], wanted)


def test_only_eligible_concepts_are_set(model: SparseCBM, output: Outputs, truth: torch.Tensor) -> None:
    steps = correct_one_by_one(model, output, truth, torch.zeros_like(truth, dtype=torch.bool))
    assert torch.equal(steps[0], steps[1]) and torch.equal(steps[0], steps[2])


def test_by_default_the_highest_gain_comes_first(model: SparseCBM, output: Outputs, truth: torch.Tensor) -> None:
    every = torch.ones_like(truth, dtype=torch.bool)
    gains = expected_gains(model, output.logits.softmax(-1), output.vectors)
    by_gain = correct_one_by_one(model, output, truth, every, gains)
    assert torch.equal(correct_one_by_one(model, output, truth, every)[:2], by_gain[:2])
