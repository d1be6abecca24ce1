"""The ledger's tables, as the newest of its migrations leaves them.

A change here needs a migration in ``serving/migrations/versions``; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

REVISION = "2"
"""Of the newest migration."""
REVISION_TABLE = "ledger_revision"
"""Where Alembic notes it; by its default name another program's would be taken for ours in a shared database."""

_NUL, _SIGN = "\0", "\x1a"


class _Any(TypeDecorator[str]):
    """Text with any character. PostgreSQL's own holds no NUL: there it is kept as the sign U+001A and a 0."""

    impl = String

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or dialect.name != "postgresql":
            return value
        return value.replace(_SIGN, f"{_SIGN}{_SIGN}").replace(_NUL, f"{_SIGN}0")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or dialect.name != "postgresql":
            return value
        whole = (part.replace(f"{_SIGN}0", _NUL) for part in value.split(f"{_SIGN}{_SIGN}"))
        return _SIGN.join(whole)


class AnyString(_Any):
    impl = String
    cache_ok = True


class AnyText(_Any):
    impl = Text
    cache_ok = True


metadata = MetaData()

interventions = Table(
    "interventions",
    metadata,
    Column("id", AnyString(36), primary_key=True),
    Column("created_at", DateTime, nullable=False, index=True),  # UTC
    Column("who", AnyString(128), nullable=False),
    Column("model", AnyString(128), nullable=False),
    Column("version", AnyString(64), nullable=False),
    Column("mask_version", AnyString(64), nullable=False),
    Column("level", AnyString(16), nullable=False),
    Column("text", AnyText),  # null where only its hash is kept
    Column("text_sha256", AnyString(64), nullable=False, index=True),
    Column("note", AnyText),
    Column("label_flipped", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),  # JSON: corrections, before, after, flipped, edits
)

corrections = Table(
    "corrections",
    metadata,
    Column("concept", AnyString(128), primary_key=True),
    Column("intervention_id", ForeignKey("interventions.id"), primary_key=True),
    Column("value", AnyString(128), nullable=False),
)

claims = Table(
    "idempotency_keys",
    metadata,
    Column("who", AnyString(128), primary_key=True),
    Column("key", AnyString(255), primary_key=True),
    Column("created_at", DateTime, nullable=False),  # UTC
    Column("body_sha256", AnyString(64), nullable=False),
    Column("answer", LargeBinary, nullable=False),
)

# Where versions were noted before Alembic. A program from then looks here, and refuses what is newer.
ledger_schema = Table("ledger_schema", metadata, Column("version", Integer, primary_key=True))
