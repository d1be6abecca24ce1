"""The Python client: on the real application, and on servers that fail in every way."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Awaitable, Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from serving.client import (
    AnswerError,
    AsyncClient,
    Client,
    CorrectionInput,
    InterventionAnswer,
    NoAnswerError,
    Prediction,
    PredictionFailure,
    Retries,
    TextInput,
)
from serving.client.errors import ClientError
from serving.ledger import Ledger

TASTY = "the pasta was tasty , the waiter was rude ."
CORRECTION = CorrectionInput(text=TASTY, corrections={"food": "Negative"})
QUICK = Retries(attempts=3, base=0.001)
CARD = {"model": "m", "version": "v", "predictions": []}


class Script:
    """Answers requests by a list, the last entry again and again, and remembers them."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, **settings: Any) -> Client:
        return Client(transport=httpx.MockTransport(self), **{"retries": QUICK, **settings})

    def async_client(self, **settings: Any) -> AsyncClient:
        return AsyncClient(transport=httpx.MockTransport(self), **{"retries": QUICK, **settings})


def answer(status: int, content: Any = None, **headers: str) -> httpx.Response:
    error = {"error": {"type": "overloaded", "message": "Too much.", "detail": {"retry_after_s": 1}}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=error if content is None else content, headers=named)


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that clients take, without taking them."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(asyncio, "sleep", pause)
    return pauses


# On the real application


def test_sync_client_on_a_real_server(url: str, ledger: Ledger) -> None:
    with Client(url) as client:
        assert client.ready() and client.model().name == "tiny-reviews"
        answered = client.predict([TASTY, TextInput(id="mine", text=" ")], ["tokens"])
        first, failed = answered.predictions
        assert isinstance(first, Prediction) and first.concepts[0].tokens
        assert isinstance(failed, PredictionFailure) and (failed.id, failed.error.type) == ("mine", "invalid_input")
        [corrected] = client.intervene([CORRECTION]).interventions
        assert isinstance(corrected, InterventionAnswer) and corrected.id
        assert client.intervention(corrected.id).outcome.corrections == {"food": "Negative"}
        assert [item.id for item in client.interventions(concept="food").interventions] == [corrected.id]
    assert ledger.count() == 1


@pytest.mark.anyio
async def test_async_client_on_the_application(app: FastAPI, ledger: Ledger) -> None:
    async with AsyncClient("http://localhost", transport=httpx.ASGITransport(app=app)) as client:
        assert await client.ready() and (await client.model()).name == "tiny-reviews"
        first, failed = (await client.predict([TASTY, " "])).predictions
        assert isinstance(first, Prediction) and isinstance(failed, PredictionFailure)
        [corrected] = (await client.intervene([CORRECTION], record=False)).interventions
        assert isinstance(corrected, InterventionAnswer) and corrected.id is None
        assert (await client.interventions(level="mask")).interventions == []
        with pytest.raises(AnswerError) as refused:
            await client.intervention("0198c0de-0000-7000-8000-000000000000")
    assert (refused.value.status, refused.value.type) == (404, "not_found")
    assert ledger.count() == 0


def test_lone_text_is_one_input(url: str) -> None:
    with Client(url) as client:
        assert len(client.predict("fish").predictions) == 1


def test_refused_request_raises_the_servers_words(url: str) -> None:
    with Client(url) as client, pytest.raises(AnswerError) as refused:
        client.predict([])
    error = refused.value
    assert (error.status, error.type) == (422, "invalid_input")
    assert [item["at"] for item in error.detail] == ["inputs"]
    assert error.request_id and error.request_id in str(error) and error.message in str(error)


def test_documented_example_runs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/http.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    variables: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:8000", url), variables)
    assert "1 Input 1: the text is empty" in capsys.readouterr().out
    assert isinstance(variables["outcome"], InterventionAnswer)


# What is sent


def test_key_is_sent_as_a_bearer_token() -> None:
    script = Script(answer(200, CARD))
    script.client(api_key="secret").predict(["fish"])
    assert script.requests[0].headers["authorization"] == "Bearer secret"


def test_time_left_is_sent() -> None:
    script = Script(answer(200, CARD))
    script.client(timeout=7).predict(["fish"])
    assert 6 < float(script.requests[0].headers["x-request-timeout"]) <= 7


def test_every_intervention_has_a_key_of_its_own() -> None:
    script = Script(answer(200, {"model": "m", "version": "v", "interventions": []}))
    client = script.client()
    for _ in range(2):
        client.intervene([CORRECTION])
    client.intervene([CORRECTION], idempotency_key="mine")
    first, second, given_key = (request.headers["idempotency-key"] for request in script.requests)
    assert first != second and given_key == "mine"
    assert json.loads(script.requests[0].content)["inputs"][0]["corrections"] == {"food": "Negative"}


def test_identifier_is_one_part_of_the_path() -> None:
    script = Script(answer(404))
    with pytest.raises(AnswerError):
        script.client().intervention("../model?x")
    assert script.requests[0].url.raw_path == b"/v1/interventions/..%2Fmodel%3Fx"


# Again and again

Ask = Callable[[Script], Awaitable[None]]


async def ask_sync(script: Script) -> None:
    script.client().predict(["fish"])


async def ask_async(script: Script) -> None:
    await script.async_client().predict(["fish"])


ways = pytest.mark.parametrize("ask", [ask_sync, ask_async])


@pytest.mark.anyio
@ways
@pytest.mark.parametrize(
    "failure",
    [answer(429), answer(503), answer(502, "Bad Gateway"), httpx.ConnectError("refused"), httpx.ReadError("reset")],
    ids=["429", "503", "502", "refused", "reset"],
)
async def test_what_may_pass_is_tried_again(ask: Ask, failure: httpx.Response | Exception, paused: list[float]) -> None:
    script = Script(failure, failure, answer(200, CARD))
    await ask(script)
    assert len(script.requests) == 3 and len(paused) == 2


@pytest.mark.anyio
@ways
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500, 504])
async def test_what_does_not_pass_is_not_tried_again(ask: Ask, status: int, paused: list[float]) -> None:
    script = Script(answer(status))
    with pytest.raises(AnswerError):
        await ask(script)
    assert len(script.requests) == 1 and not paused


@pytest.mark.anyio
@ways
async def test_last_attempts_error_is_raised(ask: Ask, paused: list[float]) -> None:
    for failure, error in ((answer(503), AnswerError), (httpx.ConnectError("refused"), NoAnswerError)):
        script = Script(failure)
        with pytest.raises(error):
            await ask(script)
        assert len(script.requests) == 3


@pytest.mark.anyio
@ways
async def test_retry_after_is_respected(ask: Ask, paused: list[float]) -> None:
    await ask(Script(answer(429, retry_after="7"), answer(200, CARD)))
    assert 7 <= paused[0] <= 7 + QUICK.base


def test_intervention_is_sent_again_under_the_same_key(paused: list[float]) -> None:
    script = Script(httpx.ReadError("reset"), answer(200, {"model": "m", "version": "v", "interventions": []}))
    script.client().intervene([CORRECTION])
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert len(script.requests) == 2


def test_longer_wait_than_the_longest_is_an_error(paused: list[float]) -> None:
    script = Script(answer(503, retry_after="31"))
    with pytest.raises(AnswerError) as refused:
        script.client().predict(["fish"])
    assert refused.value.retry_after == 31 and len(script.requests) == 1


def test_no_wait_goes_beyond_the_timeout(paused: list[float]) -> None:
    script = Script(answer(503, retry_after="7"))
    with pytest.raises(AnswerError):
        script.client(timeout=5).predict(["fish"])
    assert len(script.requests) == 1 and not paused


@given(st.integers(1, 10), st.none() | st.integers(0, 60), st.floats(0.001, 2))
def test_pauses_keep_within_their_bounds(attempt: int, retry_after: int | None, base: float) -> None:
    error = ClientError()
    error.retry_after = retry_after
    pause = Retries(attempts=11, base=base, longest=30).pause(attempt, error)
    if pause is None:
        assert retry_after is not None and retry_after + min(30, base * 2 ** (attempt - 1)) > 30
    else:
        assert (retry_after or 0) <= pause <= min(30, (retry_after or 0) + base * 2 ** (attempt - 1))


def test_server_that_is_not_ready_is_asked_once() -> None:
    script = Script(answer(503))
    assert not script.client().ready()
    assert len(script.requests) == 1


@pytest.mark.parametrize("content", ["hello", {"predictions": 7}])
def test_answer_of_another_form_is_an_error(content: object) -> None:
    with pytest.raises(AnswerError, match="not of the server's form"):
        Script(answer(200, content)).client().predict(["fish"])


def test_client_loads_nothing_of_the_server() -> None:
    code = (
        "import sys, httpx, pydantic\n"
        "needed = set(sys.modules)\n"
        "import serving.client\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - needed})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    homes = packages_distributions()
    loaded = {home.lower() for name in done.stdout.split() for home in homes.get(name, [])}
    server = {re.split("[^A-Za-z0-9_-]", dependency)[0].lower() for dependency in project["dependencies"]}
    assert "serving" in done.stdout.split()
    assert loaded & (server | {"starlette", "uvicorn"}) <= {"pydantic"}
