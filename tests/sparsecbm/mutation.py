"""Changes of one part of a JSON value, for property tests of what reads it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def change_a_part(content: Any, data: st.DataObject, parts: st.SearchStrategy[Any], within: str | None = None) -> None:
    """Makes one part of a JSON value something else or leaves it out, in place.

    Args:
        content: an object that isn't empty.
        data: draws which part, and what it becomes.
        parts: what a part may become.
        within: key of an object whose entries are left alone.
    """
    *path, key = data.draw(st.sampled_from(_places(content, within)[1:]))
    part: Any = content
    for step in path:
        part = part[step]
    part[key] = data.draw(parts)
    if data.draw(st.booleans()):
        del part[key]


def _places(content: Any, within: str | None, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every part."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    inner = [(key, part) for key, part in items if within is None or path[-1:] != (within,)]
    return [path, *(place for key, part in inner for place in _places(part, within, (*path, key)))]
