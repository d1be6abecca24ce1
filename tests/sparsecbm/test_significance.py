"""Intervals and tests against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparsecbm.significance import difference, draws, estimate, interval, mcnemar, resampled_mean


def test_texts_of_a_group_are_drawn_together() -> None:
    drawn = draws(np.array([7, 7, 3, 3, 3, 9]), resamples=50)
    assert drawn.shape == (50, 6)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 2] == drawn[:, 4]).all()
    assert (drawn[:, [0, 2, 5]].sum(1) == 3).all()


def test_draws_are_the_same_for_a_seed() -> None:
    groups = np.arange(9)
    assert np.array_equal(draws(groups, 20, seed=4), draws(groups, 20, seed=4))
    assert not np.array_equal(draws(groups, 20, seed=4), draws(groups, 20, seed=5))


def test_a_resampled_mean_weighs_texts_by_how_often_they_are_drawn() -> None:
    means = resampled_mean(np.array([[1.0, 0.0], [4.0, 2.0]]), np.array([[3.0, 1.0], [0.0, 2.0]]))
    assert means.tolist() == [[1.75, 0.5], [4.0, 2.0]]


def test_an_interval_leaves_out_two_and_a_half_percent_at_each_end() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx([25, 975])


def test_the_interval_of_an_accuracy_is_that_of_the_binomial() -> None:
    right = np.arange(400) < 300
    found = estimate(right, draws(np.arange(400)))
    assert found["value"] == 0.75
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found["interval"] == pytest.approx([0.75 - half, 0.75 + half], abs=0.008)


def test_a_difference_of_equal_models_is_none() -> None:
    right = np.arange(40) % 3 == 0
    found = difference(right, right, draws(np.arange(40)))
    assert (found["value"], found["interval"], found["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_a_clear_difference_is_beyond_noise() -> None:
    first = np.zeros(60, dtype=bool)
    found = difference(first, np.arange(60) < 30, draws(np.arange(60)))
    assert found["value"] == 0.5
    assert found["p"] == pytest.approx(2 / 1001)


def test_mcnemar_counts_the_texts_that_changed() -> None:
    first = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0], dtype=bool)
    second = np.array([1, 0, 1, 1, 1, 1, 1, 1, 0], dtype=bool)
    # 6 gained, 1 lost: 2 (1 + 7) / 2^7
    assert mcnemar(first, second) == {"gained": 6, "lost": 1, "p": 0.125}


def test_mcnemar_without_a_change_sees_nothing() -> None:
    assert mcnemar(np.ones(3, dtype=bool), np.ones(3, dtype=bool))["p"] == 1
