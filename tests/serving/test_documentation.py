"""The description of the interface: whole, readable, and with this server's limits in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI

from serving import problems
from sparsecbm.errors import SparseCBMError

ROUTES = {
    "/v1/predict": "post",
    "/v1/intervene": "post",
    "/v1/interventions": "get",
    "/v1/interventions/{id}": "get",
    "/v1/model": "get",
    "/v2": "get",
    "/v2/health/live": "get",
    "/v2/health/ready": "get",
    "/v2/models/{model_name}": "get",
    "/v2/models/{model_name}/ready": "get",
    "/v2/models/{model_name}/infer": "post",
    "/v2/models/{model_name}/versions/{model_version}": "get",
    "/v2/models/{model_name}/versions/{model_version}/ready": "get",
    "/v2/models/{model_name}/versions/{model_version}/infer": "post",
    "/metrics": "get",
    "/healthz": "get",
    "/readyz": "get",
}


@pytest.fixture
def document(idle_app: FastAPI) -> dict[str, Any]:
    found: dict[str, Any] = idle_app.openapi()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_description_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPI.model_validate(document)


def test_description_lists_every_route(document: dict[str, Any]) -> None:
    assert {path: list(methods) for path, methods in document["paths"].items()} == {
        path: [method] for path, method in ROUTES.items()
    }


def test_description_stays_the_same(idle_app: FastAPI) -> None:
    first = json.dumps(idle_app.openapi())
    assert json.dumps(idle_app.openapi()) == first


@pytest.mark.anyio
async def test_description_is_served(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    assert (await client.get("/openapi.json")).json() == document


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    def references(part: object) -> set[str]:
        if isinstance(part, dict):
            own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
            return own.union(*map(references, part.values()))
        return set().union(*map(references, part)) if isinstance(part, list) else set()

    known = {f"#/components/{kind}/{name}" for kind, parts in document["components"].items() for name in parts}
    assert references(document) <= known


def test_described_errors_have_the_shape_of_their_paths(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        name = "ProtocolError" if path.startswith("/v2") else "ErrorResponse"
        for code, answer in operation["responses"].items():
            if code != "200":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{name}"}, (path, code)


def test_described_errors_have_an_example_of_their_status(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        for code, answer in operation["responses"].items():
            if code != "200":
                error = answer["content"]["application/json"]["example"]["error"]
                if path.startswith("/v2"):
                    assert isinstance(error, str), (path, code)
                else:
                    assert status_of(error["type"]) == int(code), (path, code)


def status_of(type: str) -> int:
    """The status that errors of a type are answered with."""
    statuses = {error.type: error.status for error in subclasses(SparseCBMError)}
    return ({name: status for status, name in problems.TYPES.items()} | statuses)[type]


def subclasses(error: type[SparseCBMError]) -> Iterator[type[SparseCBMError]]:
    for one in error.__subclasses__():
        yield one
        yield from subclasses(one)


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_operations_say_what_they_do_under_a_known_heading(document: dict[str, Any]) -> None:
    headings = {tag["name"] for tag in document["tags"] if tag["description"]}
    for path, operation in operations(document):
        assert operation["summary"] and operation["description"], path
        assert set(operation["tags"]) <= headings and operation["tags"], path


def test_every_field_has_a_description_and_an_example(document: dict[str, Any]) -> None:
    lacking = [
        f"{schema}.{name}"
        for schema, model in document["components"]["schemas"].items()
        for name, field in model.get("properties", {}).items()
        # A field that holds other schemas is shown by theirs.
        if not field.get("description") or not (field.get("examples") or "#/components/" in str(field))
    ]
    assert lacking == []


def test_every_parameter_has_a_description_and_an_example(document: dict[str, Any]) -> None:
    parameters = [parameter for _, operation in operations(document) for parameter in operation["parameters"]]
    parameters += document["components"]["parameters"].values()
    for parameter in parameters:
        if "$ref" not in parameter:
            assert parameter["description"], parameter["name"]
            assert parameter["schema"].get("examples") or parameter.get("examples"), parameter["name"]


@pytest.mark.parametrize("message", ["PredictRequest", "InterveneRequest"])
def test_limit_of_inputs_is_this_servers(document: dict[str, Any], message: str) -> None:
    assert document["components"]["schemas"][message]["properties"]["inputs"]["maxItems"] == 4
