"""Batches of similar length, within a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.packing import pack

LENGTHS = st.lists(st.integers(2, 96), min_size=1, max_size=200)


def padding(lengths: list[int], batches: list[np.ndarray]) -> float:
    padded: int = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)
    return 1 - sum(lengths) / padded


@given(lengths=LENGTHS, budget=st.integers(1, 600), threads=st.integers(1, 4))
def test_every_text_runs_once_by_length_and_within_the_budget(lengths: list[int], budget: int, threads: int) -> None:
    batches = list(pack(lengths, budget, threads))
    order = [lengths[row] for rows in batches for row in rows]
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    assert order == sorted(order)
    assert all(len(rows) == 1 or len(rows) * lengths[rows[-1]] <= budget for rows in batches)


def test_a_text_over_the_budget_runs_alone() -> None:
    assert [rows.tolist() for rows in pack([9, 2, 9], 8)] == [[1], [0], [2]]


@given(lengths=LENGTHS)
def test_no_batch_of_some_size_is_more_than_a_tenth_padding(lengths: list[int]) -> None:
    for rows in pack(lengths, 512):
        tokens = [lengths[row] for row in rows]
        if sum(tokens[:-1]) >= 128:
            assert sum(tokens) >= 0.9 * len(rows) * tokens[-1]


def test_real_lengths_are_padded_by_less_than_a_tenth() -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(27), 0.42, 64).round().clip(4, 94).astype(int).tolist()
    assert padding(lengths, list(pack(lengths, 512))) < 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_thread_has_a_share_of_few_texts(threads: int) -> None:
    assert len(list(pack([27] * 60, 4096, threads))) == threads
