"""The ledger in real databases, SQLite and PostgreSQL: what it keeps, gives back, lists, and answers again."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone

import pytest

from serving.ledger import Claim, Correction, Entry, Filter, Ledger, Origin
from sparsecbm.errors import ConflictError, InputError, NotFoundError, UnavailableError
from tests.serving.entries import ORIGIN, entry, go, writer
from tests.serving.entries import acknowledged as acknowledged_by
from tests.serving.entries import all_ids as all_ids_of

CLAIM = Claim("key", "0" * 64)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def listed(ledger: Ledger, only: Filter) -> list[str]:
    return [record.id for record in ledger.page(100, only=only).interventions]


def joined(ids: Sequence[str]) -> bytes:
    return " ".join(ids).encode()


# Recording


@pytest.mark.parametrize(
    "text", ["Das Café 🍝\n was rude", "\0", "a\x1a\0b\x1a\x1a0", "'; DROP TABLE interventions; --"]
)
def test_recorded_entry_is_read_back(ledger: Ledger, text: str) -> None:
    given = entry(text, "mask", f"seen 'it' \"myself\": {text}", service="Negative")
    [id] = ledger.record([given], Origin("ada", "tiny", "0123", "4567"))
    record = ledger.get(id)
    assert (record.text, record.note, record.outcome) == (given.text, given.note, given.outcome)
    assert (record.id, record.who, record.model) == (id, "ada", "tiny")
    assert (record.version, record.mask_version) == ("0123", "4567")


def test_texts_hash_is_kept_beside_it(ledger: Ledger) -> None:
    [id] = ledger.record([entry("Café")], ORIGIN)
    assert ledger.get(id).text_sha256 == hashlib.sha256("Café".encode()).hexdigest()


def test_text_is_kept_as_its_hash_alone_where_the_setting_says_so(hashing: Ledger) -> None:
    [id] = hashing.record([entry("Café", note="seen")], ORIGIN)
    record = hashing.get(id)
    assert (record.text, record.text_sha256) == (None, hashlib.sha256("Café".encode()).hexdigest())
    assert record.note == "seen"


def test_time_is_the_recordings_in_utc(ledger: Ledger) -> None:
    before = time.time()
    [id] = ledger.record([entry()], ORIGIN)
    created = ledger.get(id).created_at
    assert created.utcoffset() == timedelta(0)
    assert before - 1e-3 <= created.timestamp() <= time.time()


def test_entry_outlives_the_process(ledger: Ledger, ledger_url: str) -> None:
    [id] = ledger.record([entry()], ORIGIN)
    ledger.close()
    later = Ledger(ledger_url)
    assert later.get(id).text == "rude"
    later.close()


@pytest.mark.parametrize("id", ["0198c0de-0000-7000-8000-000000000000", "\0", "a" * 5000, "' OR 1=1 --"])
def test_unknown_id_is_not_found(ledger: Ledger, id: str) -> None:
    ledger.record([entry()], ORIGIN)
    with pytest.raises(NotFoundError):
        ledger.get(id)


def test_ids_sort_by_time(ledger: Ledger) -> None:
    ids = ledger.record([entry() for _ in range(300)], ORIGIN) + ledger.record([entry()], ORIGIN)
    assert ids == sorted(set(ids))


def test_ids_of_several_threads_differ(ledger: Ledger) -> None:
    ids: list[str] = []
    ledger.prepare()
    threads = [threading.Thread(target=lambda: ids.extend(ledger.record([entry()] * 20, ORIGIN))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 80 == ledger.count()


def test_count_is_of_entries(ledger: Ledger) -> None:
    ledger.record([entry(food="Positive", noise="Negative"), entry()], ORIGIN)
    assert ledger.count() == 2


def test_entries_are_recorded_all_or_none(ledger: Ledger) -> None:
    half = entry()
    half.outcome.level = None  # type: ignore[assignment]
    with pytest.raises(UnavailableError):
        ledger.record([entry(), half], ORIGIN)
    assert ledger.count() == 0


def test_processes_that_write_at_once_lose_nothing(ledger: Ledger, ledger_url: str) -> None:
    writers = [writer(ledger_url, 25) for _ in range(3)]  # into tables that none has made yet
    for process in writers:
        go(process)
    acknowledged = [id for process in writers for id in acknowledged_by(process)]
    assert len(acknowledged) == 75 and all_ids_of(ledger) == sorted(acknowledged, reverse=True)


def test_killed_writer_leaves_what_was_acknowledged_and_no_half_entry(ledger: Ledger, ledger_url: str) -> None:
    process = writer(ledger_url, 100_000)
    assert process.stdout is not None
    go(process)
    acknowledged = [process.stdout.readline().strip() for _ in range(20)]
    process.kill()
    acknowledged += acknowledged_by(process)
    found = all_ids_of(ledger)
    assert set(acknowledged) <= set(found)
    made = [one.concepts for one in ledger.corrections("tiny")]
    assert made == [{"food": "Positive", "noise": "Negative"}] * len(found)
    assert ledger.record([entry()], ORIGIN)


# Pages


def test_page_is_newest_first(ledger: Ledger) -> None:
    ids = ledger.record([entry(str(number)) for number in range(5)], ORIGIN)
    page = ledger.page(10)
    assert [record.id for record in page.interventions] == ids[::-1]
    assert page.next is None


def test_pages_hold_every_entry_once(ledger: Ledger) -> None:
    ids = ledger.record([entry() for _ in range(7)], ORIGIN)
    first = ledger.page(3)
    second = ledger.page(3, first.next)
    third = ledger.page(3, second.next)
    paged = [record.id for page in (first, second, third) for record in page.interventions]
    assert paged == ids[::-1] and third.next is None


def test_full_last_page_has_no_next(ledger: Ledger) -> None:
    ledger.record([entry() for _ in range(3)], ORIGIN)
    assert ledger.page(3).next is None


def test_entry_recorded_meanwhile_shifts_no_page(ledger: Ledger) -> None:
    ids = ledger.record([entry() for _ in range(4)], ORIGIN)
    first = ledger.page(2)
    ledger.record([entry()], ORIGIN)
    assert [record.id for record in ledger.page(2, first.next).interventions] == ids[1::-1]


@pytest.mark.parametrize("after", ["", "next", "a" * 21, "a" * 23, "é" * 22, "0198c0de-0000-7000-8000-000000000000"])
def test_cursor_of_no_page_is_refused(ledger: Ledger, after: str) -> None:
    with pytest.raises(InputError, match="'next'"):
        ledger.page(1, after)


FILTERS: dict[str, tuple[Entry, Origin, Filter]] = {
    "concept": (entry(food="Negative", noise="Positive"), ORIGIN, Filter(concept="food")),
    "level": (entry(level="mask"), ORIGIN, Filter(level="mask")),
    "label flipped": (entry(flips=True), ORIGIN, Filter(label_flipped=True)),
    "who": (entry(), Origin("ada", "tiny", "0", "0"), Filter(who="ada")),
    "version": (entry(), Origin("anonymous", "tiny", "1", "0"), Filter(version="1")),
    "mask version": (entry(), Origin("anonymous", "tiny", "0", "1"), Filter(mask_version="1")),
}


@pytest.mark.parametrize(("given", "origin", "only"), FILTERS.values(), ids=FILTERS.keys())
def test_filter_gives_what_it_asks_for(ledger: Ledger, given: Entry, origin: Origin, only: Filter) -> None:
    ledger.record([entry()], ORIGIN)
    ids = ledger.record([given], origin)
    ledger.record([entry()], ORIGIN)
    assert listed(ledger, only) == ids


def test_unflipped_labels_are_filtered_too(ledger: Ledger) -> None:
    ids = ledger.record([entry(), entry(flips=True)], ORIGIN)
    assert listed(ledger, Filter(label_flipped=False)) == ids[:1]


def test_filters_hold_together(ledger: Ledger) -> None:
    ids = ledger.record([entry(food="Positive"), entry(level="mask", food="Positive"), entry(level="mask")], ORIGIN)
    assert listed(ledger, Filter(concept="food", level="mask")) == ids[1:2]


def test_filters_are_paged(ledger: Ledger) -> None:
    ids = ledger.record([entry(food="Positive"), entry(noise="Positive")] * 3, ORIGIN)
    only = Filter(concept="food")
    first = ledger.page(2, only=only)
    second = ledger.page(2, first.next, only)
    assert [record.id for page in (first, second) for record in page.interventions] == ids[4::-2]


@pytest.mark.parametrize("concept", ["nothing", "' OR 1=1 --", "%", "\0"])
def test_page_of_an_unknown_concept_is_empty(ledger: Ledger, concept: str) -> None:
    ledger.record([entry()], ORIGIN)
    assert listed(ledger, Filter(concept=concept)) == []


def test_since_holds_its_moment_and_until_does_not(ledger: Ledger) -> None:
    first, second, third = (ledger.get(*ledger.record([entry()], ORIGIN)) for _ in range(3))
    assert first.created_at < second.created_at < third.created_at
    only = Filter(since=second.created_at, until=third.created_at)
    assert listed(ledger, only) == [second.id]


def test_times_of_another_zone_are_the_same_moments(ledger: Ledger) -> None:
    [id] = ledger.record([entry()], ORIGIN)
    there = ledger.get(id).created_at.astimezone(timezone(timedelta(hours=-9)))
    assert listed(ledger, Filter(since=there)) == [id]


def test_times_before_and_after_all_time_leave_nothing_out(ledger: Ledger) -> None:
    [id] = ledger.record([entry()], ORIGIN)
    first = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
    last = datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
    assert listed(ledger, Filter(since=first, until=last)) == [id]


# Idempotency keys


def test_first_request_with_a_key_has_no_answer_yet(ledger: Ledger) -> None:
    assert ledger.answered("ada", CLAIM) is None


def test_answer_is_kept_with_what_was_recorded(ledger: Ledger, ledger_url: str) -> None:
    answer = ledger.record_once([entry(), entry()], ORIGIN, CLAIM, joined)
    ledger.close()
    later = Ledger(ledger_url)
    assert later.answered(ORIGIN.who, CLAIM) == answer == joined(all_ids_of(later)[::-1])
    later.close()


def test_key_recorded_before_records_nothing_more(ledger: Ledger) -> None:
    answer = ledger.record_once([entry()], ORIGIN, CLAIM, joined)
    assert ledger.record_once([entry()], ORIGIN, CLAIM, joined) == answer
    assert ledger.count() == 1


@pytest.mark.parametrize(
    "again",
    [
        lambda ledger, claim: ledger.answered(ORIGIN.who, claim),
        lambda ledger, claim: ledger.record_once([entry()], ORIGIN, claim, joined),
    ],
    ids=["asked", "recorded"],
)
def test_key_with_another_body_is_a_conflict(ledger: Ledger, again: Callable[[Ledger, Claim], object]) -> None:
    ledger.record_once([entry()], ORIGIN, CLAIM, joined)
    with pytest.raises(ConflictError, match="another body"):
        again(ledger, Claim(CLAIM.key, "1" * 64))
    assert ledger.count() == 1


def test_keys_are_their_callers_own(ledger: Ledger) -> None:
    first = ledger.record_once([entry()], ORIGIN, CLAIM, joined)
    second = ledger.record_once([entry()], Origin("ada", "tiny", "0", "0"), CLAIM, joined)
    assert first != second and ledger.count() == 2


def test_requests_with_one_key_at_once_are_one(ledger: Ledger) -> None:
    ledger.prepare()
    start = threading.Barrier(8)
    answers: list[bytes] = []

    def request() -> None:
        start.wait()
        answers.append(ledger.record_once([entry()], ORIGIN, CLAIM, joined))

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [joined(all_ids_of(ledger))] * 8


def test_key_is_free_again_when_nothing_was_recorded(ledger: Ledger) -> None:
    half = entry()
    half.outcome.level = None  # type: ignore[assignment]
    with pytest.raises(UnavailableError):
        ledger.record_once([half], ORIGIN, CLAIM, joined)
    assert ledger.answered(ORIGIN.who, CLAIM) is None


# Corrections


def test_corrections_are_a_models_oldest_first(ledger: Ledger) -> None:
    ledger.record([entry("first", food="Positive", noise="Negative")], ORIGIN)
    ledger.record([entry("other")], Origin("anonymous", "other", "0", "0"))
    ledger.record([entry("second", food="Negative")], ORIGIN)
    made = [(one.text, one.concepts) for one in ledger.corrections("tiny")]
    assert made == [("first", {"food": "Positive", "noise": "Negative"}), ("second", {"food": "Negative"})]


def test_more_corrections_than_are_read_at_once_are_all_given(ledger: Ledger) -> None:
    ledger.record([entry(str(number)) for number in range(1001)], ORIGIN)
    assert [one.text for one in ledger.corrections("tiny")] == [str(number) for number in range(1001)]


def test_correction_of_a_text_not_kept_has_its_hash(hashing: Ledger) -> None:
    hashing.record([entry("rude")], ORIGIN)
    [one] = hashing.corrections("tiny")
    assert one == Correction(None, hashlib.sha256(b"rude").hexdigest(), {"service": "Negative"})


def test_models_are_those_that_were_corrected(ledger: Ledger) -> None:
    for model in ("tiny", "other", "tiny"):
        ledger.record([entry()], Origin("anonymous", model, "0", "0"))
    assert ledger.models() == ["other", "tiny"]
