"""Which texts run together: batches of similar length, within a budget of padded tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

_PADDING = 0.1  # highest share of a batch, once it has the least tokens
_LEAST_TOKENS = 128  # of a batch that ends before its budget is spent


def pack(lengths: Sequence[int], budget: int, threads: int = 1) -> Iterator[np.ndarray]:
    """Yields rows by length, in batches of at most ``budget`` padded tokens (a longer text runs alone).

    A batch ends sooner where the next text would make more than a tenth of it padding, or where it has a thread's share
    of all texts.

    Args:
        lengths: of the texts, in tokens.
        budget: most padded tokens of a batch.
        threads: on which batches run at a time.
    """
    order = np.argsort(lengths, kind="stable")
    share = max(_LEAST_TOKENS / 2, math.ceil(sum(lengths) / threads)) if threads > 1 else budget
    start = tokens = 0
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        tokens += longest
        if end < len(order):
            following = lengths[order[end]]
            padded = (end + 1 - start) * following
            loose = tokens >= _LEAST_TOKENS and padded - tokens - following > _PADDING * padded
            if padded <= budget and not loose and (end - start) * longest < share:
                continue
        yield order[start:end]
        start, tokens = end, 0
