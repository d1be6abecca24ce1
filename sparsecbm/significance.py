"""How far figures would move on other texts: bootstrap intervals, and tests of paired differences.

Texts that are edits of one original say nearly the same, so what is drawn again is the *group* of texts (a
cluster bootstrap, Davison and Hinkley 1997, section 3.8). All figures share the draws, which makes every
difference of two of them a paired one.
"""

from __future__ import annotations

import math

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def draws(groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each text is drawn in each resample.

    Args:
        groups: [N] int, number of the group that a text belongs to; all different where texts are independent.
        resamples: how many.
        seed: of the draws.

    Returns:
        [resamples, N] float64, whole numbers; a text is drawn as often as its group.
    """
    _, position = np.unique(groups, return_inverse=True)
    count = int(position.max()) + 1
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples)[:, position].astype(np.float64)


def interval(values: np.ndarray) -> list[float]:
    """The 95 % percentile interval of a figure's resampled values, as [low, high]."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return [float(low), float(high)]


def resampled_mean(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Means of [N, ..] values under each resample, [resamples, ..]."""
    means = np.tensordot(drawn, values.astype(np.float64), 1)
    return np.asarray(means / drawn.sum(1).reshape(-1, *[1] * (values.ndim - 1)))


def estimate(values: np.ndarray, drawn: np.ndarray) -> dict[str, object]:
    """The mean of [N] values, as ``value``, with its ``interval``."""
    return {"value": float(np.mean(values)), "interval": interval(resampled_mean(values, drawn))}


def difference(first: np.ndarray, second: np.ndarray, drawn: np.ndarray) -> dict[str, object]:
    """Second minus first of two figures of the same N texts, by the paired bootstrap (Koehn 2004).

    Args:
        first: [N], such as whether each text is right.
        second: [N], the same of the other model.
        drawn: [resamples, N].

    Returns:
        ``value``, ``interval`` and ``p``: twice the smaller share of resamples at or beyond no difference.
    """
    moved = second.astype(np.float64) - first.astype(np.float64)
    resampled = resampled_mean(moved, drawn)
    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(resampled) + 1))
    return {"value": float(moved.mean()), "interval": interval(resampled), "p": p}


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The exact McNemar test (McNemar 1947) of two models' right answers on the same texts.

    It takes texts for independent; where they come in groups, the paired bootstrap is the one to believe.

    Args:
        first: [N] bool, whether the first model is right.
        second: [N] bool, whether the second one is.

    Returns:
        ``gained`` and ``lost``, texts that only the second or only the first has right; ``p``, two-sided.
    """
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    changed = gained + lost
    tail = sum(math.comb(changed, count) for count in range(min(gained, lost) + 1))
    return {"gained": gained, "lost": lost, "p": min(1.0, 2 * tail / 2**changed)}
