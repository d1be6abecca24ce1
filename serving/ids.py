"""Ids of what the ledger keeps: they sort by time."""

from __future__ import annotations

import secrets
import threading
import time
import uuid


class Ids:
    """Makes UUIDs of version 7: 48 bits of milliseconds, 12 bits of what is below, the rest random.

    Within a process each is greater than the one before, so that they page in the order of recording.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def new(self) -> str:
        """The next id."""
        with self._lock:
            self._last = ticks = max(time.time_ns() * 4096 // 1_000_000, self._last + 1)
        milliseconds, fraction = divmod(ticks, 4096)
        high = (milliseconds & (1 << 48) - 1) << 16 | 7 << 12 | fraction
        return str(uuid.UUID(int=high << 64 | 2 << 62 | secrets.randbits(62)))
