"""Reliability by bin, and temperatures that are known."""

from __future__ import annotations

import numpy as np
import pytest

from sparsecbm.calibration import COLDEST, HOTTEST, fit_temperature, reliability, scale
from sparsecbm.errors import DataError
from sparsecbm.evaluation import calibration_error


def test_reliability_gives_each_bin_its_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.9, 0.1], [0.95, 0.05], [0.4, 0.6]])
    found = reliability(probabilities, np.array([0, 1, 1]), bins=5)
    assert [(row["texts"], row["accuracy"]) for row in found] == [(1, 1.0), (2, 0.5)]
    assert found[1]["confidence"] == pytest.approx(0.925)
    assert (found[1]["low"], found[1]["high"]) == (0.8, 1.0)


def test_the_bins_gaps_add_up_to_the_calibration_error() -> None:
    generator = np.random.default_rng(3)
    probabilities = generator.dirichlet(np.ones(3), 200)
    truth = generator.integers(0, 3, 200)
    gaps = [row["texts"] * abs(row["confidence"] - row["accuracy"]) for row in reliability(probabilities, truth)]
    assert sum(gaps) / 200 == pytest.approx(calibration_error(probabilities, truth))


def test_the_temperature_of_two_logits_is_worked_out_by_hand() -> None:
    # Three of four right at a margin of 2: the best probability is 3/4, whose margin is log 3.
    logits = np.tile([2.0, 0.0], (4, 1))
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(2 / np.log(3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_logits_were_multiplied_by_is_found_again(temperature: float) -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(20000, 4)) * 2
    truth = np.array([generator.choice(4, p=row) for row in scale(logits, 1.0)])
    assert fit_temperature(logits * temperature, truth) == pytest.approx(temperature, rel=0.05)


def test_a_class_that_cannot_be_changes_nothing() -> None:
    logits, truth = np.tile([2.0, 0.0], (4, 1)), np.array([0, 0, 0, 1])
    wider = np.concatenate((logits, np.full((4, 1), -np.inf)), 1)
    assert fit_temperature(wider, truth) == fit_temperature(logits, truth)


@pytest.mark.parametrize(("truth", "wanted"), [([0, 0], COLDEST), ([1, 1], HOTTEST)])
def test_texts_that_are_all_right_or_all_wrong_give_an_end(truth: list[int], wanted: float) -> None:
    assert fit_temperature(np.array([[3.0, 0.0], [1.0, 0.0]]), np.array(truth)) == wanted


@pytest.mark.parametrize(
    ("logits", "truth", "message"),
    [
        (np.empty((0, 2)), np.empty(0, dtype=int), "at least one text"),
        (np.zeros((2, 2)), np.zeros(3, dtype=int), "got \\[2, 2\\] and \\[3\\]"),
        (np.array([[0.0, -np.inf]]), np.array([1]), "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(logits: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_temperature(logits, truth)
