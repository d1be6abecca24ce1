"""Text of any kind survives PostgreSQL, whose own text holds no NUL."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from serving.tables import AnyText

POSTGRESQL, SQLITE = (make_url(url).get_dialect()() for url in ("postgresql+psycopg://", "sqlite://"))
TEXTS = st.text(st.sampled_from("\0\x1a0a"), max_size=12)


@given(TEXTS)
def test_postgresql_is_given_no_nul_and_gives_the_text_back(text: str) -> None:
    kept = AnyText().process_bind_param(text, POSTGRESQL)
    assert kept is not None and "\0" not in kept
    assert AnyText().process_result_value(kept, POSTGRESQL) == text


@given(TEXTS)
def test_sqlite_is_given_the_text_itself(text: str) -> None:
    assert AnyText().process_bind_param(text, SQLITE) == text
    assert AnyText().process_result_value(text, SQLITE) == text
