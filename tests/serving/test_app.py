"""The whole application over the tiny bundle, spoken to as a client would, without a server in between."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from serving.contract import Answer, Explain
from serving.engine import Engine
from serving.ledger import Ledger
from tests.serving.conftest import error

pytestmark = pytest.mark.anyio

SECRET = "zyzzyva"
TASTY = "the pasta was tasty , the waiter was rude ."
CORRECTION: dict[str, Any] = {"text": TASTY, "corrections": {"food": "Negative"}}


async def post(client: httpx.AsyncClient, path: str, body: str | bytes, **headers: str) -> httpx.Response:
    return await client.post(path, content=body, headers={"content-type": "application/json", **headers})


async def intervene(client: httpx.AsyncClient, *inputs: dict[str, Any], **fields: object) -> list[dict[str, Any]]:
    answer = await client.post("/v1/intervene", json={"inputs": inputs, **fields})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["interventions"]
    return found


# Predictions


async def test_predictions_are_the_engines(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await client.post("/v1/predict", json={"inputs": [TASTY], "explain": ["tokens", "subnetwork"]})
    [expected] = engine.predict([TASTY], {"tokens", "subnetwork"})
    assert answer.status_code == 200
    assert answer.json() == {
        "model": "tiny-reviews",
        "version": engine.manifest.version,
        "predictions": [{**expected.model_dump(mode="json"), "id": "0"}],
    }


async def test_ids_are_echoed_or_the_positions(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/predict", json={"inputs": ["fish", {"id": "mine", "text": "soup"}, {"text": "a"}]})
    assert [item["id"] for item in answer.json()["predictions"]] == ["0", "mine", "2"]


async def test_text_of_any_script_comes_back_whole(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/predict", json={"inputs": ["🍝 שלום tasty"], "explain": ["tokens"]})
    tokens = answer.json()["predictions"][0]["concepts"][0]["tokens"]
    assert [token["text"] for token in tokens] == ["🍝", "שלום", "tasty"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_may_be_declared_in_several_ways(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/v1/predict", content='{"inputs": ["fish"]}', headers={"content-type": kind})
    assert answer.status_code == 200


# Interventions and the ledger


async def test_intervention_is_recorded_as_it_was_answered(client: httpx.AsyncClient) -> None:
    [answered] = await intervene(client, {**CORRECTION, "id": "mine", "level": "mask", "note": "cold"})
    record = (await client.get(f"/v1/interventions/{answered['id']}")).json()
    outcome = {key: value for key, value in answered.items() if key not in ("id", "input_id")}
    assert record["outcome"] == outcome
    assert (record["text"], record["note"], record["model"]) == (TASTY, "cold", "tiny-reviews")
    assert answered["input_id"] == "mine"


async def test_concept_level_answers_before_and_after(client: httpx.AsyncClient) -> None:
    [answered] = await intervene(client, CORRECTION)
    assert [answered[side]["concepts"][0]["value"] for side in ("before", "after")] == ["Positive", "Negative"]
    assert answered["flipped"]["concepts"] == ["food"]


async def test_unrecorded_intervention_leaves_the_ledger_empty(client: httpx.AsyncClient, ledger: Ledger) -> None:
    [answered] = await intervene(client, CORRECTION, record=False)
    assert answered["id"] is None and ledger.count() == 0


async def test_every_input_is_recorded(client: httpx.AsyncClient, ledger: Ledger) -> None:
    answered = await intervene(client, CORRECTION, {**CORRECTION, "level": "mask"}, CORRECTION)
    assert [ledger.get(item["id"]).outcome.level for item in answered] == ["concept", "mask", "concept"]


async def test_correction_of_an_unknown_concept_fails_alone(client: httpx.AsyncClient, ledger: Ledger) -> None:
    wrong = {"text": SECRET, "id": "mine", "corrections": {"ambiance": "Positive"}}
    failed, answered = await intervene(client, wrong, CORRECTION)
    assert set(failed) == {"input_id", "error"} and failed["input_id"] == "mine"
    assert failed["error"]["message"].startswith("Input 0: ") and "food, service, noise" in failed["error"]["message"]
    assert failed["error"]["detail"] == {"concept": "ambiance", "known": ["food", "service", "noise"]}
    assert SECRET not in json.dumps(failed)
    assert answered["input_id"] == "1" and ledger.get(answered["id"]).text == TASTY
    assert ledger.count() == 1


async def test_corrections_that_all_fail_record_nothing(client: httpx.AsyncClient, ledger: Ledger) -> None:
    [failed] = await intervene(client, {"text": TASTY, "corrections": {"food": "sour"}})
    assert failed["error"]["type"] == "invalid_input" and ledger.count() == 0


async def test_ledger_is_paged_newest_first(client: httpx.AsyncClient) -> None:
    ids = [item["id"] for item in await intervene(client, CORRECTION, CORRECTION, CORRECTION)]
    first = (await client.get("/v1/interventions", params={"limit": 2})).json()
    second = (await client.get("/v1/interventions", params={"limit": 2, "after": first["next"]})).json()
    assert [item["id"] for page in (first, second) for item in page["interventions"]] == ids[::-1]
    assert second["next"] is None


async def test_ledger_is_filtered(client: httpx.AsyncClient) -> None:
    noise = {"text": TASTY, "corrections": {"noise": "Positive"}, "level": "mask"}
    ids = [item["id"] for item in await intervene(client, CORRECTION, noise)]
    for params, expected in ({"concept": "food"}, ids[:1]), ({"level": "mask"}, ids[1:]):
        found = (await client.get("/v1/interventions", params=params)).json()["interventions"]
        assert [item["id"] for item in found] == expected


@pytest.mark.parametrize(
    "params", [{"limit": "0"}, {"limit": "101"}, {"limit": SECRET}, {"after": SECRET}, {"level": SECRET}]
)
async def test_wrong_query_is_refused(client: httpx.AsyncClient, params: dict[str, str]) -> None:
    error(await client.get("/v1/interventions", params=params), 422, "invalid_input")


@pytest.mark.parametrize("id", ["0198c0de-0000-7000-8000-000000000000", SECRET, "%00", "..%2f..", "a" * 5000])
async def test_unknown_intervention_is_not_found(client: httpx.AsyncClient, id: str) -> None:
    found = error(await client.get(f"/v1/interventions/{id}"), 404, "not_found")
    assert SECRET not in json.dumps(found)


# The rest of the interface


async def test_card_is_the_manifest_without_the_heads_weights(client: httpx.AsyncClient, engine: Engine) -> None:
    card = (await client.get("/v1/model")).json()
    assert (card["name"], card["version"]) == ("tiny-reviews", engine.manifest.version)
    assert card["bytes"] == sum(card["files"].values())
    assert card["limits"] == {
        "inputs": 4,
        "text_chars": 1000,
        "body_bytes": 20_000,
        "json_depth": 16,
        "timeout_s": 600,
    }
    assert "head" not in card


async def test_process_is_alive(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "alive"}


async def test_running_engine_is_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json()["status"] == "ready"


async def test_stopped_engine_is_alive_but_not_ready(client: httpx.AsyncClient, app: FastAPI) -> None:
    await app.state.services.batcher.stop()
    assert (await client.get("/healthz")).status_code == 200
    error(await client.get("/readyz"), 503, "unavailable")
    error(await client.post("/v1/predict", json={"inputs": ["fish"]}), 503, "unavailable")


async def test_metrics_count_what_was_answered(client: httpx.AsyncClient) -> None:
    await client.post("/v1/predict", json={"inputs": [TASTY, "fish"]})
    await intervene(client, CORRECTION)
    await client.get(f"/{SECRET}")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = [item for family in text_string_to_metric_families(answer.text) for item in family.samples]
    routes = {
        (item.labels["route"], item.labels["code"]): item.value
        for item in samples
        if item.name == "sparsecbm_requests_total"
    }
    assert routes == {("/v1/predict", "200"): 1, ("/v1/intervene", "200"): 1, ("unmatched", "404"): 1}
    assert sum(item.value for item in samples if item.name == "sparsecbm_predictions_total") == 2
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/", "/docs", "/console/console.js", "/docs/page/docs.js"])
async def test_pages_are_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/console/../app.py", "/console/%2e%2e/app.py", "/console/..%2fapp.py", "/console//etc/passwd"]
)
async def test_nothing_beside_the_pages_is_served(client: httpx.AsyncClient, path: str) -> None:
    error(await client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/v1/model", "/metrics", "/healthz", "/nothing", "/v1/predict"]
)
async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


# Errors


async def test_unknown_path_is_not_found(client: httpx.AsyncClient) -> None:
    found = error(await client.get(f"/{SECRET}"), 404, "not_found")
    assert SECRET not in json.dumps(found)


async def test_wrong_method_is_refused_with_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/predict")
    error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_foreign_host_is_refused(client: httpx.AsyncClient) -> None:
    error(await client.get("/v1/model", headers={"host": "evil.example"}), 403, "unknown_host")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
async def test_body_not_declared_as_json_is_refused(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/v1/predict", content='{"inputs": ["fish"]}', headers={"content-type": kind})
    error(answer, 415, "unsupported_media_type")


async def test_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/v1/predict", b"\x1f\x8b", **{"content-encoding": "gzip"})
    error(answer, 415, "unsupported_media_type")


async def test_large_body_is_refused(client: httpx.AsyncClient) -> None:
    found = error(await post(client, "/v1/predict", b" " * 20_001), 413, "too_large")
    assert found["detail"] == {"limit": 20_000}


async def test_large_body_of_undeclared_length_is_refused_while_it_comes(client: httpx.AsyncClient) -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 10_000

    answer = await client.post("/v1/predict", content=parts(), headers={"content-type": "application/json"})
    error(answer, 413, "too_large")
    assert sent == 3


@pytest.mark.parametrize("length", ["-1", "many", "9" * 5000], ids=["negative", "word", "long"])
async def test_length_that_is_none_fails_nothing(client: httpx.AsyncClient, length: str) -> None:
    answer = await post(client, "/v1/predict", '{"inputs": ["fish"]}', **{"content-length": length})
    assert answer.status_code in (200, 413)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/intervene"])
async def test_too_many_inputs_are_refused(client: httpx.AsyncClient, path: str) -> None:
    item: object = CORRECTION if path == "/v1/intervene" else "fish"
    found = error(await client.post(path, json={"inputs": [item] * 5}), 413, "too_large")
    assert found["detail"] == {"inputs": 5, "limit": 4}


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/intervene"])
async def test_long_text_fails_alone(client: httpx.AsyncClient, path: str) -> None:
    text = SECRET * 200
    items: list[object] = [{**CORRECTION, "text": text}, CORRECTION] if path == "/v1/intervene" else [text, "fish"]
    answer = await client.post(path, json={"inputs": items})
    assert answer.status_code == 200
    failed, answered = answer.json()["predictions" if path == "/v1/predict" else "interventions"]
    assert failed["error"]["type"] == "too_large"
    assert failed["error"]["detail"] == {"characters": 1400, "limit": 1000}
    assert "error" not in answered and SECRET not in json.dumps(failed)


@pytest.mark.parametrize("place", range(3))
async def test_empty_text_fails_alone_in_its_place(client: httpx.AsyncClient, place: int) -> None:
    texts = ["fish", "soup", "pasta"]
    expected = (await client.post("/v1/predict", json={"inputs": texts})).json()["predictions"]
    texts[place] = " \n"
    found = (await client.post("/v1/predict", json={"inputs": texts})).json()["predictions"]
    failed = found.pop(place)
    assert (failed["id"], failed["error"]["type"]) == (str(place), "invalid_input")
    assert failed["error"]["message"].startswith(f"Input {place}: the text is empty")
    assert [item["label"]["value"] for item in found] == [
        item["label"]["value"] for at, item in enumerate(expected) if at != place
    ]


async def test_inputs_that_all_fail_are_answered_without_the_engine(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Engine, "predict")
    answer = await client.post("/v1/predict", json={"inputs": ["", " "]})
    assert [item["error"]["type"] for item in answer.json()["predictions"]] == ["invalid_input"] * 2


async def test_failed_inputs_are_no_predictions(client: httpx.AsyncClient) -> None:
    await client.post("/v1/predict", json={"inputs": ["fish", ""]})
    samples = [
        item
        for family in text_string_to_metric_families((await client.get("/metrics")).text)
        for item in family.samples
    ]
    assert sum(item.value for item in samples if item.name == "sparsecbm_predictions_total") == 1
    failed = {item.labels["type"]: item.value for item in samples if item.name == "sparsecbm_failed_inputs_total"}
    assert failed == {"invalid_input": 1, "too_large": 0}


BODIES = {
    "empty": b"",
    "no JSON": b'{"inputs": [zyzzyva',
    "cut off": b'{"inputs": ["zyzzyva"',
    "more after it": b'{"inputs": ["zyzzyva"]} zyzzyva',
    "null": b"null",
    "a list": b'["zyzzyva"]',
    "a text": b'"zyzzyva"',
    "invalid UTF-8": b'{"inputs": ["zyzzyva \xff\xfe"]}',
    "UTF-16": '{"inputs": ["zyzzyva"]}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"inputs": [""]}',
    "lone surrogate": b'{"inputs": ["zyzzyva \\ud800"]}',
    "lone surrogate as key": b'{"inputs": ["zyzzyva"], "\\udc00": 1}',
    "NaN": b'{"inputs": [NaN]}',
    "infinity": b'{"inputs": [-Infinity, 1e999]}',
    "large integer": b'{"inputs": [' + b"9" * 10_000 + b"]}",
    "large integer in a text's place": b'{"inputs": [{"text": ' + b"9" * 5_000 + b"}]}",
    "raw control character": b'{"inputs": ["zyzzyva \x00"]}',
    "duplicate keys": b'{"inputs": ["fish"], "inputs": [3]}',
    "unknown field": b'{"inputs": ["zyzzyva"], "label": "zyzzyva"}',
    "wrong kinds": b'{"inputs": [{"text": ["zyzzyva"], "id": {"zyzzyva": 1}}], "explain": "zyzzyva"}',
    "wrong explanation": b'{"inputs": ["zyzzyva"], "explain": ["zyzzyva"]}',
    "many unknown fields": b'{"inputs": ["zyzzyva"],' + b",".join(b'"%d":1' % number for number in range(1500)) + b"}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_malformed_body_is_refused_without_its_words(client: httpx.AsyncClient, body: bytes) -> None:
    found = error(await post(client, "/v1/predict", body), 422, "invalid_input")
    assert SECRET not in json.dumps(found)


DEEP = {
    "lists": b'{"inputs": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    "objects": b'{"inputs": ' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}",
    "just over": b'{"inputs": ' + b"[" * 16 + b"]" * 16 + b"}",
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP.keys())
async def test_deep_body_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    assert error(await post(client, "/v1/predict", body), 413, "too_large")["detail"] == {"limit": 16}


async def test_brackets_in_texts_are_no_depth(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/predict", json={"inputs": ['[["{' * 50]})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": [{"text": "zyzzyva", "corrections": {"food": NaN}}]}',
        b'{"inputs": [{"text": "zyzzyva", "corrections": {"food": {"a": []}}}]}',
        b'{"inputs": [{"text": "zyzzyva", "corrections": {"food": "Negative", "food": "\\ud800"}}]}',
        b'{"inputs": [{"text": "zyzzyva", "corrections": {}}], "record": 1e999}',
        b'{"inputs": ["zyzzyva"]}',
    ],
)
async def test_malformed_intervention_is_refused_without_its_words(client: httpx.AsyncClient, body: bytes) -> None:
    found = error(await post(client, "/v1/intervene", body), 422, "invalid_input")
    assert SECRET not in json.dumps(found)


@pytest.mark.parametrize("text", ["\x00", "\x1b[2J", "\u202e", "\ufffe", "a\u0301" * 300, "\U0010ffff", "<script>"])
async def test_strange_text_is_answered(client: httpx.AsyncClient, text: str) -> None:
    answer = await client.post("/v1/predict", json={"inputs": [text], "explain": ["tokens", "subnetwork"]})
    assert answer.status_code == 200


async def test_strange_text_is_kept_as_it_is(client: httpx.AsyncClient) -> None:
    text = "\x00 \u202e 🍝 '; DROP TABLE interventions; --"
    [answered] = await intervene(client, {**CORRECTION, "text": text})
    assert (await client.get(f"/v1/interventions/{answered['id']}")).json()["text"] == text


async def test_error_in_the_engine_is_answered_without_its_words(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(texts: Sequence[str], explain: Sequence[Explain]) -> list[Answer]:
        raise ZeroDivisionError(f"at {texts}")

    monkeypatch.setattr(engine, "predict", fail)
    found = error(await client.post("/v1/predict", json={"inputs": [SECRET]}), 500, "internal")
    assert found["detail"] is None and SECRET not in found["message"]


async def test_texts_are_logged_by_nobody(client: httpx.AsyncClient, capfd: pytest.CaptureFixture[str]) -> None:
    await client.post("/v1/predict", json={"inputs": [SECRET, ""]})
    await intervene(client, {**CORRECTION, "text": SECRET, "note": SECRET})
    await client.get(f"/{SECRET}")
    assert SECRET not in "".join(capfd.readouterr())


async def test_overload_is_refused_with_the_time_to_come_again(
    client: httpx.AsyncClient, app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, began, predict = threading.Event(), threading.Event(), engine.predict

    def wait(texts: Sequence[str], explain: Sequence[Explain]) -> list[Answer]:
        began.set()
        assert gate.wait(10)
        return predict(texts, explain)

    monkeypatch.setattr(engine, "predict", wait)
    body = {"inputs": ["fish"] * 4}
    running = asyncio.create_task(client.post("/v1/predict", json=body))
    await asyncio.to_thread(began.wait, 10)
    waiting = [asyncio.create_task(client.post("/v1/predict", json=body)) for _ in range(2)]
    await asyncio.sleep(0.05)
    refused = await client.post("/v1/predict", json=body)
    gate.set()
    found = error(refused, 429, "overloaded")
    assert int(refused.headers["retry-after"]) == found["detail"]["retry_after_s"] >= 1
    assert [answer.status_code for answer in await asyncio.gather(running, *waiting)] == [200, 200, 200]


@pytest.fixture
def away(tmp_path: Path) -> None:
    """Puts a folder where the ledger's file would be."""
    (tmp_path / "ledger.db").mkdir()


@pytest.mark.usefixtures("away")
class TestWhileTheLedgerIsAway:
    async def test_predictions_go_on(self, client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/predict", json={"inputs": ["fish"]})).status_code == 200

    async def test_server_is_ready(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/readyz")).status_code == 200

    async def test_recorded_interventions_are_unavailable(self, client: httpx.AsyncClient) -> None:
        error(await client.post("/v1/intervene", json={"inputs": [CORRECTION]}), 503, "unavailable")

    async def test_unrecorded_interventions_go_on(self, client: httpx.AsyncClient) -> None:
        assert await intervene(client, CORRECTION, record=False)

    async def test_ledger_is_unavailable(self, client: httpx.AsyncClient) -> None:
        error(await client.get("/v1/interventions"), 503, "unavailable")

    async def test_metrics_say_so(self, client: httpx.AsyncClient) -> None:
        assert "sparsecbm_ledger_up 0.0" in (await client.get("/metrics")).text
