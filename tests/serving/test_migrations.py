"""Older ledgers are upgraded, newer ones refused, and programs that start together do it once."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, make_url, text

from serving import migrations
from serving.ledger import Claim, Ledger
from serving.tables import REVISION, REVISION_TABLE, metadata
from sparsecbm.errors import SetupError, UnavailableError
from tests.serving.entries import ORIGIN, all_ids, entry

CLAIM = Claim("key", "0" * 64)
IDS = ("01a211fc-1e4e-7309-8dca-651dc99a815b", "01a211fc-1e4e-7376-b466-e3e926a55be9")
ANSWER = (
    '{"label":{"value":"1","probability":0.75},"probabilities":{"1":0.75,"2":0.25},"concepts":[],"ask_next":[],'
    '"truncated":false}'
)
OUTCOME = (
    f'{{"level":"%s","corrections":{{"%s":"Positive"}},"reached":true,"before":{ANSWER},"after":{ANSWER},'
    '"flipped":{"label":%s,"concepts":["service"]},"edits":[]}'
)
# What the program before Alembic wrote, as a dump of its database shows it.
BEFORE_ALEMBIC = (
    "CREATE TABLE ledger_schema (version INTEGER NOT NULL, PRIMARY KEY (version))",
    "INSERT INTO ledger_schema VALUES (1)",
    "CREATE TABLE interventions (id VARCHAR(36) NOT NULL, created_at TIMESTAMP NOT NULL, model VARCHAR(128) NOT NULL, "
    "version VARCHAR(64) NOT NULL, level VARCHAR(16) NOT NULL, text TEXT NOT NULL, note TEXT, outcome TEXT NOT NULL, "
    "PRIMARY KEY (id))",
    "CREATE TABLE corrections (concept VARCHAR(128) NOT NULL, intervention_id VARCHAR(36) NOT NULL, "
    "value VARCHAR(128) NOT NULL, PRIMARY KEY (concept, intervention_id), "
    "FOREIGN KEY(intervention_id) REFERENCES interventions (id))",
    f"INSERT INTO interventions VALUES ('{IDS[0]}', '2026-11-25 09:14:25.230225', 'tiny', '0123', 'concept', 'rude', "
    f"NULL, '{OUTCOME % ('concept', 'food', 'true')}')",
    f"INSERT INTO interventions VALUES ('{IDS[1]}', '2026-11-25 09:14:25.230225', 'tiny', '4567', 'mask', 'Café', "
    f"'why', '{OUTCOME % ('mask', 'service', 'false')}')",
    f"INSERT INTO corrections VALUES ('food', '{IDS[0]}', 'Positive')",
    f"INSERT INTO corrections VALUES ('service', '{IDS[1]}', 'Positive')",
)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def database(ledger_url: str) -> Iterator[Engine]:
    """The same database, without a ledger in between."""
    url = make_url(ledger_url)
    engine = create_engine(url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url)
    yield engine
    engine.dispose()


@pytest.fixture
def old(database: Engine) -> None:
    """Puts a ledger of the program before Alembic there."""
    kind = "DATETIME" if database.name == "sqlite" else "TIMESTAMP"
    with database.begin() as connection:
        for statement in BEFORE_ALEMBIC:
            connection.exec_driver_sql(statement.replace("TIMESTAMP", kind))


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def revisions(database: Engine) -> list[str]:
    with database.connect() as connection:
        return list(connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalars())


def test_newest_migration_is_the_revision_that_the_tables_name() -> None:
    folder = Path(migrations.__file__).parent
    config = Config()
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def differences(database: Engine) -> list[object]:
    """Between the database and the tables that the program knows."""
    with database.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": REVISION_TABLE, "compare_server_default": True}
        )
        return list(compare_metadata(context, metadata))


def test_migrations_end_with_the_tables_that_the_program_knows(ledger: Ledger, database: Engine) -> None:
    ledger.prepare()
    assert differences(database) == []


@pytest.mark.usefixtures("old")
class TestLedgerOfTheProgramBeforeAlembic:
    def test_is_upgraded(self, ledger: Ledger, database: Engine) -> None:
        ledger.prepare()
        assert revisions(database) == [REVISION]
        assert differences(database) == []

    def test_keeps_its_interventions(self, ledger: Ledger) -> None:
        records = [ledger.get(id) for id in IDS]
        assert [record.text for record in records] == ["rude", "Café"]
        assert [record.note for record in records] == [None, "why"]
        assert [record.outcome.corrections for record in records] == [{"food": "Positive"}, {"service": "Positive"}]
        assert [record.created_at.isoformat() for record in records] == ["2026-11-25T09:14:25.230225+00:00"] * 2

    def test_says_what_was_true_of_them_then(self, ledger: Ledger) -> None:
        first, second = (ledger.get(id) for id in IDS)
        assert (first.who, first.mask_version, first.text_sha256) == ("anonymous", "0123", sha256("rude"))
        assert (second.who, second.mask_version, second.text_sha256) == ("anonymous", "4567", sha256("Café"))

    def test_knows_which_labels_flipped(self, ledger: Ledger, database: Engine) -> None:
        ledger.prepare()
        with database.connect() as connection:
            found = connection.execute(text("SELECT id, label_flipped FROM interventions ORDER BY id")).all()
        assert [(id, bool(flipped)) for id, flipped in found] == [(IDS[0], True), (IDS[1], False)]

    def test_keeps_its_corrections(self, ledger: Ledger) -> None:
        assert [(one.text, one.concepts) for one in ledger.corrections("tiny")] == [
            ("rude", {"food": "Positive"}),
            ("Café", {"service": "Positive"}),
        ]

    def test_takes_new_interventions_and_keys(self, ledger: Ledger) -> None:
        ledger.record_once([entry("new")], ORIGIN, CLAIM, lambda ids: b"answer")
        assert all_ids(ledger)[1:] == list(IDS[::-1])
        assert ledger.answered(ORIGIN.who, CLAIM) == b"answer"

    def test_is_newer_than_that_program_knows(self, ledger: Ledger, database: Engine) -> None:
        ledger.prepare()
        with database.connect() as connection:
            # That program refuses a ledger whose highest version here is above 1.
            assert connection.execute(text("SELECT max(version) FROM ledger_schema")).scalar() == 2

    def test_is_left_as_it_was_when_the_upgrade_fails(
        self, ledger: Ledger, database: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        upgrade = migrations.upgrade

        def fail(connection: object) -> None:
            upgrade(connection)  # type: ignore[arg-type]
            raise OSError("the machine fell over")

        monkeypatch.setattr(migrations, "upgrade", fail)
        with pytest.raises(UnavailableError):
            ledger.prepare()
        with database.connect() as connection:
            assert connection.execute(text("SELECT max(version) FROM ledger_schema")).scalar() == 1
            assert connection.execute(text("SELECT count(*) FROM interventions WHERE text = 'rude'")).scalar() == 1
        monkeypatch.undo()
        assert ledger.count() == 2


def prepare(url: str, start: object, done: object) -> None:
    ledger = Ledger(url)
    start.wait()  # type: ignore[attr-defined]
    ledger.prepare()
    done.put(ledger.count())  # type: ignore[attr-defined]
    ledger.close()


@pytest.mark.usefixtures("old")
def test_programs_that_start_together_upgrade_once(ledger_url: str, database: Engine) -> None:
    spawning = multiprocessing.get_context("spawn")
    start, done = spawning.Barrier(3), spawning.Queue()
    processes = [spawning.Process(target=prepare, args=(ledger_url, start, done)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [done.get(timeout=10) for _ in processes] == [2, 2, 2]
    assert revisions(database) == [REVISION]


def test_preparing_twice_changes_nothing(ledger: Ledger) -> None:
    ledger.prepare()
    ledger.record([entry()], ORIGIN)
    ledger.prepare()
    assert ledger.count() == 1


NEWER = {
    "with Alembic": f"UPDATE {REVISION_TABLE} SET version_num = '99'",
    "before Alembic": f"DROP TABLE {REVISION_TABLE}",
}


@pytest.fixture(params=NEWER)
def newer(request: pytest.FixtureRequest, ledger_url: str, database: Engine) -> None:
    """Puts a ledger there that a program of schema version 99 wrote."""
    first = Ledger(ledger_url)
    first.prepare()
    first.close()
    with database.begin() as connection:
        connection.execute(text("UPDATE ledger_schema SET version = 99"))
        connection.execute(text(NEWER[request.param]))


@pytest.mark.usefixtures("newer")
def test_newer_ledger_is_refused_at_the_start(ledger: Ledger) -> None:
    with pytest.raises(SetupError, match="schema version 99, and this program knows versions up to 2"):
        ledger.prepare()


@pytest.mark.usefixtures("newer")
def test_newer_ledger_is_never_written(ledger: Ledger) -> None:
    with pytest.raises(UnavailableError, match="schema version 99"):
        ledger.record([entry()], ORIGIN)
