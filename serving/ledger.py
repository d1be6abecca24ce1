"""The ledger: the durable record of every intervention."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from serving.contract import InterventionPage, InterventionRecord, Level, Outcome
from sparsecbm.errors import NotFoundError, SetupError, UnavailableError

SCHEMA_VERSION = 1
_BUSY_MS = 5000

_metadata = MetaData()
_schema = Table("ledger_schema", _metadata, Column("version", Integer, primary_key=True))
_interventions = Table(
    "interventions",
    _metadata,
    Column("id", String(36), primary_key=True),
    Column("created_at", DateTime, nullable=False),
    Column("model", String(128), nullable=False),
    Column("version", String(64), nullable=False),
    Column("level", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("note", Text),
    Column("outcome", Text, nullable=False),
)
_corrections = Table(
    "corrections",
    _metadata,
    Column("concept", String(128), primary_key=True),
    Column("intervention_id", ForeignKey("interventions.id"), primary_key=True),
    Column("value", String(128), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One intervention to record."""

    text: str
    note: str | None
    outcome: Outcome


class Ledger:
    """The interventions in a database, which several processes may write at once.

    Nothing is opened before the first use, and a database that is away is tried again at the next one.

    Args:
        url: SQLAlchemy's URL of the database. In SQLite a write is on the disk before it is acknowledged
            (WAL, ``synchronous=FULL``).

    Raises:
        SetupError: the URL can't be read, or its database driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
            self._database = create_engine(self._url, pool_pre_ping=not url.startswith("sqlite"))
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise SetupError(
                "The ledger's URL can't be used: give a database URL such as sqlite:////srv/ledger.db, "
                "whose driver is installed."
            ) from error
        self._sqlite = self._url.get_backend_name() == "sqlite"
        if self._sqlite:
            event.listen(self._database, "connect", _prepare_sqlite)
            event.listen(self._database, "begin", _begin_sqlite)
        self._ready = False

    def prepare(self) -> None:
        """Opens the ledger and makes its tables where they are missing.

        Raises:
            SetupError: the database was written by a newer program.
            UnavailableError: the database can't be opened.
        """
        with self._transaction(write=True) as connection:
            _metadata.create_all(connection)
            found = connection.execute(select(func.max(_schema.c.version))).scalar()
            if found is None:
                connection.execute(insert(_schema).values(version=SCHEMA_VERSION))
            elif found > SCHEMA_VERSION:
                raise SetupError(
                    f"The ledger has schema version {found}, and this program knows versions up to "
                    f"{SCHEMA_VERSION}: a newer SparseCBM wrote it. Serve with that one, or choose another "
                    "ledger with --ledger."
                )
        self._ready = True

    def close(self) -> None:
        """Closes all connections."""
        self._database.dispose()

    def record(self, entries: Sequence[Entry], model: str, version: str) -> list[str]:
        """Keeps interventions, all of them or none.

        Args:
            entries: what to keep.
            model: name of the model that they were made on.
            version: its version.

        Returns:
            Their ids, which sort by time.

        Raises:
            UnavailableError: the ledger can't be written; nothing was kept.
        """
        ids = [_ids.new() for _ in entries]
        now = datetime.now(UTC).replace(tzinfo=None)
        rows = [
            {
                "id": id,
                "created_at": now,
                "model": model,
                "version": version,
                "level": entry.outcome.level,
                "text": entry.text,
                "note": entry.note,
                "outcome": entry.outcome.model_dump_json(),
            }
            for id, entry in zip(ids, entries, strict=True)
        ]
        corrections = [
            {"concept": concept, "intervention_id": id, "value": value}
            for id, entry in zip(ids, entries, strict=True)
            for concept, value in entry.outcome.corrections.items()
        ]
        with self._open(write=True) as connection:
            connection.execute(insert(_interventions), rows)
            connection.execute(insert(_corrections), corrections)
        return ids

    def get(self, id: str) -> InterventionRecord:
        """One intervention.

        Raises:
            NotFoundError: there is none of this id.
            UnavailableError: the ledger can't be read.
        """
        with self._open() as connection:
            row = connection.execute(select(_interventions).where(_interventions.c.id == id)).one_or_none()
        if row is None:
            raise NotFoundError("The ledger holds no intervention of this id; GET /v1/interventions lists them.")
        return _record(row)

    def page(
        self, limit: int, after: str | None = None, concept: str | None = None, level: Level | None = None
    ) -> InterventionPage:
        """Interventions, newest first.

        Args:
            limit: most interventions to give.
            after: the id that the page before this one ended with.
            concept: only those that corrected this concept.
            level: only those at this level.

        Raises:
            UnavailableError: the ledger can't be read.
        """
        query = select(_interventions).order_by(_interventions.c.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(_interventions.c.id < after)
        if level is not None:
            query = query.where(_interventions.c.level == level)
        if concept is not None:
            query = query.join(_corrections).where(_corrections.c.concept == concept)
        with self._open() as connection:
            rows = connection.execute(query).all()
        records = [_record(row) for row in rows[:limit]]
        return InterventionPage(interventions=records, next=records[-1].id if len(rows) > limit else None)

    def count(self) -> int:
        """How many interventions it holds.

        Raises:
            UnavailableError: the ledger can't be read.
        """
        with self._open() as connection:
            return connection.execute(select(func.count()).select_from(_interventions)).scalar_one()

    @contextmanager
    def _open(self, write: bool = False) -> Iterator[Connection]:
        if not self._ready:
            try:
                self.prepare()
            except SetupError as error:
                raise UnavailableError(error.message) from error
        with self._transaction(write) as connection:
            yield connection

    @contextmanager
    def _transaction(self, write: bool) -> Iterator[Connection]:
        try:
            if self._sqlite and self._url.database and self._url.database != ":memory:":
                Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
            options = {"ledger_write": write}
            with self._database.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except (SQLAlchemyError, OSError) as error:
            doing = "written to, so nothing was recorded" if write else "read"
            hint = ' With "record": false an intervention needs no ledger.' if write else ""
            raise UnavailableError(f"The ledger can't be {doing}; predictions go on. Try again later.{hint}") from error


class _Ids:
    """Makes UUIDs of version 7: 48 bits of milliseconds, 12 bits of what is below, the rest random.

    Within a process each is greater than the one before, so that they page in the order of recording.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def new(self) -> str:
        with self._lock:
            self._last = ticks = max(time.time_ns() * 4096 // 1_000_000, self._last + 1)
        milliseconds, fraction = divmod(ticks, 4096)
        high = (milliseconds & (1 << 48) - 1) << 16 | 7 << 12 | fraction
        return str(uuid.UUID(int=high << 64 | 2 << 62 | secrets.randbits(62)))


_ids = _Ids()


def _record(row: Row[Any]) -> InterventionRecord:
    return InterventionRecord(
        id=row.id,
        created_at=row.created_at.replace(tzinfo=UTC),
        model=row.model,
        version=row.version,
        text=row.text,
        note=row.note,
        outcome=Outcome.model_validate_json(row.outcome),
    )


def _prepare_sqlite(connection: Any, _: object) -> None:
    # Python's sqlite3 begins transactions by rules of its own; here each one is begun outright.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    _use_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: Any) -> None:
    """Turns the database to WAL; where another process is at it, SQLite fails at once instead of waiting."""
    deadline = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A write takes its lock at once: one that began as a read can't wait for it.
    write = connection.get_execution_options().get("ledger_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
