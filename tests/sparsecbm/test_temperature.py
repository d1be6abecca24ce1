"""Temperatures that are folded into a model's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparsecbm.calibration import fit_temperature
from sparsecbm.evaluation import run
from sparsecbm.model import SparseCBM
from sparsecbm.temperature import fit_temperatures


@torch.no_grad()
def label_logits(model: SparseCBM, texts: Any) -> np.ndarray:
    output = run(model, texts.ids)
    found: np.ndarray = model.label_logits(output.logits.softmax(-1), output.vectors).numpy()
    return found


def test_every_concepts_logits_are_divided_by_its_own(model: SparseCBM, texts: Any) -> None:
    before = run(model, texts.ids).logits
    found = fit_temperatures(model, texts.data, texts.ids)
    after = run(model, texts.ids).logits
    assert list(found) == ["food", "noise", "label"]
    for at, name in enumerate(("food", "noise")):
        torch.testing.assert_close(after[:, at], before[:, at] / found[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(after.argmax(-1), before.argmax(-1))


def test_the_labels_is_the_best_for_the_concepts_as_they_are_then(model: SparseCBM, texts: Any) -> None:
    said = label_logits(model, texts).argmax(1)
    texts.data.labels[:] = (said + (np.arange(48) % 4 == 0)) % 3  # it is right three times out of four
    fit_temperatures(model, texts.data, texts.ids)
    assert fit_temperature(label_logits(model, texts), texts.data.labels) == pytest.approx(1, abs=1e-3)


def test_a_plain_bottlenecks_concepts_are_left_alone(make_model: Callable[..., SparseCBM], texts: Any) -> None:
    model = make_model(bottleneck="logits")
    before = run(model, texts.ids).logits
    assert list(fit_temperatures(model, texts.data, texts.ids, concepts=False)) == ["label"]
    assert torch.equal(run(model, texts.ids).logits, before)
