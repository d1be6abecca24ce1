"""Two replicas: their metrics are one, and one that is killed under load costs no acknowledged correction."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import START_S, Server, launching, wait_for

pytestmark = pytest.mark.slow

REVIEW = "the pasta was tasty , the waiter was rude ."
TOGETHER = 8
ROUTE = 'sparsecbm_requests_total{{code="{}",route="{}"}}'


def ask(server: Server, path: str, body: object) -> httpx.Response | None:
    """The answer; None where the connection was closed without one.

    HAProxy does that where the connection to a replica that it had kept open turns out dead: a client may try again.
    """
    try:
        return server.post(path, body)
    except httpx.RemoteProtocolError:
        return None


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Server]:
    with launching(tmp_path_factory.mktemp("pair")) as launcher:
        yield launcher.start(bundle, "--replicas=2", "--threads=1")


@dataclass
class Killed:
    """What happened while a replica was killed under load."""

    answers: list[httpx.Response]
    dropped: int
    before: set[int]
    after: set[int]


@pytest.fixture(scope="module")
def killed(pair: Server) -> Killed:
    before = pair.replicas()
    victim = min(before)
    body = {"inputs": [{"text": REVIEW, "corrections": {"food": "Negative"}}]}

    def correct(turn: int) -> httpx.Response | None:
        if turn == 40:
            os.kill(victim, signal.SIGKILL)
        return ask(pair, "/v1/intervene", body)

    with ThreadPoolExecutor(TOGETHER) as pool:
        asked = list(pool.map(correct, range(120)))
    answers = [answer for answer in asked if answer is not None]
    wait_for("a new replica runs", lambda: len(pair.replicas() - {victim}) == 2, START_S)
    wait_for("two replicas are live", lambda: pair.metrics().get("sparsecbm_replicas") == 2, START_S)
    return Killed(answers, len(asked) - len(answers), before, pair.replicas())


def test_both_replicas_are_live(pair: Server) -> None:
    assert len(pair.replicas()) == 2
    assert pair.metrics()["sparsecbm_replicas"] == 2


def test_every_scrape_shows_the_exact_sum_over_both(pair: Server) -> None:
    predictions = ROUTE.format(200, "/v1/predict")

    def counted() -> tuple[float, float, float]:
        shown = pair.metrics()
        by_label = sum(value for name, value in shown.items() if name.startswith("sparsecbm_predictions_total"))
        return shown.get(predictions, 0), by_label, shown["sparsecbm_queue_duration_seconds_count"]

    before = counted()
    with ThreadPoolExecutor(TOGETHER) as pool:
        assert set(pool.map(lambda _: len(pair.predict(REVIEW, REVIEW)["predictions"]), range(60))) == {2}
    # A connection of its own per scrape, so that both replicas are asked.
    after = {counted() for _ in range(8)}
    assert after == {(before[0] + 60, before[1] + 120, before[2] + 60)}


def test_both_replicas_take_part(pair: Server) -> None:
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(lambda _: pair.predict(REVIEW), range(60)))
    [metrics] = pair.scratch.glob("sparsecbm-*/metrics")
    written = {int(path.stem.rpartition("_")[2]) for path in metrics.glob("counter_*.db")}
    assert pair.replicas() <= written


def test_killed_replica_is_replaced(killed: Killed) -> None:
    assert len(killed.after) == 2
    assert len(killed.after & killed.before) == 1


def test_killed_replicas_failures_are_503_in_our_shape(killed: Killed) -> None:
    for answer in killed.answers:
        if answer.status_code != 200:
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["type"] == "unavailable"
            assert answer.headers["retry-after"] == "1"


def test_killed_replica_fails_only_what_it_was_doing(killed: Killed) -> None:
    refused = sum(answer.status_code != 200 for answer in killed.answers)
    assert refused + killed.dropped <= TOGETHER


def test_killed_replica_loses_no_acknowledged_correction(pair: Server, killed: Killed) -> None:
    acknowledged = {answer.json()["interventions"][0]["id"] for answer in killed.answers if answer.status_code == 200}
    kept: set[str] = set()
    page: dict[str, str | int] = {"limit": 100}
    while True:
        answer = pair.get("/v1/interventions", **page)
        kept |= {entry["id"] for entry in answer["interventions"]}
        if answer["next"] is None:
            break
        page["after"] = answer["next"]
    assert acknowledged
    assert acknowledged <= kept


def test_killed_replicas_counts_stay(pair: Server, killed: Killed) -> None:
    acknowledged = sum(answer.status_code == 200 for answer in killed.answers)
    counted = pair.metrics()[ROUTE.format(200, "/v1/intervene")]
    # It may have counted an answer that it was killed before it sent.
    assert acknowledged <= counted <= len(killed.answers) + killed.dropped


def test_no_replica_left_is_503_in_our_shape_until_one_is_back(pair: Server, killed: Killed) -> None:
    for replica in pair.replicas():
        os.kill(replica, signal.SIGKILL)
    answers: list[httpx.Response | None] = []

    def answered() -> bool:
        answers.append(ask(pair, "/v1/predict", {"inputs": [REVIEW]}))
        return answers[-1] is not None and answers[-1].status_code == 200

    wait_for("a prediction is answered", answered, START_S)
    for answer in answers[:-1]:
        if answer is not None:
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["type"] == "unavailable", answer.text
