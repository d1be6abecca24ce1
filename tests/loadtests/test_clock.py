"""Turns and what is made of their times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from loadtests.clock import Contender, Timing, cut, interleave, ratio

BATCHES = [["a", "b"], ["c"]]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], Contender]:
    """Makes contenders that take so many seconds a text, on a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def make(name: str, seconds: float) -> Contender:
        def run(texts: Sequence[str]) -> None:
            now[0] += seconds * len(texts)

        return Contender(name, run, BATCHES)

    return make


def test_each_batch_of_each_round_is_timed(work: Callable[[str, float], Contender]) -> None:
    timings = interleave([work("slow", 2.0), work("fast", 0.5)], rounds=3)
    assert timings["slow"].seconds.tolist() == [[4.0, 2.0]] * 3
    assert timings["fast"].figures() == {
        "texts_per_second": {"value": 2.0, "low": 2.0, "high": 2.0},
        "batch_texts": 2,
        "p50_ms": 750.0,
        "p99_ms": 1000.0,
    }


def test_all_take_turns_and_another_begins_each_time() -> None:
    turns: list[str] = []

    def contender(name: str, batches: list[list[str]]) -> Contender:
        return Contender(name, lambda texts: turns.append(name + "".join(texts)), batches)

    interleave([contender("x", [["1"], ["2"]]), contender("y", [["1"]]), contender("z", [["1"], ["2"]])], rounds=2)
    first, second = "x1 y1 z1 z2 x2", "y1 z1 x1 z2 x2"
    assert turns == [turn for turn in f"{first} {second}".split() for _ in range(2)]  # each first warms up


def test_rounds_are_counted_out() -> None:
    done: list[int] = []
    interleave([Contender("a", len, BATCHES)], 3, done.append)
    assert done == [1, 2, 3]


def test_a_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    one = Timing(np.array([[1.0], [0.5], [0.25]]), np.array([1]))
    other = Timing(np.array([[1.0], [1.0], [2.0]]), np.array([1]))
    assert ratio(one, other) == {"value": 2.0, "low": 1.0, "high": 8.0}


def test_texts_are_cut_into_batches() -> None:
    assert cut(["a", "b", "c"], 2) == [["a", "b"], ["c"]]
