"""An acknowledged correction outlives replicas, servers and databases that are killed while they write."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.ledger import Ledger
from tests.postgres import PostgreSQL, running
from tests.server.conftest import START_S, Server, launching, wait_for

pytestmark = pytest.mark.slow

BUNDLE = Path(__file__).parents[2] / "models/restaurant-reviews"
REVIEW = (
    "We waited forty minutes for a table although we had booked. The risotto was wonderful, creamy and rich, "
    "but our waiter was rude and the room so loud that we could hardly talk."
)
LEVELS = ("concept", "mask")


@dataclass
class Lives:
    """What a server said before it was killed, and the one after it on the same state."""

    label: str
    corrected: dict[str, Any]  # by level
    metrics: dict[str, float]
    after: Server


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    with launching(tmp_path_factory.mktemp("lives")) as launcher:
        before = launcher.start(BUNDLE)
        [read] = before.predict(REVIEW)["predictions"]
        service = next(concept for concept in read["concepts"] if concept["name"] == "service")
        other = "Positive" if service["value"] == "Negative" else "Negative"
        corrected = {
            level: before.intervene(REVIEW, "service", other, level, f"corrected at {level} level") for level in LEVELS
        }
        metrics = before.metrics()
        before.kill()
        assert before.processes() == []
        yield Lives(read["label"]["value"], corrected, metrics, launcher.start(BUNDLE))


def test_prediction_is_counted(lives: Lives) -> None:
    assert lives.metrics[f'sparsecbm_predictions_total{{label="{lives.label}"}}'] == 1


@pytest.mark.parametrize("level", LEVELS)
def test_correction_is_counted_by_concept_level_and_outcome(lives: Lives, level: str) -> None:
    outcome = "reached" if lives.corrected[level]["reached"] else "missed"
    counted = {
        name: value
        for name, value in lives.metrics.items()
        if name.startswith("sparsecbm_interventions_total") and f'level="{level}"' in name
    }
    assert counted == {f'sparsecbm_interventions_total{{concept="service",level="{level}",outcome="{outcome}"}}': 1}


def test_correction_at_concept_level_sets_the_concept(lives: Lives) -> None:
    assert lives.corrected["concept"]["flipped"]["concepts"] == ["service"]


def test_correction_at_mask_level_edits_units_of_the_concept(lives: Lives) -> None:
    edits = lives.corrected["mask"]["edits"]
    assert {edit["concept"] for edit in edits} == {"service"}


def test_killed_servers_corrections_are_in_the_ledger_newest_first(lives: Lives) -> None:
    page = lives.after.get("/v1/interventions")
    assert [entry["id"] for entry in page["interventions"]] == [lives.corrected[level]["id"] for level in LEVELS[::-1]]


@pytest.mark.parametrize("level", LEVELS)
def test_killed_servers_correction_is_found_by_its_id(lives: Lives, level: str) -> None:
    said = lives.corrected[level]
    entry = lives.after.get(f"/v1/interventions/{said['id']}")
    assert entry["text"] == REVIEW
    assert entry["note"] == f"corrected at {level} level"
    assert entry["outcome"] == {name: value for name, value in said.items() if name not in ("id", "input_id")}


def test_killed_servers_corrections_await_promotion(lives: Lives) -> None:
    assert lives.after.metrics()["sparsecbm_corrections_awaiting_promotion"] == len(LEVELS)


# While they write


@dataclass
class Recorders:
    """Clients that correct one text after another, each with a key of its own, until they are stopped.

    What is not acknowledged they send again with its key. Keys are the texts.
    """

    server: Server
    acknowledged: dict[str, str] = field(default_factory=dict)  # the id, by key
    failures: Counter[str] = field(default_factory=Counter)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def work(self, name: str) -> None:
        number = 0
        while not self._stopped.is_set():
            number += self.send(f"{name} {number}")

    def send(self, key: str) -> bool:
        """Whether the correction was acknowledged."""
        body = {"inputs": [{"text": key, "corrections": {"service": "Negative"}}]}
        headers = {"Idempotency-Key": key.replace(" ", "-")}
        try:
            answer = httpx.post(f"{self.server.url}/v1/intervene", json=body, headers=headers, timeout=30)
        except httpx.TransportError as error:
            self.failures[type(error).__name__] += 1
        else:
            if answer.status_code == 200:
                self.acknowledged[key] = answer.json()["interventions"][0]["id"]
                return True
            self.failures[str(answer.status_code)] += 1
        time.sleep(0.05)
        return False

    def wait_for_more(self, count: int = 20) -> None:
        wanted = len(self.acknowledged) + count
        wait_for("more corrections are acknowledged", lambda: len(self.acknowledged) >= wanted, START_S)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._stopped.clear()
        names = [f"client {number} since {time.monotonic_ns()} :" for number in range(4)]
        threads = [threading.Thread(target=self.work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()


def recorded(url: str) -> dict[str, list[str]]:
    """The ids in a ledger, by text."""
    ledger = Ledger(url)
    found: dict[str, list[str]] = {}
    after = None
    while True:
        page = ledger.page(100, after)
        for record in page.interventions:
            found.setdefault(str(record.text), []).append(record.id)
        after = page.next
        if after is None:
            ledger.close()
            return found


def lost(recorders: Recorders, found: dict[str, list[str]]) -> list[str]:
    """Keys that were acknowledged, and whose correction is not in the ledger by that id alone."""
    return [key for key, id in recorders.acknowledged.items() if found.get(key) != [id]]


@dataclass
class Struck:
    """What clients were told, and what the ledger holds, after a replica and then the whole server were killed."""

    recorders: Recorders
    after_replica: dict[str, list[str]]
    after_server: dict[str, list[str]]
    told_again: dict[str, str]


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Struck]:
    with launching(tmp_path_factory.mktemp("struck")) as launcher:
        url = f"sqlite:///{launcher.state / 'ledger.db'}"
        server = launcher.start(bundle, "--replicas=2")
        recorders = Recorders(server)
        with recorders.running():
            recorders.wait_for_more()
            replicas = server.replicas()
            os.kill(min(replicas), signal.SIGKILL)
            recorders.wait_for_more()
            wait_for("the replica is replaced", lambda: len(server.replicas() - replicas) == 1, START_S)
            recorders.wait_for_more()
        after_replica = recorded(url)
        with recorders.running():
            recorders.wait_for_more()
            server.kill()
        before = dict(recorders.acknowledged)
        after_server = recorded(url)
        recorders.server = launcher.start(bundle)
        for key in [*after_server][:20]:
            assert recorders.send(key)
        told_again = {key: recorders.acknowledged[key] for key in [*after_server][:20]}
        recorders.acknowledged = before
        yield Struck(recorders, after_replica, after_server, told_again)


def test_no_acknowledged_correction_is_lost_with_a_replica_that_is_killed(struck: Struck) -> None:
    assert lost(struck.recorders, struck.after_server) == []
    assert struck.after_replica.items() <= struck.after_server.items()


def test_no_acknowledged_correction_is_lost_with_a_server_that_is_killed(struck: Struck) -> None:
    assert len(struck.after_server) > len(struck.after_replica)
    assert lost(struck.recorders, struck.after_server) == []


def test_correction_that_was_sent_again_with_its_key_is_recorded_once(struck: Struck) -> None:
    assert struck.recorders.failures  # something was sent again
    assert {len(ids) for ids in struck.after_server.values()} == {1}


def test_next_server_gives_the_killed_ones_answers_again(struck: Struck) -> None:
    assert struck.told_again == {key: struck.after_server[key][0] for key in struck.told_again}


@dataclass
class Outage:
    """What a server said while its PostgreSQL, killed while it wrote, was away, and what it held when it was back."""

    predicted: int
    corrected: httpx.Response
    unrecorded: int
    ready: httpx.Response
    metrics: dict[str, float]
    ready_again: Any
    recorders: Recorders
    found: dict[str, list[str]]


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgreSQL]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory, bundle: Path, mortal: PostgreSQL) -> Iterator[Outage]:
    url = mortal.create()
    item = {"text": "the waiter was rude .", "corrections": {"service": "Positive"}}
    with launching(tmp_path_factory.mktemp("outage")) as launcher:
        server = launcher.start(bundle, f"--ledger={url}")
        recorders = Recorders(server)
        with recorders.running():
            recorders.wait_for_more()
            mortal.kill()
            wait_for("a correction is refused", lambda: recorders.failures["503"], START_S)
            predicted = server.post("/v1/predict", {"inputs": [item["text"]]}).status_code
            corrected = server.post("/v1/intervene", {"inputs": [item]})
            unrecorded = server.post("/v1/intervene", {"inputs": [item], "record": False}).status_code
            ready, metrics = httpx.get(f"{server.url}/readyz", timeout=60), server.metrics()
            mortal.start()
            recorders.wait_for_more()
        ready_again = server.get("/readyz")
        server.stop()
        yield Outage(predicted, corrected, unrecorded, ready, metrics, ready_again, recorders, recorded(url))


def test_predictions_go_on_while_postgresql_is_away(outage: Outage) -> None:
    assert outage.predicted == 200


def test_corrections_are_refused_with_the_time_to_come_again_while_postgresql_is_away(outage: Outage) -> None:
    assert outage.corrected.status_code == 503
    assert int(outage.corrected.headers["retry-after"]) >= 1
    assert "nothing was recorded; predictions go on" in outage.corrected.json()["error"]["message"]


def test_corrections_that_are_not_to_be_recorded_go_on_while_postgresql_is_away(outage: Outage) -> None:
    assert outage.unrecorded == 200


def test_server_is_ready_and_says_that_postgresql_is_away(outage: Outage) -> None:
    assert (outage.ready.status_code, outage.ready.json()) == (200, {"status": "ready", "ledger": "away"})
    assert outage.metrics["sparsecbm_ledger_up"] == 0


def test_server_finds_a_postgresql_that_is_back_by_itself(outage: Outage) -> None:
    assert outage.ready_again == {"status": "ready", "ledger": "up"}


def test_no_acknowledged_correction_is_lost_with_a_postgresql_that_is_killed(outage: Outage) -> None:
    assert lost(outage.recorders, outage.found) == []


def test_correction_sent_again_after_an_outage_is_recorded_once(outage: Outage) -> None:
    assert {len(ids) for ids in outage.found.values()} == {1}
