"""Texts to measure on: made-up restaurant reviews as long as CEBaB's, or the lines of a file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from sparsecbm.errors import DataError

SHORTEST = 5  # tokens
# Quantiles of the token lengths of CEBaB v1.1 (Abraham et al. 2022) under BERT's uncased vocabulary.
_QUANTILES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.5, 0.75, 0.90, 0.95, 0.99, 1.0)
_LENGTHS = (SHORTEST, 6, 10, 13, 19, 27, 38, 46, 50, 59, 94)

# Each word is one token of that vocabulary.
_SUBJECTS = ["pizza", "soup", "fish", "bread", "coffee", "menu", "table", "waiter", "staff", "service", "room", "music"]
_QUALITIES = ["good", "great", "cold", "slow", "fresh", "loud", "quiet", "friendly", "terrible", "perfect", "cheap"]
_CLAUSES = (
    "the {0} was {1}",
    "our {0} was really {1} this time",
    "we found the {0} a little {1}",
    "i would call the {0} {1} at best",
    "the {0} came late and was {1}",
    "nobody at our table liked the {0}",
    "everyone said that the {0} is {1} on friday night",
)
_BETWEEN = (".", ",", "but", "and")


def text_of(tokens: int, generator: random.Random) -> str:
    """A review of a given length.

    Args:
        tokens: how many BERT's uncased tokeniser makes of it, its two special ones among them; at least ``SHORTEST``.
        generator: what to draw from.
    """
    words: list[str] = []
    while len(words) < tokens - 3:
        clause = generator.choice(_CLAUSES).format(generator.choice(_SUBJECTS), generator.choice(_QUALITIES))
        words += [*clause.split(), generator.choice(_BETWEEN)]
    words = words[: tokens - 3]
    if words[-1] in _BETWEEN:
        words[-1] = "too"
    return (" ".join(words) + ".").replace(" .", ".").replace(" ,", ",").capitalize()


def sample(count: int, seed: int = 0) -> list[str]:
    """Reviews whose token lengths are distributed as CEBaB's: median 27, 95 % under 51, at most 94.

    The same count and seed give the same texts.
    """
    generator = random.Random(seed)
    lengths = np.interp((np.arange(count) + 0.5) / count, _QUANTILES, _LENGTHS).round().astype(int).tolist()
    generator.shuffle(lengths)
    return [text_of(length, generator) for length in lengths]


def read_texts(path: Path) -> list[str]:
    """The texts of a file, one a line; empty lines are left out.

    Raises:
        DataError: it can't be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}.") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path} holds no text; write one a line.")
    return texts
