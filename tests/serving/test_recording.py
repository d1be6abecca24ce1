"""Corrections over HTTP: by whom, once for each key, waiting for the database without holding up anybody else."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.contract import InterventionRecord
from serving.engine import Engine
from serving.ledger import Ledger

pytestmark = pytest.mark.anyio

TASTY = "the pasta was tasty , the waiter was rude ."
CORRECTION: dict[str, Any] = {"text": TASTY, "corrections": {"food": "Negative"}}
KEY = {"Idempotency-Key": "01a211e4-5645-7156-a2ab-59359c51ea5e"}


def body(*inputs: dict[str, Any], **fields: object) -> dict[str, Any]:
    return {"inputs": inputs or [CORRECTION], **fields}


async def intervene(
    client: httpx.AsyncClient, *inputs: dict[str, Any], headers: dict[str, str] | None = None, **fields: object
) -> httpx.Response:
    answer = await client.post("/v1/intervene", json=body(*inputs, **fields), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def listed(client: httpx.AsyncClient, **query: str) -> list[str]:
    answer = await client.get("/v1/interventions", params=query)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["interventions"]]


# What is recorded


async def test_record_names_the_corrector_and_what_answered(client: httpx.AsyncClient, engine: Engine) -> None:
    [answered] = (await intervene(client)).json()["interventions"]
    record = InterventionRecord.model_validate((await client.get(f"/v1/interventions/{answered['id']}")).json())
    assert (record.who, record.model) == ("anonymous", "tiny-reviews")
    assert (record.version, record.mask_version) == (engine.manifest.version,) * 2


async def test_listing_is_filtered_by_what_the_query_says(client: httpx.AsyncClient, engine: Engine) -> None:
    noise = {"text": TASTY, "corrections": {"noise": "Positive"}, "level": "mask"}
    flips = [item["flipped"]["label"] for item in (await intervene(client, CORRECTION, noise)).json()["interventions"]]
    first, second = reversed(await listed(client))
    assert await listed(client, concept="food") == [first]
    assert await listed(client, level="mask") == [second]
    assert len(await listed(client, label_flipped="true")) == sum(flips)
    assert len(await listed(client, label_flipped="false")) == 2 - sum(flips)
    assert len(await listed(client, who="anonymous")) == 2 and await listed(client, who="ada") == []
    version = engine.manifest.version
    assert len(await listed(client, version=version, mask_version=version)) == 2
    assert await listed(client, version="0") == [] == await listed(client, mask_version="0")


async def test_listing_is_filtered_by_time(client: httpx.AsyncClient, ledger: Ledger) -> None:
    [answered] = (await intervene(client)).json()["interventions"]
    made = ledger.get(answered["id"]).created_at
    later = made + timedelta(microseconds=1)
    assert await listed(client, since=made.isoformat(), until=later.isoformat()) == [answered["id"]]
    assert await listed(client, since=later.isoformat()) == [] == await listed(client, until=made.isoformat())


@pytest.mark.parametrize(
    "query",
    [
        {"since": "yesterday"},
        {"since": "2026-01-31T12:00:00"},  # of which zone?
        {"until": "0.5"},
        {"label_flipped": "maybe"},
        {"after": "01a211e4-5645-7156-a2ab-59359c51ea5e"},
    ],
)
async def test_query_that_makes_no_sense_is_refused(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    answer = await client.get("/v1/interventions", params=query)
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_input")


# Idempotency keys


async def test_request_sent_again_with_its_key_gets_the_first_answer(client: httpx.AsyncClient, ledger: Ledger) -> None:
    inputs = [{**CORRECTION, "id": "mine", "level": "mask", "note": "cold"}, CORRECTION]
    first = await intervene(client, *inputs, headers=KEY)
    again = await intervene(client, *inputs, headers=KEY)
    assert again.content == first.content
    assert ledger.count() == 2


async def test_answer_with_a_key_is_that_without_one(client: httpx.AsyncClient) -> None:
    with_key, without = await intervene(client, headers=KEY), await intervene(client)
    ids = [answer.json()["interventions"][0]["id"] for answer in (with_key, without)]
    assert with_key.text.replace(ids[0], ids[1]) == without.text


async def test_requests_at_once_with_one_key_are_one(client: httpx.AsyncClient, ledger: Ledger) -> None:
    answers = await asyncio.gather(*(intervene(client, headers=KEY) for _ in range(4)))
    assert len({answer.content for answer in answers}) == 1
    assert ledger.count() == 1


async def test_key_with_another_body_is_a_conflict(client: httpx.AsyncClient, ledger: Ledger) -> None:
    await intervene(client, headers=KEY)
    other = body({**CORRECTION, "corrections": {"food": "Positive"}})
    answer = await client.post("/v1/intervene", json=other, headers=KEY)
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "conflict")
    assert ledger.count() == 1


async def test_same_body_in_other_white_space_is_the_same(client: httpx.AsyncClient, ledger: Ledger) -> None:
    first = await intervene(client, headers=KEY)
    spaced = f' {{"inputs" : [{{"text": "{TASTY}", "corrections": {{"food":\n"Negative"}}}}]}}'
    headers = {**KEY, "Content-Type": "application/json"}
    again = await client.post("/v1/intervene", content=spaced, headers=headers)
    assert again.content == first.content and ledger.count() == 1


async def test_refused_request_leaves_its_key_free(client: httpx.AsyncClient, ledger: Ledger) -> None:
    refused = await client.post("/v1/intervene", json={"inputs": []}, headers=KEY)
    assert refused.status_code == 422
    await intervene(client, {**CORRECTION, "text": ""}, headers=KEY)  # whose only input fails
    await intervene(client, headers=KEY)
    assert ledger.count() == 1


async def test_input_that_failed_fails_again_beside_what_was_recorded(
    client: httpx.AsyncClient, ledger: Ledger
) -> None:
    inputs = [{**CORRECTION, "text": ""}, CORRECTION]
    first, again = [await intervene(client, *inputs, headers=KEY) for _ in range(2)]
    assert again.content == first.content
    failed, answered = again.json()["interventions"]
    assert failed["error"]["type"] == "invalid_input" and ledger.get(answered["id"]).text == TASTY


async def test_key_has_no_effect_where_nothing_is_recorded(client: httpx.AsyncClient, ledger: Ledger) -> None:
    await intervene(client, headers=KEY, record=False)
    await intervene(client, headers=KEY)
    assert ledger.count() == 1


@pytest.mark.parametrize("key", ["", "a b", "a" * 256, "é"])
async def test_key_of_other_characters_is_refused(client: httpx.AsyncClient, ledger: Ledger, key: str) -> None:
    answer = await client.post("/v1/intervene", json=body(), headers=[(b"idempotency-key", key.encode("latin-1"))])
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_input")
    assert ledger.count() == 0


async def test_key_is_described(client: httpx.AsyncClient) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"]["/v1/intervene"]["post"]
    assert "Idempotency-Key" in [parameter.get("name") for parameter in operation["parameters"]]
    assert "409" in operation["responses"]


# A database that is held, and one that is away


@pytest.fixture
def held(ledger: Ledger, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's hold on the ledger, until it is rolled back."""
    ledger.prepare()
    other = sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


async def test_predictions_are_answered_while_a_correction_waits_for_the_ledger(
    client: httpx.AsyncClient, held: sqlite3.Connection
) -> None:
    waiting = asyncio.create_task(intervene(client))
    for _ in range(5):
        assert (await client.post("/v1/predict", json={"inputs": ["fish"]})).status_code == 200
    assert not waiting.done()
    held.rollback()
    assert (await waiting).json()["interventions"][0]["id"]


async def test_ledger_that_is_up_is_said_to_be(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ready", "ledger": "up"}


async def test_ledger_that_is_away_is_said_to_be(client: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "ledger": "away"})


@pytest.mark.parametrize("headers", [{}, KEY], ids=["without key", "with key"])
async def test_correction_while_the_ledger_is_away_is_told_when_to_come_again(
    client: httpx.AsyncClient, tmp_path: Path, headers: dict[str, str]
) -> None:
    (tmp_path / "ledger.db").mkdir()
    answer = await client.post("/v1/intervene", json=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert "predictions go on" in answer.json()["error"]["message"]
