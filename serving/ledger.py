"""The ledger: the durable record of every intervention."""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select
from sqlalchemy.exc import IntegrityError

from serving.contract import InterventionPage, InterventionRecord, Level, Outcome
from serving.database import Database
from serving.ids import Ids
from serving.settings import Settings
from serving.tables import claims, corrections, interventions
from sparsecbm.errors import ConflictError, InputError, NotFoundError

CURSOR = "^[A-Za-z0-9_-]{22}$"
"""What a page's cursor looks like: an id in base64."""

_AT_ONCE = 1000
_ids = Ids()


@dataclass(frozen=True, slots=True)
class Entry:
    """One intervention to record."""

    text: str
    note: str | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Origin:
    """Who made interventions, and on what.

    Attributes:
        who: the name of the caller's key.
        model: name of the model.
        version: its version.
        mask_version: version of the masks that answered.
    """

    who: str
    model: str
    version: str
    mask_version: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request with an Idempotency-Key is known by: the key, and the body's sha256 in hex."""

    key: str
    body_sha256: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which interventions to list; None asks for nothing.

    Attributes:
        concept: that was corrected.
        level: of the intervention.
        label_flipped: whether the label changed.
        who: the name of the caller's key.
        since: the earliest time.
        until: the time before which they were recorded.
        version: of the model.
        mask_version: of the masks.
    """

    concept: str | None = None
    level: Level | None = None
    label_flipped: bool | None = None
    who: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    version: str | None = None
    mask_version: str | None = None


@dataclass(frozen=True, slots=True)
class Correction:
    """What a human said of one text; the text is None where only its sha256 was kept."""

    text: str | None
    text_sha256: str
    concepts: dict[str, str]


class Ledger:
    """The interventions in a database, which several processes may write at once.

    Its methods wait for the database; from an event loop they are called by `database.run`.

    Args:
        url: SQLAlchemy's URL of a SQLite or PostgreSQL database.
        store_texts: whether to keep texts themselves, or their sha256 alone.
        pool: most connections, and threads, to the database.
        timeout: seconds that a statement, or the wait for another writer, may take.
        connect_timeout: seconds that connecting may take.

    Raises:
        SetupError: the URL can't be used, or its driver is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        store_texts: bool = True,
        pool: int = 4,
        timeout: float = 5.0,
        connect_timeout: float = 2.0,
    ) -> None:
        self.database = Database(url, pool, timeout, connect_timeout)
        self._store_texts = store_texts

    def prepare(self) -> None:
        """Opens the ledger, makes its tables where they are missing, and upgrades an older one.

        Raises:
            SetupError: the ledger was written by a newer program.
            UnavailableError: the database can't be opened.
        """
        self.database.prepare()

    def close(self) -> None:
        """Closes all connections."""
        self.database.close()

    def record(self, entries: Sequence[Entry], origin: Origin) -> list[str]:
        """Keeps interventions, all of them or none.

        Returns:
            Their ids, which sort by time.

        Raises:
            UnavailableError: the ledger can't be written; says whether nothing was kept or that isn't known.
        """
        ids = [_ids.new() for _ in entries]
        with self.database.open(write=True) as connection:
            self._insert(connection, ids, entries, origin)
        return ids

    def record_once(
        self, entries: Sequence[Entry], origin: Origin, claim: Claim, write: Callable[[Sequence[str]], bytes]
    ) -> bytes:
        """Keeps interventions, and with them the answer to the request that asked for them.

        Args:
            entries: what to keep.
            origin: who asks; another caller's keys are others.
            claim: what the request is known by.
            write: makes the answer, given the ids.

        Returns:
            The answer, that of the first request with this key: where it came meanwhile, nothing more was kept.

        Raises:
            ConflictError: the caller sent the key with another body.
            UnavailableError: as `record`.
        """
        ids = [_ids.new() for _ in entries]
        answer = write(ids)
        row = {
            "who": origin.who,
            "key": claim.key,
            "created_at": _now(),
            "body_sha256": claim.body_sha256,
            "answer": answer,
        }
        try:
            with self.database.open(write=True) as connection:
                try:
                    connection.execute(insert(claims), row)
                except IntegrityError as error:
                    raise _TakenError from error
                self._insert(connection, ids, entries, origin)
        except _TakenError:
            answered = self.answered(origin.who, claim)
            assert answered is not None  # keys are never taken back
            return answered
        return answer

    def answered(self, who: str, claim: Claim) -> bytes | None:
        """The answer that a request of this caller got before, or None if there was none.

        Raises:
            ConflictError: the caller sent the key with another body.
            UnavailableError: the ledger can't be read.
        """
        query = select(claims).where(claims.c.who == who, claims.c.key == claim.key)
        with self.database.open() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.body_sha256 != claim.body_sha256:
            raise ConflictError(
                "The Idempotency-Key was sent before with another body, and was answered. Take a new key for a new "
                "request; to get the first one's answer, send its body again."
            )
        return bytes(row.answer)

    def get(self, id: str) -> InterventionRecord:
        """One intervention.

        Raises:
            NotFoundError: there is none of this id.
            UnavailableError: the ledger can't be read.
        """
        with self.database.open() as connection:
            row = connection.execute(select(interventions).where(interventions.c.id == id)).one_or_none()
        if row is None:
            raise NotFoundError("The ledger holds no intervention of this id; GET /v1/interventions lists them.")
        return _record(row)

    def page(self, limit: int, after: str | None = None, only: Filter | None = None) -> InterventionPage:
        """Interventions, newest first.

        Args:
            limit: most interventions to give.
            after: ``next`` of the page before this one.
            only: which to give.

        Raises:
            InputError: `after` is no page's ``next``.
            UnavailableError: the ledger can't be read.
        """
        query = _filtered(select(interventions), only or Filter())
        query = query.order_by(interventions.c.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(interventions.c.id < _from_cursor(after))
        with self.database.open() as connection:
            rows = connection.execute(query).all()
        records = [_record(row) for row in rows[:limit]]
        return InterventionPage(interventions=records, next=_cursor(records[-1].id) if len(rows) > limit else None)

    def count(self) -> int:
        """How many interventions it holds.

        Raises:
            UnavailableError: the ledger can't be read.
        """
        with self.database.open() as connection:
            return connection.execute(select(func.count()).select_from(interventions)).scalar_one()

    def models(self) -> list[str]:
        """Names of the models that were corrected, sorted.

        Raises:
            UnavailableError: the ledger can't be read.
        """
        model = interventions.c.model
        with self.database.open() as connection:
            return list(connection.execute(select(model).distinct().order_by(model)).scalars())

    def corrections(self, model: str) -> Iterator[Correction]:
        """All corrections of a model, oldest first, each as it was made.

        Raises:
            UnavailableError: the ledger can't be read.
        """
        last = ""
        columns = (interventions.c.id, interventions.c.text, interventions.c.text_sha256)
        query = select(*columns).where(interventions.c.model == model).order_by(interventions.c.id).limit(_AT_ONCE)
        while True:
            with self.database.open() as connection:
                rows = connection.execute(query.where(interventions.c.id > last)).all()
                said: dict[str, dict[str, str]] = {row.id: {} for row in rows}
                found = select(corrections).where(corrections.c.intervention_id.in_(list(said)))
                for one in connection.execute(found.order_by(corrections.c.concept)):
                    said[one.intervention_id][one.concept] = one.value
            if not rows:
                return
            yield from (Correction(row.text, row.text_sha256, said[row.id]) for row in rows)
            last = rows[-1].id

    def _insert(self, connection: Connection, ids: Sequence[str], entries: Sequence[Entry], origin: Origin) -> None:
        now = _now()
        rows = [
            {
                "id": id,
                "created_at": now,
                "who": origin.who,
                "model": origin.model,
                "version": origin.version,
                "mask_version": origin.mask_version,
                "level": entry.outcome.level,
                "text": entry.text if self._store_texts else None,
                "text_sha256": hashlib.sha256(entry.text.encode()).hexdigest(),
                "note": entry.note,
                "label_flipped": entry.outcome.flipped.label,
                "outcome": entry.outcome.model_dump_json(),
            }
            for id, entry in zip(ids, entries, strict=True)
        ]
        connection.execute(insert(interventions), rows)
        connection.execute(
            insert(corrections),
            [
                {"concept": concept, "intervention_id": id, "value": value}
                for id, entry in zip(ids, entries, strict=True)
                for concept, value in entry.outcome.corrections.items()
            ],
        )


def open_ledger(settings: Settings) -> Ledger:
    """The ledger that the server's settings name.

    Raises:
        SetupError: as `Ledger`.
    """
    return Ledger(
        settings.ledger_url,
        store_texts=settings.store_texts,
        pool=settings.ledger_pool,
        timeout=settings.ledger_timeout,
        connect_timeout=settings.ledger_connect_timeout,
    )


class _TakenError(Exception):
    """Another request with the same key was quicker."""


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:  # before or after all that there can be
        return datetime.min if time.year == 1 else datetime.max


def _filtered(query: Select[Any], only: Filter) -> Select[Any]:
    columns = interventions.c
    for name in ("level", "label_flipped", "who", "version", "mask_version"):
        wanted = getattr(only, name)
        if wanted is not None:
            query = query.where(columns[name] == wanted)
    if only.since is not None:
        query = query.where(columns.created_at >= _utc(only.since))
    if only.until is not None:
        query = query.where(columns.created_at < _utc(only.until))
    if only.concept is not None:
        query = query.join(corrections).where(corrections.c.concept == only.concept)
    return query


def _cursor(id: str) -> str:
    return base64.urlsafe_b64encode(uuid.UUID(id).bytes).decode().rstrip("=")


def _from_cursor(cursor: str) -> str:
    try:
        return str(uuid.UUID(bytes=base64.b64decode(f"{cursor}==", "-_", validate=True)))
    except (binascii.Error, ValueError) as error:
        raise InputError("'after' is no page's 'next'; leave it out for the first page.") from error


def _record(row: Row[Any]) -> InterventionRecord:
    return InterventionRecord(
        id=row.id,
        created_at=row.created_at.replace(tzinfo=UTC),
        who=row.who,
        model=row.model,
        version=row.version,
        mask_version=row.mask_version,
        text=row.text,
        text_sha256=row.text_sha256,
        note=row.note,
        outcome=Outcome.model_validate_json(row.outcome),
    )
