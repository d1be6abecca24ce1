"""Deadlines: 504 after them, and nothing begun that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serving.contract import Answer, Explain
from serving.engine import Engine
from serving.ledger import Entry, Ledger, Origin
from tests.serving.conftest import error

pytestmark = pytest.mark.anyio

BODY = {"inputs": ["fish"]}
CORRECTION = {"inputs": [{"text": "fish", "corrections": {"food": "Negative"}}]}


class Gate:
    """Stands before an engine; while it is shut, predictions wait at it."""

    def __init__(self, engine: Engine) -> None:
        self._predict = engine.predict
        self.open = threading.Event()
        self.seen: list[str] = []

    def predict(self, texts: Sequence[str], explain: Sequence[Explain]) -> list[Answer]:
        self.seen += texts
        assert self.open.wait(20)
        return self._predict(texts, explain)


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(engine)
    monkeypatch.setattr(engine, "predict", gate.predict)
    yield gate
    gate.open.set()


async def ask(client: httpx.AsyncClient, body: Any, path: str = "/v1/predict", **headers: str) -> httpx.Response:
    return await client.post(
        path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


async def busy(client: httpx.AsyncClient, gate: Gate) -> asyncio.Task[httpx.Response]:
    """Has the engine stand at the gate with a first request."""
    task = asyncio.create_task(ask(client, {"inputs": ["first"]}))
    while not gate.seen:
        await asyncio.sleep(0.01)
    return task


async def test_request_that_waits_past_its_time_is_answered_and_never_begun(
    client: httpx.AsyncClient, gate: Gate
) -> None:
    first = await busy(client, gate)
    late = error(await ask(client, BODY, x_request_timeout="0.2"), 504, "deadline_exceeded")
    assert late["detail"] == {"timeout_s": 0.2} and "0.2 s" in late["message"]
    gate.open.set()
    assert (await first).status_code == 200
    assert (await ask(client, {"inputs": ["last"]})).status_code == 200
    assert gate.seen == ["first", "last"]


async def test_request_that_runs_past_its_time_is_answered(client: httpx.AsyncClient, gate: Gate) -> None:
    error(await ask(client, BODY, x_request_timeout="0.2"), 504, "deadline_exceeded")


async def test_protocols_request_has_its_time_too(client: httpx.AsyncClient, gate: Gate) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["fish"]}
    answer = await ask(client, {"inputs": [tensor]}, "/v2/models/tiny-reviews/infer", x_request_timeout="0.2")
    assert answer.status_code == 504 and set(answer.json()) == {"error"}


async def test_texts_that_left_the_queue_are_counted(client: httpx.AsyncClient, gate: Gate) -> None:
    first = await busy(client, gate)
    await ask(client, {"inputs": ["fish", "soup"]}, x_request_timeout="0.1")
    gate.open.set()
    await first
    assert "sparsecbm_cancelled_texts_total 2.0" in (await client.get("/metrics")).text


async def test_client_that_leaves_takes_its_work_out_of_the_queue(client: httpx.AsyncClient, gate: Gate) -> None:
    first = await busy(client, gate)
    leaving = asyncio.create_task(ask(client, BODY))
    await asyncio.sleep(0.1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    gate.open.set()
    await first
    await ask(client, {"inputs": ["last"]})
    assert gate.seen == ["first", "last"]


async def test_body_that_does_not_come_in_time_is_answered(client: httpx.AsyncClient) -> None:
    async def slow() -> Any:
        yield b'{"inputs": '
        await asyncio.sleep(20)

    headers = {"content-type": "application/json", "x-request-timeout": "0.2"}
    error(await client.post("/v1/predict", content=slow(), headers=headers), 504, "deadline_exceeded")


async def test_correction_that_is_being_recorded_is_not_broken_off(
    client: httpx.AsyncClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Ledger.record

    def slow(self: Ledger, entries: Sequence[Entry], origin: Origin) -> list[str]:
        time.sleep(1)
        return record(self, entries, origin)

    monkeypatch.setattr(Ledger, "record", slow)
    answer = await ask(client, CORRECTION, "/v1/intervene", x_request_timeout="0.9")
    assert answer.status_code == 200
    assert ledger.get(answer.json()["interventions"][0]["id"]).text == "fish"


@pytest.mark.parametrize("header", ["0", "-1", "nan", "inf", "soon", "", "1e999", "5 s"])
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/model"])
async def test_time_that_is_none_is_refused(client: httpx.AsyncClient, header: str, path: str) -> None:
    answer = await client.request(
        "GET" if path == "/v1/model" else "POST", path, json=BODY, headers={"x-request-timeout": header}
    )
    assert "X-Request-Timeout" in error(answer, 422, "invalid_input")["message"]


@pytest.fixture
def hasty(settings: Any) -> Any:
    return settings.model_copy(update={"request_timeout": 0.2, "max_request_timeout": 0.3})


@pytest.mark.parametrize(
    ("headers", "seconds"), [({}, 0.2), ({"x_request_timeout": "5"}, 0.3)], ids=["default", "most"]
)
async def test_settings_bound_the_time(
    app: FastAPI, client: httpx.AsyncClient, gate: Gate, hasty: Any, headers: dict[str, str], seconds: float
) -> None:
    object.__setattr__(app.state.services, "settings", hasty)
    assert error(await ask(client, BODY, **headers), 504, "deadline_exceeded")["detail"] == {"timeout_s": seconds}
