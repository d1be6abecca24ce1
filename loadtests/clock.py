"""Several contenders timed in turns, so that what else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WARM_UP = 4  # texts


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that works on batches of texts.

    Attributes:
        name: unique among those that are timed together.
        run: works on one batch.
        batches: what it is given in each round, at least one.
    """

    name: str
    run: Callable[[Sequence[str]], object]
    batches: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Timing:
    """What a contender took.

    Attributes:
        seconds: [rounds, batches].
        texts: [batches], how many each holds.
    """

    seconds: np.ndarray
    texts: np.ndarray

    def rates(self) -> np.ndarray:
        """Texts per second, [rounds]."""
        return np.asarray(self.texts.sum() / self.seconds.sum(1))

    def median(self) -> float:
        """Texts per second, the median over rounds."""
        return float(np.median(self.rates()))

    def figures(self) -> dict[str, Any]:
        """JSON values: texts per second as the median over rounds with the lowest and highest, and a batch's time."""
        rates = self.rates()
        return {
            "texts_per_second": {
                "value": self.median(),
                "low": float(rates.min()),
                "high": float(rates.max()),
            },
            "batch_texts": int(self.texts.max()),
            "p50_ms": float(np.percentile(self.seconds, 50) * 1e3),
            "p99_ms": float(np.percentile(self.seconds, 99) * 1e3),
        }


def ratio(one: Timing, other: Timing) -> dict[str, float]:
    """How many times as many texts per second one does as another that was timed with it.

    ``value`` is the ratio of their medians over rounds, ``low`` and ``high`` bound the single rounds' ratios.
    """
    mine, theirs = one.rates(), other.rates()
    rounds = mine / theirs
    return {
        "value": one.median() / other.median(),
        "low": float(rounds.min()),
        "high": float(rounds.max()),
    }


def interleave(
    contenders: Sequence[Contender], rounds: int, advance: Callable[[int], None] = lambda done: None
) -> dict[str, Timing]:
    """Times contenders in rounds; in each, they take turns batch by batch until all have worked on all theirs.

    Before its turn each runs a few texts untimed, since the one before it had the caches. Not always the same one goes
    first.

    Args:
        contenders: with different names; those with fewer batches are done earlier in a round.
        rounds: how many, at least 1.
        advance: told how many rounds are done.

    Returns:
        Timings by name, in the contenders' order.
    """
    seconds: dict[str, list[list[float]]] = {contender.name: [] for contender in contenders}
    turns = max(len(contender.batches) for contender in contenders)
    for done in range(rounds):
        for taken in seconds.values():
            taken.append([])
        for turn in range(turns):
            first = (done + turn) % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                if turn < len(contender.batches):
                    batch = contender.batches[turn]
                    contender.run(batch[:_WARM_UP])
                    started = time.perf_counter()
                    contender.run(batch)
                    seconds[contender.name][-1].append(time.perf_counter() - started)
        advance(done + 1)
    return {
        contender.name: Timing(np.array(seconds[contender.name]), np.array([len(batch) for batch in contender.batches]))
        for contender in contenders
    }


def cut(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    """Texts in batches of a size; the last may be smaller."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]
