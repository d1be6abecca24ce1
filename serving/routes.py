"""The HTTP interface's routes: from a message to the engine and the ledger, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import FastAPI, Path, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serving import deadlines
from serving.bodies import JSON
from serving.contract import (
    ErrorBody,
    ErrorResponse,
    Health,
    InterveneRequest,
    InterveneResponse,
    InterventionAnswer,
    InterventionFailure,
    InterventionPage,
    InterventionRecord,
    Level,
    Limits,
    ModelCard,
    Prediction,
    PredictionFailure,
    PredictRequest,
    PredictResponse,
    TextInput,
)
from serving.engine import Intervention
from serving.ledger import Entry
from serving.message_route import MessageRoute
from serving.services import Services
from sparsecbm.errors import InputError, UnavailableError

ERRORS = {
    400: "The request is not well-formed HTTP, or its body broke off.",
    403: "The Host header names no host of this server.",
    404: "There is nothing of this id.",
    413: "The body is over its limit of bytes or of nesting, or holds too many inputs.",
    415: "The body is not declared as application/json.",
    422: "The request is not of the described form; the message says where and what would be right.",
    429: "More work waits than the queue holds; Retry-After says when to come again.",
    500: "The server failed.",
    503: "A part of the server is away for now.",
    504: "There was no answer within X-Request-Timeout.",
}
_ERROR_SCHEMA = {"$ref": "#/components/schemas/ErrorResponse"}
EVERY = (403, 422, 500, 504)  # 422 and 504 by X-Request-Timeout
BODY = (400, 413, 415, 429, 503)


def add_routes(app: FastAPI, services: Services) -> None:
    """Adds the interface's routes to an application."""
    app.state.services = services
    app.state.card = _card(services).model_dump_json().encode()
    app.router.route_class = MessageRoute

    def add(
        method: str,
        path: str,
        endpoint: Callable[..., Awaitable[Response]],
        answer: type[BaseModel] | None,
        tag: str,
        *errors: int,
    ) -> None:
        # An error is JSON even where the answer is plain text, which FastAPI would describe it as.
        error: dict[str, Any] = {"model": ErrorResponse} if answer else {"content": {JSON: {"schema": _ERROR_SCHEMA}}}
        app.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=answer,
            response_class=PlainTextResponse if answer is None else JSONResponse,
            responses={code: {**error, "description": ERRORS[code]} for code in sorted((*EVERY, *errors))},
            tags=[tag],
        )

    add("POST", "/v1/predict", predict, PredictResponse, "predictions", *BODY)
    add("POST", "/v1/intervene", intervene, InterveneResponse, "corrections", *BODY)
    add("GET", "/v1/interventions", interventions, InterventionPage, "corrections", 503)
    add("GET", "/v1/interventions/{id}", intervention, InterventionRecord, "corrections", 404, 503)
    add("GET", "/v1/model", model, ModelCard, "predictions")
    add("GET", "/metrics", metrics, None, "operation")
    add("GET", "/healthz", healthz, Health, "operation")
    add("GET", "/readyz", readyz, Health, "operation", 503)


async def predict(request: Request, message: PredictRequest) -> Response:
    """Predicts concepts and label of each text, and says why.

    An input that can't be answered, such as an empty text, has an error in its place; the others are answered.
    """
    services = _services(request)
    inputs = [item if isinstance(item, TextInput) else None for item in message.inputs]
    texts = [item if isinstance(item, str) else item.text for item in message.inputs]
    answers = await services.predict(texts, message.explain)
    return _answer(
        PredictResponse.model_construct(
            **_served(services),
            predictions=[
                PredictionFailure(id=_input_id(item, position), error=_error(answer, position))
                if isinstance(answer, InputError)
                else Prediction.model_construct(id=_input_id(item, position), **answer.__dict__)
                for position, (item, answer) in enumerate(zip(inputs, answers, strict=True))
            ],
        )
    )


async def intervene(request: Request, message: InterveneRequest) -> Response:
    """Corrects concepts of each text, by their activation or by their mask, and says what changes.

    An input that can't be corrected, such as one that names an unknown concept, has an error in its place; the others
    are corrected and, all together, recorded.
    """
    services = _services(request)
    outcomes = await services.intervene(
        [Intervention(item.text, item.corrections, item.level) for item in message.inputs]
    )
    done = [
        (item, outcome)
        for item, outcome in zip(message.inputs, outcomes, strict=True)
        if not isinstance(outcome, InputError)
    ]
    manifest = services.engine.manifest
    ids: Sequence[str | None] = [None] * len(done)
    if message.record and done:
        deadlines.commit(request)
        entries = [Entry(item.text, item.note, outcome) for item, outcome in done]
        ids = await asyncio.to_thread(services.ledger.record, entries, manifest.name, manifest.version)
    services.metrics.interventions(outcome for _, outcome in done)
    recorded = iter(ids)
    return _answer(
        InterveneResponse.model_construct(
            **_served(services),
            interventions=[
                InterventionFailure(input_id=_input_id(item, position), error=_error(outcome, position))
                if isinstance(outcome, InputError)
                else InterventionAnswer.model_construct(
                    id=next(recorded), input_id=_input_id(item, position), **outcome.__dict__
                )
                for position, (item, outcome) in enumerate(zip(message.inputs, outcomes, strict=True))
            ],
        )
    )


async def interventions(
    request: Request,
    concept: Annotated[
        str | None, Query(max_length=128, description="Only corrections of this concept.", examples=["service"])
    ] = None,
    level: Annotated[Level | None, Query(description="Only interventions at this level.", examples=["mask"])] = None,
    after: Annotated[
        UUID | None, Query(description="'next' of the page before.", examples=["01a211e4-5645-7156-a2ab-59359c51ea5e"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most interventions to give.", examples=[20])] = 20,
) -> Response:
    """The ledger, newest first."""
    ledger = _services(request).ledger
    cursor = str(after) if after else None
    return _answer(await asyncio.to_thread(ledger.page, limit, cursor, concept, level))


async def intervention(
    request: Request,
    id: Annotated[str, Path(description="Its id in the ledger.", examples=["01a211e4-5645-7156-a2ab-59359c51ea5e"])],
) -> Response:
    """One intervention of the ledger."""
    return _answer(await asyncio.to_thread(_services(request).ledger.get, id))


async def model(request: Request) -> Response:
    """The card of the model that is served."""
    return Response(request.app.state.card, media_type=JSON)


async def metrics(request: Request) -> Response:
    """Metrics of all replicas, for Prometheus."""
    services = _services(request)

    def scrape() -> bytes:
        try:
            corrections = services.ledger.count()
        except UnavailableError:
            return services.metrics.exposition(None)
        return services.metrics.exposition(corrections)

    return Response(await asyncio.to_thread(scrape), media_type=CONTENT_TYPE_LATEST)


async def healthz(request: Request) -> Response:
    """Whether the process answers at all."""
    return _answer(Health(status="alive"))


async def readyz(request: Request) -> Response:
    """Whether predictions are answered."""
    if not _services(request).batcher.alive:
        raise UnavailableError("The engine is not running.")
    return _answer(Health(status="ready"))


def _answer(message: BaseModel) -> Response:
    return Response(message.__pydantic_serializer__.to_json(message), media_type=JSON)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _input_id(item: TextInput | None, position: int) -> str:
    return str(position) if item is None or item.id is None else item.id


def _served(services: Services) -> dict[str, Any]:
    manifest = services.engine.manifest
    return {"model": manifest.name, "version": manifest.version}


def _error(error: InputError, position: int) -> ErrorBody:
    return ErrorBody(type=error.type, message=f"Input {position}: {error.message}", detail=error.detail)


def _card(services: Services) -> ModelCard:
    manifest, settings = services.engine.manifest, services.settings
    files = {name: entry.bytes for name, entry in manifest.files.items()}
    return ModelCard(
        **manifest.model_dump(exclude={"schema_version", "head", "files"}),
        label_bias=dict(zip(manifest.labels, manifest.head.bias, strict=True)),
        files=files,
        bytes=sum(files.values()),
        limits=Limits(
            inputs=settings.max_inputs,
            text_chars=settings.max_text_chars,
            body_bytes=settings.max_body_bytes,
            json_depth=settings.max_json_depth,
            timeout_s=settings.max_request_timeout,
        ),
    )
