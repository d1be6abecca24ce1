"""The database is opened, waited for, given up in time, and used again when it comes back."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from serving.ledger import Claim, Ledger
from sparsecbm.errors import SetupError, UnavailableError
from tests.postgres import PostgreSQL, running
from tests.serving.entries import ORIGIN, all_ids, entry, go, writer
from tests.serving.entries import acknowledged as acknowledged_by

LATER = "predictions go on"


@pytest.fixture
def open_ledger() -> Iterator[Callable[..., Ledger]]:
    """Opens ledgers, by URL and options, that are closed at the end."""
    opened: list[Ledger] = []

    def open(url: str | Path, **options: float) -> Ledger:
        ledger = Ledger(f"sqlite:///{url}" if isinstance(url, Path) else url, **options)  # type: ignore[arg-type]
        opened.append(ledger)
        return ledger

    yield open
    for ledger in opened:
        ledger.close()


Open = Callable[..., Ledger]


# URLs


@pytest.mark.parametrize(
    "bad",
    [
        *("", "ledger.db", "nosuchdatabase:///ledger", "sqlite+nosuchdriver:///ledger.db", "mysql://host/ledger"),
        *("sqlite://", "sqlite:///:memory:", "postgresql+psycopg2://host/ledger"),
    ],
)
def test_url_of_nothing_that_keeps_a_ledger_is_refused(bad: str) -> None:
    with pytest.raises(SetupError, match="ledger's URL"):
        Ledger(bad)


def test_refused_url_is_not_repeated() -> None:
    with pytest.raises(SetupError) as refused:
        Ledger("nosuchdatabase://user:secret@host/ledger")
    assert "secret" not in refused.value.message


def test_folder_of_the_file_is_made(open_ledger: Open, tmp_path: Path) -> None:
    assert open_ledger(tmp_path / "a" / "b" / "ledger.db").count() == 0


# What is acknowledged is on the disk


def test_sqlite_writes_ahead_and_waits_for_the_disk(open_ledger: Open, tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db").database.open() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL


@pytest.mark.parametrize(("of_server", "ours"), [("off", "on"), ("local", "local"), ("on", "on")])
def test_postgresql_commits_at_least_to_its_own_disk(
    open_ledger: Open, postgresql: PostgreSQL, of_server: str, ours: str
) -> None:
    url = f"{postgresql.create()}%20-csynchronous_commit%3D{of_server}"
    with open_ledger(url).database.open(write=True) as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == ours


# A database that is away


def test_database_in_a_file_that_is_none_is_unavailable(open_ledger: Open, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("no database, but more than a header's worth of text" * 20)
    with pytest.raises(UnavailableError):
        open_ledger(tmp_path / "ledger.db").record([entry()], ORIGIN)


def test_database_below_a_file_is_unavailable(open_ledger: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="can't be written"):
        open_ledger(tmp_path / "file" / "ledger.db").record([entry()], ORIGIN)


@pytest.mark.parametrize("use", [Ledger.count, lambda ledger: ledger.record([entry()], ORIGIN)], ids=["read", "write"])
def test_failure_says_that_predictions_go_on_and_when_to_come_again(
    open_ledger: Open, tmp_path: Path, use: Callable[[Ledger], object]
) -> None:
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(UnavailableError, match=LATER) as failed:
        use(open_ledger(tmp_path / "ledger.db"))
    assert failed.value.detail["retry_after_s"] >= 1


def test_failure_does_not_name_the_database(open_ledger: Open) -> None:
    with pytest.raises(UnavailableError) as failed:
        open_ledger("postgresql://user:secret@127.0.0.1:1/ledger").count()
    assert "secret" not in failed.value.message and "127.0.0.1" not in failed.value.message


def test_file_that_comes_back_is_used_again(open_ledger: Open, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    ledger = open_ledger(tmp_path / "ledger.db")
    with pytest.raises(UnavailableError):
        ledger.count()
    (tmp_path / "ledger.db").rmdir()
    assert ledger.count() == 0


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_nothing_is_acknowledged_into_a_file_that_is_gone(open_ledger: Open, tmp_path: Path, replaced: bool) -> None:
    restored = open_ledger(tmp_path / "restored.db")
    restored.prepare()
    restored.close()
    ledger = open_ledger(tmp_path / "ledger.db")
    ledger.record([entry("before")], ORIGIN)
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"ledger.db{end}").unlink()
    if replaced:
        (tmp_path / "restored.db").rename(tmp_path / "ledger.db")
    ids: list[str] = []
    for _ in range(2):  # the first may find no tables
        with suppress(UnavailableError):
            ids += ledger.record([entry("after")], ORIGIN)
    ledger.close()
    assert ids
    assert all_ids(open_ledger(tmp_path / "ledger.db")) == ids[::-1]


def test_tables_that_went_are_made_again(open_ledger: Open, postgresql: PostgreSQL) -> None:
    url = postgresql.create()
    ledger = open_ledger(url)
    ledger.record([entry()], ORIGIN)
    schema = url.rpartition("%3D")[2]
    with postgresql.connect() as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE; CREATE SCHEMA {schema}".encode())
    with pytest.raises(UnavailableError):
        ledger.count()
    assert ledger.count() == 0


# Waiting


def test_write_waits_for_another_writer(open_ledger: Open, tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "ledger.db")
    ledger.prepare()
    other = sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.rollback)
    timer.start()
    assert ledger.record([entry()], ORIGIN)
    timer.join()
    other.close()


def test_new_database_waits_for_whoever_turns_it_to_wal(open_ledger: Open, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False)
    other.execute("CREATE TABLE other (id)")
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.3, other.rollback)
    timer.start()
    assert open_ledger(tmp_path / "ledger.db").record([entry()], ORIGIN)
    timer.join()
    other.close()


@pytest.fixture
def held(ledger_url: str, open_ledger: Open) -> Iterator[Ledger]:
    """A ledger with a timeout of 0.3 s, in which another program writes without end."""
    ledger, other = open_ledger(ledger_url, timeout=0.3), open_ledger(ledger_url)
    ledger.prepare()
    with other.database.open(write=True) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE interventions"))
        yield ledger


def test_other_writers_are_waited_for_as_long_as_the_timeout_says(held: Ledger) -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="nothing was recorded"):
        held.record([entry()], ORIGIN)
    assert time.monotonic() - started > 0.25


@pytest.mark.anyio
async def test_event_loop_goes_on_while_a_write_waits(held: Ledger) -> None:
    turns = 0
    write = asyncio.create_task(held.database.run(held.record, [entry()], ORIGIN))
    while not write.done():
        turns += 1
        await asyncio.sleep(0.01)
    with pytest.raises(UnavailableError):
        await write
    assert turns > 5


@pytest.mark.anyio
async def test_call_is_given_up_in_the_time_allowed_and_says_what_is_not_known(
    open_ledger: Open, tmp_path: Path
) -> None:
    database = open_ledger(tmp_path / "ledger.db").database
    release = threading.Event()
    with pytest.raises(UnavailableError, match="may or may not be recorded"):
        await database.run(release.wait, within=0.05)
    release.set()


def test_commit_that_broke_off_says_that_the_outcome_is_not_known(
    open_ledger: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path / "ledger.db")
    ledger.prepare()
    engine = ledger.database._engine

    def lose(connection: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(engine.dialect, "do_commit", lose)
    with pytest.raises(UnavailableError, match="may or may not be recorded"):
        ledger.record([entry()], ORIGIN)


# PostgreSQL, killed and halted


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgreSQL]:
    with running() as server:
        yield server


def test_nothing_acknowledged_is_lost_when_postgresql_is_killed_while_it_writes(
    open_ledger: Open, mortal: PostgreSQL
) -> None:
    url = mortal.create()
    open_ledger(url).prepare()
    writers = [writer(url, 100_000) for _ in range(2)]
    for process in writers:
        go(process)
    acknowledged: list[str] = []
    for process in writers:
        assert process.stdout is not None
        acknowledged += [process.stdout.readline().strip() for _ in range(20)]
    mortal.kill()
    for process in writers:
        acknowledged += acknowledged_by(process)
        assert process.returncode != 0  # its last write failed
    mortal.start()
    ledger = open_ledger(url)
    found = all_ids(ledger)
    assert set(acknowledged) <= set(found)
    # At most the one that each had under way is there without having been acknowledged.
    assert len(found) - len(acknowledged) <= 2
    assert [len(one.concepts) for one in ledger.corrections("tiny")] == [2] * len(found)


def test_postgresql_that_comes_back_is_used_again(open_ledger: Open, mortal: PostgreSQL) -> None:
    ledger = open_ledger(mortal.create())
    ids = ledger.record([entry()], ORIGIN)
    mortal.kill()
    with pytest.raises(UnavailableError):
        ledger.record([entry()], ORIGIN)
    mortal.start()
    ids += ledger.record([entry()], ORIGIN)
    assert all_ids(ledger) == ids[::-1]


def test_killed_connection_costs_no_correction(open_ledger: Open, mortal: PostgreSQL) -> None:
    ledger = open_ledger(mortal.create())
    ledger.record([entry()], ORIGIN)
    with mortal.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = user"
        )
    ledger.record([entry()], ORIGIN)
    assert ledger.count() == 2


@pytest.mark.anyio
async def test_halted_postgresql_is_given_up_and_used_again_when_it_goes_on(
    open_ledger: Open, mortal: PostgreSQL
) -> None:
    ledger = open_ledger(mortal.create(), pool=1, timeout=0.3, connect_timeout=0.3)
    claim = Claim("key", "0" * 64)
    assert await ledger.database.answers(5)
    mortal.signal(signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="may or may not be recorded"):
        await ledger.database.run(ledger.record_once, [entry()], ORIGIN, claim, lambda ids: b"answer")
    assert not await ledger.database.answers(0.05)
    mortal.signal(signal.SIGCONT)
    # What was given up came to its end, or does now; sent again with its key it is there once.
    for _ in range(100):
        if await ledger.database.answers(1):
            break
    answer = await ledger.database.run(ledger.record_once, [entry()], ORIGIN, claim, lambda ids: b"answer")
    assert (answer, ledger.count()) == (b"answer", 1)
