"""The interface's description in OpenAPI, with what holds for every route and with this server's own limits."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serving import access
from serving.bodies import JSON
from serving.keys import Role
from serving.settings import Settings

DESCRIPTION = """
Every error has one shape, `{"error": {"type", "message", "detail"}}`; under `/v2`, where the
[Open Inference Protocol](https://github.com/kserve/open-inference-protocol) has its own, it is `{"error": "message"}`.

A request is refused as a whole where its form is wrong. Where one input of the right form can't be answered, it has an
`error` in its place among the answers, and the others are answered as if it weren't there.
"""
TAGS = [
    {"name": "predictions", "description": "Texts in; concepts, label and reasons out."},
    {"name": "corrections", "description": "What people said the model should have read, and what that changed."},
    {"name": "Open Inference Protocol", "description": "Version 2 over REST, for KServe's and Triton's clients."},
    {"name": "operation", "description": "Health and metrics."},
]


def describe(app: FastAPI, settings: Settings, needed: dict[str, Role | None]) -> dict[str, Any]:
    """The application's OpenAPI document.

    Args:
        app: its routes are described by FastAPI.
        settings: the limits that it states.
        needed: the role by an operation's name, for a server that needs keys.
    """
    document = FastAPI.openapi(app)
    if needed:
        access.describe(document, needed)
    components = document["components"]
    components["parameters"] = _parameters(settings)
    components["headers"] = _HEADERS
    for name in ("PredictRequest", "InterveneRequest"):
        components["schemas"][name]["properties"]["inputs"]["maxItems"] = settings.max_inputs
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["summary"], _, _ = operation["description"].partition(".")
            references = [{"$ref": f"#/components/parameters/{name}"} for name in components["parameters"]]
            operation["parameters"] = [*operation.get("parameters", []), *references]
            for status, response in operation["responses"].items():
                names = ["X-Request-ID", *(["Retry-After"] if status in ("429", "503") else [])]
                response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
                if int(status) in _ERRORS:
                    response["content"][JSON]["example"] = _error(path, int(status))
    return document


# An error of each status: type, message and detail.
_ERRORS: dict[int, tuple[str, str, Any]] = {
    400: ("bad_request", "The body broke off before its end.", None),
    401: ("unauthorized", "This needs a key: send it as 'Authorization: Bearer' and the key.", None),
    403: ("unknown_host", "The Host header names no host of this server.", None),
    404: ("not_found", "The ledger holds no intervention of this id; GET /v1/interventions lists them.", None),
    409: ("conflict", "The Idempotency-Key was sent before with another body, and was answered.", None),
    413: ("too_large", "The request has 300 inputs; send at most 256 at once.", {"inputs": 300, "limit": 256}),
    415: ("unsupported_media_type", "The body must be uncompressed JSON.", None),
    422: (
        "invalid_input",
        "The body is wrong: inputs is required but missing.",
        [{"at": "inputs", "problem": "is required but missing"}],
    ),
    429: ("overloaded", "1024 texts wait already. Send the request again in 3 s.", {"retry_after_s": 3}),
    500: ("internal", "The server failed at this request; its log says why, under the request id.", None),
    503: ("unavailable", "The ledger can't be read; predictions go on. Try again later.", {"retry_after_s": 2}),
    504: ("deadline_exceeded", "There was no answer within 2.5 s.", {"timeout_s": 2.5}),
}


def _error(path: str, status: int) -> dict[str, Any]:
    type, message, detail = _ERRORS[status]
    if path.startswith("/v2"):
        return {"error": message}
    return {"error": {"type": type, "message": message, "detail": detail}}


_HEADERS = {
    "X-Request-ID": {
        "description": "The request's id, which its log lines have too.",
        "required": True,
        "schema": {"type": "string", "examples": ["5f0c7a1e-8f1d-4c7e-9d57-3f1f5a0b9f11"]},
    },
    "Retry-After": {
        "description": "Seconds after which to send the request again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1, "examples": [1]},
    },
}


def _parameters(settings: Settings) -> dict[str, Any]:
    def header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}

    return {
        "X-Request-ID": header(
            "X-Request-ID",
            "The request's id: 1 to 128 printable ASCII characters; another is made where it is none such.",
            {"type": "string", "examples": ["of-the-client-17"]},
        ),
        "X-Request-Timeout": header(
            "X-Request-Timeout",
            "Seconds to answer in; after them the answer is 504, and work that still waits is not begun. "
            f"By default {settings.request_timeout:g}, at most {settings.max_request_timeout:g}.",
            {"type": "number", "exclusiveMinimum": 0, "examples": [2.5]},
        ),
        "traceparent": header(
            "traceparent",
            "The caller's place in a trace, by W3C Trace Context; what is none is ignored.",
            {"type": "string", "examples": ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]},
        ),
    }
