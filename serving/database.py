"""The database under the ledger: connections, transactions, and what is said when it is away."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from serving import migrations
from sparsecbm.errors import SetupError, UnavailableError

T = TypeVar("T")

RETRY_AFTER_S = 2
_MIGRATION_LOCK = 0x53434D42  # PostgreSQL's advisory locks are numbers
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")


class Database:
    """A SQLite or PostgreSQL database that several processes may write at once.

    Nothing is opened before the first use, and a database that is away is tried again at the next one. What was
    written is on the disk before it is acknowledged: in SQLite by WAL and ``synchronous=FULL``, in PostgreSQL by
    ``synchronous_commit``, which is turned on where the server has it off.

    Args:
        url: SQLAlchemy's URL of the database.
        pool: most connections, and threads, at once.
        timeout: seconds that a statement, or the wait for another writer, may take.
        connect_timeout: seconds that connecting may take.

    Attributes:
        file: where a SQLite database lies; None of others.

    Raises:
        SetupError: the URL can't be used.
    """

    def __init__(self, url: str, pool: int, timeout: float, connect_timeout: float) -> None:
        self._url = _read(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self.file = Path(str(self._url.database)) if self._sqlite else None
        self._timeout = timeout
        self._longest = timeout + connect_timeout
        arguments = {} if self._sqlite else _postgresql_arguments(timeout, connect_timeout)
        try:
            self._engine = create_engine(
                self._url,
                pool_size=pool,
                max_overflow=0,
                pool_timeout=timeout,
                pool_pre_ping=not self._sqlite,
                connect_args=arguments,
                hide_parameters=True,  # they are users' texts
            )
        except ImportError as error:
            raise SetupError(
                "A ledger in PostgreSQL needs its driver; install it with: pip install 'sparsecbm[postgres]'"
            ) from error
        self._threads = ThreadPoolExecutor(pool, "ledger")
        if self._sqlite:
            event.listen(self._engine, "connect", self._prepare_sqlite)
            event.listen(self._engine, "checkout", self._check_file)
        event.listen(self._engine, "begin", self._begin_sqlite if self._sqlite else self._begin_postgresql)
        self._ready = False

    def prepare(self) -> None:
        """Opens the database, makes its tables where they are missing, and upgrades older ones.

        Programs that start together do so one after another.

        Raises:
            SetupError: the database was written by a newer program.
            UnavailableError: it can't be opened.
        """
        with self._transaction(write=True, migrate=True) as connection:
            migrations.upgrade(connection)
        self._ready = True

    def close(self) -> None:
        """Closes all connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.dispose()

    @contextmanager
    def open(self, write: bool = False) -> Iterator[Connection]:
        """A transaction, in a database that is ready for it.

        Raises:
            UnavailableError: the database is away, or another program is newer.
        """
        if not self._ready:
            try:
                self.prepare()
            except SetupError as error:
                raise _away(error.message) from error
        with self._transaction(write) as connection:
            yield connection

    async def answers(self, within: float) -> bool:
        """Whether the database answers within so many seconds."""

        def ask() -> None:
            with self.open() as connection:
                connection.execute(select(1))

        with suppress(UnavailableError):
            await self.run(ask, within=within)
            return True
        return False

    async def run(self, call: Callable[..., T], *arguments: Any, within: float | None = None) -> T:
        """Calls a function that uses the database, in a thread of the database's own.

        Args:
            call: the function.
            arguments: of the function.
            within: seconds to wait for it, by default those that connecting and one statement may take.

        Raises:
            UnavailableError: the function raises it, or takes longer; it may then still come to its end.
        """
        seconds = self._longest if within is None else within
        work = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        try:
            return await asyncio.wait_for(work, seconds)
        except TimeoutError as error:
            raise _away(
                f"The ledger did not answer within {seconds:g} s; predictions go on. A correction sent meanwhile may "
                "or may not be recorded: send it again with the same Idempotency-Key."
            ) from error

    @contextmanager
    def _transaction(self, write: bool, migrate: bool = False) -> Iterator[Connection]:
        committing = False
        try:
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            options = {"ledger_write": write, "ledger_migrate": migrate}
            with self._engine.connect().execution_options(**options) as connection:
                transaction = connection.begin()
                yield connection
                committing = True
                transaction.commit()
        except (DBAPIError, PoolTimeout, OSError) as error:
            self._ready = False  # it may come back as another one
            raise _away(_said(write, committing)) from error

    def _prepare_sqlite(self, connection: Any, record: ConnectionPoolEntry) -> None:
        # Python's sqlite3 begins transactions by rules of its own; here each one is begun outright.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={math.ceil(1000 * self._timeout)}")
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        record.info["file"] = self._identity()

    def _check_file(self, _: object, record: ConnectionPoolEntry, __: object) -> None:
        """Has a connection replaced whose file was removed or replaced: what it wrote there, nobody would find."""
        if record.info["file"] != self._identity():
            raise DisconnectionError

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = Path(str(self.file)).stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _use_wal(self, connection: Any) -> None:
        """Turns the database to WAL; where another process is at it, SQLite fails at once instead of waiting."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _begin_sqlite(self, connection: Connection) -> None:
        # A write takes its lock at once: one that began as a read can't wait for it.
        write = connection.get_execution_options().get("ledger_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def _begin_postgresql(self, connection: Connection) -> None:
        migrate = connection.get_execution_options().get("ledger_migrate", False)
        # Settings of the transaction alone, so that a pooler such as PgBouncer may stand between. An upgrade takes as
        # long as it takes, and who waits for it waits.
        limit = 0 if migrate else math.ceil(1000 * self._timeout)
        connection.exec_driver_sql(
            f"SELECT set_config('statement_timeout', '{limit}', true), set_config('synchronous_commit', "
            "replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
        )
        if migrate:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")


def _read(url: str) -> URL:
    refused = SetupError(
        "The ledger's URL can't be used: give that of a SQLite file, such as sqlite:////srv/ledger.db, or of a "
        "PostgreSQL database, such as postgresql://user@host/ledger."
    )
    try:
        read = make_url(url)
    except ArgumentError as error:
        raise refused from error
    if read.drivername == "sqlite" and read.database not in (None, "", ":memory:"):
        return read
    if read.drivername in _POSTGRESQL:
        return read.set(drivername="postgresql+psycopg")
    raise refused


def _postgresql_arguments(timeout: float, connect_timeout: float) -> dict[str, Any]:
    """Parameters of libpq: a server that is gone without a word is noticed within about twice the timeout."""
    probe = max(1, math.ceil(timeout / 3))
    return {
        "connect_timeout": math.ceil(connect_timeout),
        "tcp_user_timeout": math.ceil(1000 * timeout),
        "keepalives_idle": math.ceil(timeout),
        "keepalives_interval": probe,
        "keepalives_count": 3,
        "prepare_threshold": None,  # poolers know no prepared statements
    }


def _said(write: bool, committing: bool) -> str:
    if not write:
        return "The ledger can't be read; predictions go on. Try again later."
    hint = 'With "record": false an intervention needs no ledger.'
    if committing:
        return (
            "The ledger went away while it was written to, so that the correction may or may not be recorded; "
            f"predictions go on. Send it again with the same Idempotency-Key. {hint}"
        )
    return f"The ledger can't be written to, so nothing was recorded; predictions go on. Try again later. {hint}"


def _away(message: str) -> UnavailableError:
    return UnavailableError(message, {"retry_after_s": RETRY_AFTER_S})
