"""Ids are UUIDs of version 7 that hold the time, and each is greater than the one before."""

from __future__ import annotations

import time
import uuid

from serving.ids import Ids


def test_id_is_a_uuid_of_version_7() -> None:
    id = uuid.UUID(Ids().new())
    assert id.version == 7 and id.variant == uuid.RFC_4122


def test_id_holds_the_time() -> None:
    before = time.time_ns() // 1_000_000
    id = Ids().new()
    assert before <= uuid.UUID(id).int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_each_id_is_greater_than_the_one_before() -> None:
    ids = Ids()
    made = [ids.new() for _ in range(10_000)]
    assert made == sorted(set(made))
