"""Texts to token ids, by the tokeniser file that every bundle carries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from sparsecbm.errors import CheckpointError

TOKENIZER = "tokenizer.json"
_CHARACTERS_PER_TOKEN = 32  # several times those of a long word


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of N texts, not padded.

    Attributes:
        ids: N arrays [length] int64.
        truncated: whether each text was longer than the model reads.
    """

    ids: list[np.ndarray]
    truncated: list[bool]

    def lengths(self) -> np.ndarray:
        """[N] int64."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)


def tokenizer_from_text(text: str, max_tokens: int) -> Tokenizer:
    """Makes a tokeniser from the text of a ``tokenizer.json``, to truncate at ``max_tokens`` and never to pad.

    Raises:
        CheckpointError: the text isn't a tokeniser, or one that fails on a text.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        tokenizer.encode_batch_fast(["", "a日🍝 " * min(max_tokens, 512)])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust side raises plain Exception, and where it panics, not even that
        raise CheckpointError(f"{TOKENIZER} is not a tokenizer file: {error}") from error
    return tokenizer


def openings(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Of each text as much as can be read: 32 characters per token that the tokeniser leaves.

    A tokeniser takes some hundred bytes per character of a text, and truncates afterwards.
    """
    assert tokenizer.truncation is not None
    most = _CHARACTERS_PER_TOKEN * int(tokenizer.truncation["max_length"])
    return [text[:most] for text in texts]


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Encoded:
    """Tokenises texts."""
    read = openings(tokenizer, texts)
    encodings = tokenizer.encode_batch_fast(read)
    return Encoded(
        [np.array(encoding.ids, dtype=np.int64) for encoding in encodings],
        [
            bool(encoding.overflowing) or len(opening) < len(text)
            for encoding, opening, text in zip(encodings, read, texts, strict=True)
        ],
    )


def pad(ids: Sequence[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacks token ids into ([batch, length] int64 ids, [batch, length] int64 mask with 1 where a token is)."""
    length = max(len(row) for row in ids)
    padded = np.full((len(ids), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), length), dtype=np.int64)
    for position, row in enumerate(ids):
        padded[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return padded, mask


def batches(lengths: np.ndarray, size: int, generator: np.random.Generator | None = None) -> Iterator[np.ndarray]:
    """Yields index arrays of at most ``size`` texts of similar length, so that little is padding.

    With a generator, which texts meet and the order of batches are random.
    """
    order = np.argsort(lengths, kind="stable")
    if generator is not None:
        order = np.argsort(lengths + generator.uniform(0, 4, len(lengths)), kind="stable")
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    if generator is not None:
        generator.shuffle(chunks)
    yield from chunks
