"""The server's routes, as calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from serving.client.exchange import Call
from serving.contract import (
    CorrectionInput,
    Explain,
    Health,
    InterveneRequest,
    InterveneResponse,
    InterventionPage,
    InterventionRecord,
    Level,
    ModelCard,
    PredictRequest,
    PredictResponse,
    TextInput,
)


def predict(inputs: Sequence[str | TextInput], explain: Sequence[Explain]) -> Call[PredictResponse]:
    message = PredictRequest.model_construct(inputs=_several(inputs), explain=list(explain))
    return _post("/v1/predict", message.model_dump_json(), PredictResponse)


def intervene(inputs: Sequence[CorrectionInput], record: bool, idempotency_key: str | None) -> Call[InterveneResponse]:
    message = InterveneRequest.model_construct(inputs=list(inputs), record=record)
    key = {"idempotency-key": idempotency_key or str(uuid4())}
    return _post("/v1/intervene", message.model_dump_json(), InterveneResponse, key)


def interventions(concept: str | None, level: Level | None, after: str | None, limit: int) -> Call[InterventionPage]:
    given = {"concept": concept, "level": level, "after": after, "limit": limit}
    params = {name: value for name, value in given.items() if value is not None}
    return Call("GET", "/v1/interventions", InterventionPage, params=params)


def intervention(id: str) -> Call[InterventionRecord]:
    return Call("GET", f"/v1/interventions/{quote(id, safe='')}", InterventionRecord)


def model() -> Call[ModelCard]:
    return Call("GET", "/v1/model", ModelCard)


def ready() -> Call[Health]:
    return Call("GET", "/readyz", Health)


def _several(inputs: Sequence[str | TextInput]) -> list[str | TextInput]:
    # A lone text is a sequence of its characters.
    return [inputs] if isinstance(inputs, str) else list(inputs)


def _post(path: str, content: str, answer: type[Any], headers: Mapping[str, str] | None = None) -> Call[Any]:
    return Call(
        "POST",
        path,
        answer,
        content=content.encode(),
        headers={"content-type": "application/json", **(headers or {})},
    )
