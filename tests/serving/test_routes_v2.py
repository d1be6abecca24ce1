"""The Open Inference Protocol, spoken by Triton's client over a real server and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import FastAPI

from serving.engine import Engine

TASTY = "the pasta was tasty , the waiter was rude ."
INFER = "/v2/models/tiny-reviews/infer"
TENSOR: dict[str, Any] = {"name": "text", "shape": [2], "datatype": "BYTES", "data": [TASTY, "fish"]}


@pytest.fixture
def kserve(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


def texts(*given: str, binary: bool = False) -> list[triton.InferInput]:
    tensor = triton.InferInput("text", [len(given)], "BYTES")
    tensor.set_data_from_numpy(np.array(given, dtype=object), binary_data=binary)
    return [tensor]


def strings(result: triton.InferResult, name: str) -> Any:
    return result.as_numpy(name).astype(str).tolist()


# Triton's client


def test_client_finds_server_and_model_ready(kserve: triton.InferenceServerClient, engine: Engine) -> None:
    assert kserve.is_server_live() and kserve.is_server_ready()
    assert kserve.is_model_ready("tiny-reviews")
    assert kserve.is_model_ready("tiny-reviews", engine.manifest.version)
    assert not kserve.is_model_ready("another") and not kserve.is_model_ready("tiny-reviews", "7")


def test_client_reads_metadata(kserve: triton.InferenceServerClient, engine: Engine) -> None:
    assert kserve.get_server_metadata()["name"] == "sparsecbm"
    metadata = kserve.get_model_metadata("tiny-reviews")
    assert (metadata["name"], metadata["versions"]) == ("tiny-reviews", [engine.manifest.version])
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert {output["name"]: (output["datatype"], output["shape"]) for output in metadata["outputs"]} == {
        "label": ("BYTES", [-1]),
        "probabilities": ("FP32", [-1, 3]),
        "concepts": ("BYTES", [-1, 3]),
        "concept_probabilities": ("FP32", [-1, 3, 3]),
    }


def test_client_infers_what_the_engine_answers(kserve: triton.InferenceServerClient, engine: Engine) -> None:
    result = kserve.infer("tiny-reviews", texts(TASTY, "fish"), request_id="mine")
    answers = engine.predict([TASTY, "fish"])
    response = result.get_response()
    assert (response["model_name"], response["model_version"]) == ("tiny-reviews", engine.manifest.version)
    assert response["id"] == "mine"
    assert strings(result, "label") == [answer.label.value for answer in answers]
    assert strings(result, "concepts") == [[concept.value for concept in answer.concepts] for answer in answers]
    for name, expected in {
        "probabilities": [[*answer.probabilities.values()] for answer in answers],
        "concept_probabilities": [
            [[*concept.probabilities.values()] for concept in answer.concepts] for answer in answers
        ],
    }.items():
        np.testing.assert_allclose(result.as_numpy(name), np.array(expected), rtol=1e-5, atol=1e-7)


def test_client_chooses_outputs_and_version(kserve: triton.InferenceServerClient, engine: Engine) -> None:
    names = ["concepts", "label"]
    outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in names]
    result = kserve.infer("tiny-reviews", texts(TASTY), engine.manifest.version, outputs, parameters={"mine": 1})
    assert [output["name"] for output in result.get_response()["outputs"]] == names


@pytest.mark.parametrize(
    ("model", "version", "given", "said"),
    [
        ("another", "", ["fish"], "There is no model of this name"),
        ("tiny-reviews", "7", ["fish"], "no such version"),
        ("tiny-reviews", "", ["fish", " "], "Input 1: the text is empty"),
    ],
)
def test_client_is_told_what_is_wrong(
    kserve: triton.InferenceServerClient, model: str, version: str, given: list[str], said: str
) -> None:
    with pytest.raises(triton.InferenceServerException, match=said):
        kserve.infer(model, texts(*given), version)


def test_client_is_told_that_tensors_in_binary_are_not_read(kserve: triton.InferenceServerClient) -> None:
    with pytest.raises(triton.InferenceServerException, match="binary_data=False"):
        kserve.infer("tiny-reviews", texts("fish", binary=True))


# By hand


async def refused(client: httpx.AsyncClient, body: object, status: int = 422) -> str:
    answer = await client.post(INFER, json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    message: str = answer.json()["error"]
    return message


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("shape", "data"),
    [([1], ["a", "b"]), ([3], ["a", "b"]), ([2, 1], ["a", ["b"]]), ([2], [["a"], ["b"]]), ([1, 2], ["a", "b"])],
)
async def test_data_not_of_their_shape_are_refused(client: httpx.AsyncClient, shape: list[int], data: object) -> None:
    assert "shape" in await refused(client, {"inputs": [{**TENSOR, "shape": shape, "data": data}]})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("shape", "data"), [([2], [TASTY, "fish"]), ([2, 1], [TASTY, "fish"]), ([2, 1], [[TASTY], ["fish"]])]
)
async def test_texts_are_read_in_either_shape(client: httpx.AsyncClient, shape: list[int], data: object) -> None:
    expected = await client.post(INFER, json={"inputs": [TENSOR]})
    found = await client.post(INFER, json={"inputs": [{**TENSOR, "shape": shape, "data": data}]})
    assert found.status_code == 200 and found.json() == expected.json()
    assert "id" not in found.json()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong",
    [{"name": "words"}, {"datatype": "FP32"}, {"data": [1, 2]}, {"data": []}, {"shape": []}, {"shape": [0]}, {"x": 1}],
)
async def test_wrong_tensor_is_refused(client: httpx.AsyncClient, wrong: dict[str, object]) -> None:
    await refused(client, {"inputs": [{**TENSOR, **wrong}]})


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong", [{"inputs": []}, {"inputs": [TENSOR, TENSOR]}, {"outputs": [{"name": "logits"}]}, {"id": 7}]
)
async def test_wrong_request_is_refused(client: httpx.AsyncClient, wrong: dict[str, object]) -> None:
    await refused(client, {"inputs": [TENSOR], **wrong})


@pytest.mark.anyio
async def test_more_texts_than_allowed_are_refused(client: httpx.AsyncClient) -> None:
    await refused(client, {"inputs": [{**TENSOR, "shape": [5], "data": ["a"] * 5}]}, 413)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nothing", 404), ("GET", INFER, 405), ("POST", "/v2", 405), ("GET", "/v2/models/another", 404)],
)
async def test_every_error_has_the_protocols_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status and set(answer.json()) == {"error"}
    assert isinstance(answer.json()["error"], str)


@pytest.mark.anyio
async def test_error_of_the_outer_layers_has_the_protocols_shape(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v2", headers={"host": "evil.example"})
    assert answer.status_code == 403 and isinstance(answer.json()["error"], str)


@pytest.mark.anyio
async def test_stopped_engine_is_live_but_not_ready(client: httpx.AsyncClient, app: FastAPI) -> None:
    await app.state.services.batcher.stop()
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    for path in ("/v2/health/ready", "/v2/models/tiny-reviews/ready"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (503, {"error": "The engine is not running."})
