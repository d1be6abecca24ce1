"""The label head, against sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serving.bottleneck import LabelHead, Reading, softmax
from sparsecbm.bundle import Head, Manifest

ONE = math.e / (math.e + 1)  # the larger of softmax([1, 0])


def head(manifest: Manifest, weight: list[list[list[float]]], bias: list[float]) -> LabelHead:
    width = len(weight[0][0])
    return LabelHead(manifest.model_copy(update={"head": Head(width=width, weight=weight, bias=bias)}))


@pytest.fixture
def reading(manifest: Manifest) -> Reading:
    """One text, two concepts of two values of width 1, two labels of which only the first is spoken for."""
    logits = np.array([[[0.0, 0.0], [math.log(3), 0.0]]])
    vectors = np.array([[[[1.0], [-1.0]], [[2.0], [-2.0]]]])
    return head(manifest, [[[1.0], [0.5]], [[0.0], [0.0]]], [0.25, 0.0]).read(logits, vectors)


def test_softmax_of_large_logits_is_finite() -> None:
    assert softmax(np.array([1e4, 1e4, -np.inf])).tolist() == [0.5, 0.5, 0.0]


def test_probabilities_are_the_logits_softmax(reading: Reading) -> None:
    assert reading.probabilities[0] == pytest.approx(np.array([[0.5, 0.5], [0.75, 0.25]]))


def test_contribution_is_the_weight_times_the_mixed_vector(reading: Reading) -> None:
    # The second concept mixes 0.75 · 2 − 0.25 · 2 = 1, and its weight is 0.5.
    assert reading.contributions[0] == pytest.approx(np.array([[0.0, 0.0], [0.5, 0.0]]))


def test_labels_are_the_softmax_of_contributions_and_bias(reading: Reading) -> None:
    expected = 1 / (1 + math.exp(-(0.0 + 0.5 + 0.25)))
    assert reading.labels[0] == pytest.approx(np.array([expected, 1 - expected]))


def test_gain_is_the_expected_total_variation(reading: Reading) -> None:
    def sigmoid(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    now = sigmoid(0.75)
    first = 0.5 * abs(sigmoid(1.75) - now) + 0.5 * abs(sigmoid(-0.25) - now)
    second = 0.75 * abs(sigmoid(1.25) - now) + 0.25 * abs(sigmoid(-0.75) - now)
    assert reading.gains[0] == pytest.approx(np.array([first, second]))


def test_gain_of_a_certain_concept_is_nothing(manifest: Manifest) -> None:
    logits, vectors = np.array([[[1000.0, 0.0]]]), np.array([[[[1.0], [-1.0]]]])
    assert head(manifest, [[[1.0]], [[0.0]]], [0.0, 0.0]).read(logits, vectors).gains.tolist() == [[0.0]]


def test_gain_of_an_even_choice_between_sure_labels(manifest: Manifest) -> None:
    logits, vectors = np.zeros((1, 1, 2)), np.array([[[[1.0], [-1.0]]]])
    gains = head(manifest, [[[1.0]], [[0.0]]], [0.0, 0.0]).read(logits, vectors).gains
    assert gains[0, 0] == pytest.approx(ONE - 0.5)


def test_value_that_a_concept_lacks_has_no_part(manifest: Manifest) -> None:
    logits = np.array([[[0.0, 0.0, -np.inf]]])
    vectors = np.array([[[[1.0], [-1.0], [5.0]]]])
    reading = head(manifest, [[[1.0]], [[0.0]]], [0.0, 0.0]).read(logits, vectors)
    assert reading.probabilities.tolist() == [[[0.5, 0.5, 0.0]]]
    assert reading.gains[0, 0] == pytest.approx(ONE - 0.5)


def test_correction_is_one_hot_where_given(manifest: Manifest) -> None:
    logits, vectors = np.zeros((2, 1, 2)), np.array([[[[1.0], [-1.0]]]] * 2)
    reading = head(manifest, [[[1.0]], [[0.0]]], [0.0, 0.0]).read(logits, vectors, np.array([[1], [-1]]))
    assert reading.probabilities.tolist() == [[[0.0, 1.0]], [[0.5, 0.5]]]
    assert reading.labels[0] == pytest.approx(np.array([1 - ONE, ONE]))


def test_corrected_concept_has_nothing_more_to_gain(manifest: Manifest) -> None:
    logits, vectors = np.zeros((1, 1, 2)), np.array([[[[1.0], [-1.0]]]])
    reading = head(manifest, [[[1.0]], [[0.0]]], [0.0, 0.0]).read(logits, vectors, np.array([[1]]))
    assert reading.gains.tolist() == [[0.0]]
