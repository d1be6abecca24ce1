"""Bodies: how deeply they are nested, whatever they hold."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bodies import depth

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(alphabet='[]{}"\\a\u00e9,: '),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[{"\\'), inner, max_size=3),
    max_leaves=20,
)


def nesting(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nesting, value), default=0)
    return 0


@given(VALUES, st.booleans())
def test_depth_is_that_of_the_value(value: object, ascii: bool) -> None:
    assert depth(json.dumps(value, ensure_ascii=ascii).encode()) == nesting(value)


@given(st.binary())
def test_what_is_no_json_fails_nothing(body: bytes) -> None:
    assert depth(body) >= 0


@pytest.mark.parametrize("piece", [b"[]", b"[", b'"', b'\\"', b'"["', b"{}", b"a"])
def test_four_megabytes_cost_little(piece: bytes) -> None:
    body = piece * (4 * 2**20 // len(piece))
    started = time.process_time()
    depth(body)
    assert time.process_time() - started < 0.5
