"""The ledger in a real database, written by several processes and killed ones."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from serving.contract import Answer, Flipped, LabelAnswer, Level, Outcome
from serving.ledger import Entry, Ledger
from sparsecbm.errors import NotFoundError, SetupError, UnavailableError

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
sys.path.insert(0, {root!r})
from serving.contract import Answer, Flipped, LabelAnswer, Outcome
from serving.ledger import Entry, Ledger
answer = Answer(label=LabelAnswer(value="1", probability=1), probabilities=dict(), concepts=[], ask_next=[],
                truncated=False)
outcome = Outcome(level="mask", corrections=dict(food="Positive", noise="Negative"), reached=True, before=answer,
                  after=answer, flipped=Flipped(label=False, concepts=[]), edits=[])
ledger = Ledger({url!r})
print("ready", flush=True)
sys.stdin.readline()
for number in range({count}):
    [id] = ledger.record([Entry(f"text {{number}}", None, outcome)], "tiny", "0")
    print(id, flush=True)
"""


def entry(text: str = "rude", level: Level = "concept", note: str | None = None, **corrections: str) -> Entry:
    answer = Answer(
        label=LabelAnswer(value="1", probability=0.75),
        probabilities={"1": 0.75, "2": 0.25},
        concepts=[],
        ask_next=[],
        truncated=False,
    )
    outcome = Outcome(
        level=level,
        corrections=corrections or {"service": "Negative"},
        reached=True,
        before=answer,
        after=answer,
        flipped=Flipped(label=False, concepts=["service"]),
        edits=[],
    )
    return Entry(text, note, outcome)


def writer(url: str, count: int) -> subprocess.Popen[str]:
    """A process that is ready to record entries and to print the id of each that was acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(root=str(ROOT), url=url, count=count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def all_ids(ledger: Ledger, concept: str | None = None) -> list[str]:
    ids: list[str] = []
    after = None
    while True:
        page = ledger.page(100, after, concept)
        ids += [record.id for record in page.interventions]
        after = page.next
        if after is None:
            return ids


def test_recorded_entry_is_read_back(ledger: Ledger) -> None:
    given = entry("Das Café 🍝\n\0 was rude", "mask", "seen 'it' \"myself\"", service="Negative")
    [id] = ledger.record([given], "tiny", "0123")
    record = ledger.get(id)
    assert Entry(record.text, record.note, record.outcome) == given
    assert (record.id, record.model, record.version) == (id, "tiny", "0123")


def test_time_is_the_recordings_in_utc(ledger: Ledger) -> None:
    before = time.time()
    [id] = ledger.record([entry()], "tiny", "0")
    created = ledger.get(id).created_at
    assert created.utcoffset() is not None
    assert before - 1e-3 <= created.timestamp() <= time.time()


def test_entry_outlives_the_process(tmp_path: Path) -> None:
    first = Ledger(url(tmp_path / "ledger.db"))
    [id] = first.record([entry()], "tiny", "0")
    first.close()
    second = Ledger(url(tmp_path / "ledger.db"))
    assert second.get(id).text == "rude"
    second.close()


def test_folder_of_the_database_is_made(tmp_path: Path) -> None:
    ledger = Ledger(url(tmp_path / "a" / "b" / "ledger.db"))
    assert ledger.count() == 0
    ledger.close()


def test_unknown_id_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError):
        ledger.get("0198c0de-0000-7000-8000-000000000000")


def test_ids_are_uuids_of_version_7(ledger: Ledger) -> None:
    [id] = ledger.record([entry()], "tiny", "0")
    assert uuid.UUID(id).version == 7 and uuid.UUID(id).variant == uuid.RFC_4122


def test_ids_hold_the_time(ledger: Ledger) -> None:
    before = time.time_ns() // 1_000_000
    [id] = ledger.record([entry()], "tiny", "0")
    assert before <= uuid.UUID(id).int >> 80 <= time.time_ns() // 1_000_000 + 1


def test_ids_sort_by_time(ledger: Ledger) -> None:
    ids = ledger.record([entry() for _ in range(300)], "tiny", "0") + ledger.record([entry()], "tiny", "0")
    assert ids == sorted(set(ids))


def test_ids_of_several_threads_differ(ledger: Ledger) -> None:
    ids: list[str] = []
    ledger.prepare()
    threads = [
        threading.Thread(target=lambda: ids.extend(ledger.record([entry()] * 20, "tiny", "0"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 80 == ledger.count()


def test_page_is_newest_first(ledger: Ledger) -> None:
    ids = ledger.record([entry(str(number)) for number in range(5)], "tiny", "0")
    page = ledger.page(10)
    assert [record.id for record in page.interventions] == ids[::-1]
    assert page.next is None


def test_pages_hold_every_entry_once(ledger: Ledger) -> None:
    ids = ledger.record([entry() for _ in range(7)], "tiny", "0")
    first = ledger.page(3)
    second = ledger.page(3, first.next)
    third = ledger.page(3, second.next)
    paged = [record.id for page in (first, second, third) for record in page.interventions]
    assert paged == ids[::-1] and third.next is None


def test_full_last_page_has_no_next(ledger: Ledger) -> None:
    ledger.record([entry() for _ in range(3)], "tiny", "0")
    assert ledger.page(3).next is None


def test_entry_recorded_meanwhile_shifts_no_page(ledger: Ledger) -> None:
    ids = ledger.record([entry() for _ in range(4)], "tiny", "0")
    first = ledger.page(2)
    ledger.record([entry()], "tiny", "0")
    assert [record.id for record in ledger.page(2, first.next).interventions] == ids[1::-1]


def test_page_of_a_concept(ledger: Ledger) -> None:
    given = [entry(food="Positive"), entry(noise="Negative"), entry(food="Negative", noise="Positive")]
    ids = ledger.record(given, "tiny", "0")
    assert [record.id for record in ledger.page(10, concept="food").interventions] == [ids[2], ids[0]]


def test_page_of_a_level(ledger: Ledger) -> None:
    ids = ledger.record([entry(), entry(level="mask")], "tiny", "0")
    assert [record.id for record in ledger.page(10, level="mask").interventions] == [ids[1]]


def test_filters_are_paged(ledger: Ledger) -> None:
    ids = ledger.record([entry(food="Positive"), entry(noise="Positive")] * 3, "tiny", "0")
    first = ledger.page(2, concept="food")
    second = ledger.page(2, first.next, concept="food")
    assert [record.id for page in (first, second) for record in page.interventions] == ids[4::-2]


@pytest.mark.parametrize("concept", ["nothing", "' OR 1=1 --", "%"])
def test_page_of_an_unknown_concept_is_empty(ledger: Ledger, concept: str) -> None:
    ledger.record([entry()], "tiny", "0")
    assert ledger.page(10, concept=concept).interventions == []


def test_count_is_of_entries(ledger: Ledger) -> None:
    ledger.record([entry(food="Positive", noise="Negative"), entry()], "tiny", "0")
    assert ledger.count() == 2


def test_entries_are_recorded_all_or_none(ledger: Ledger) -> None:
    half = entry()
    half.outcome.level = None  # type: ignore[assignment]
    with pytest.raises(UnavailableError):
        ledger.record([entry(), half], "tiny", "0")
    assert ledger.count() == 0


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    database = url(tmp_path / "ledger.db")  # that none has made yet
    writers = [writer(database, 25) for _ in range(3)]
    for process in writers:
        go(process)
    acknowledged: list[str] = []
    for process in writers:
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        acknowledged += out.split()
    ledger = Ledger(database)
    assert len(acknowledged) == 75 and all_ids(ledger) == sorted(acknowledged, reverse=True)
    ledger.close()


def test_killed_writer_leaves_what_was_acknowledged_and_no_half_entry(tmp_path: Path) -> None:
    database = url(tmp_path / "ledger.db")
    process = writer(database, 100_000)
    assert process.stdin is not None and process.stdout is not None
    go(process)
    acknowledged = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    acknowledged += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    ledger = Ledger(database)
    found = all_ids(ledger)
    assert {id.strip() for id in acknowledged} <= set(found)
    assert all_ids(ledger, "food") == all_ids(ledger, "noise") == found
    assert ledger.record([entry()], "tiny", "0")
    ledger.close()


def test_database_in_a_file_that_is_none_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("no database, but more than a header's worth of text" * 20)
    ledger = Ledger(url(tmp_path / "ledger.db"))
    with pytest.raises(UnavailableError):
        ledger.record([entry()], "tiny", "0")
    ledger.close()


def test_database_below_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = Ledger(url(tmp_path / "file" / "ledger.db"))
    with pytest.raises(UnavailableError, match="can't be written"):
        ledger.record([entry()], "tiny", "0")
    ledger.close()


def test_read_failure_says_that_predictions_go_on(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    ledger = Ledger(url(tmp_path / "ledger.db"))
    with pytest.raises(UnavailableError, match="predictions go on"):
        ledger.count()
    ledger.close()


def test_database_that_comes_back_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    ledger = Ledger(url(tmp_path / "ledger.db"))
    with pytest.raises(UnavailableError):
        ledger.count()
    (tmp_path / "ledger.db").rmdir()
    assert ledger.count() == 0
    ledger.close()


def test_write_waits_for_another_writer(ledger: Ledger, tmp_path: Path) -> None:
    ledger.prepare()
    other = sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.rollback)
    timer.start()
    assert ledger.record([entry()], "tiny", "0")
    timer.join()
    other.close()


def test_new_database_waits_for_whoever_turns_it_to_wal(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False)
    other.execute("CREATE TABLE other (id)")
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.3, other.rollback)
    timer.start()
    ledger = Ledger(url(tmp_path / "ledger.db"))
    assert ledger.record([entry()], "tiny", "0")
    ledger.close()
    timer.join()
    other.close()


def newer(path: Path) -> Ledger:
    old = Ledger(url(path))
    old.prepare()
    old.close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO ledger_schema VALUES (99)")
    connection.close()
    return Ledger(url(path))


def test_newer_schema_is_refused_at_the_start(tmp_path: Path) -> None:
    ledger = newer(tmp_path / "ledger.db")
    with pytest.raises(SetupError, match="schema version 99"):
        ledger.prepare()
    ledger.close()


def test_newer_schema_is_never_written(tmp_path: Path) -> None:
    ledger = newer(tmp_path / "ledger.db")
    with pytest.raises(UnavailableError, match="schema version 99"):
        ledger.record([entry()], "tiny", "0")
    ledger.close()


def test_preparing_twice_changes_nothing(ledger: Ledger) -> None:
    ledger.prepare()
    ledger.record([entry()], "tiny", "0")
    ledger.prepare()
    assert ledger.count() == 1


@pytest.mark.parametrize("bad", ["", "ledger.db", "nosuchdatabase:///ledger", "sqlite+nosuchdriver:///ledger.db"])
def test_bad_url_is_refused(bad: str) -> None:
    with pytest.raises(SetupError, match="ledger's URL"):
        Ledger(bad)


def test_refused_url_is_not_repeated() -> None:
    with pytest.raises(SetupError) as refused:
        Ledger("nosuchdatabase://user:secret@host/ledger")
    assert "secret" not in refused.value.message
