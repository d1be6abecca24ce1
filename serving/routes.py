"""The HTTP interface's routes: from a message to the engine and the ledger, and back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import AwareDatetime, BaseModel, BeforeValidator
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serving import deadlines, idempotency
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
    Readiness,
    TextInput,
)
from serving.engine import Intervention
from serving.ledger import CURSOR, Entry, Filter, Origin
from serving.message_route import MessageRoute
from serving.services import Services
from sparsecbm.errors import InputError, UnavailableError

ERRORS = {
    400: "The request is not well-formed HTTP, or its body broke off.",
    403: "The Host header names no host of this server, or a page of another site sent the request.",
    404: "There is nothing of this id.",
    409: "The Idempotency-Key was sent before with another body.",
    413: "The body is over its limit of bytes or of nesting, or holds too many inputs.",
    415: "The body is not declared as application/json.",
    422: "The request is not of the described form; the message says where and what would be right.",
    429: "More work waits than the queue holds; Retry-After says when to come again.",
    500: "The server failed.",
    503: "A part of the server is away for now.",
    504: "There was no answer within X-Request-Timeout.",
}
_ERROR_SCHEMA = {"$ref": "#/components/schemas/ErrorResponse"}


def _written_out(given: object) -> object:
    # pydantic takes a number for the seconds since 1970.
    if isinstance(given, str) and not re.match(r"\d{4}-\d{2}-\d{2}", given):
        raise ValueError("should be a date and time with its zone, such as 2026-01-31T12:00:00Z")
    return given


_Moment = Annotated[AwareDatetime, BeforeValidator(_written_out)]

EVERY = (403, 422, 500, 504)  # 422 and 504 by X-Request-Timeout
BODY = (400, 413, 415, 429, 503)
_PROBE_S = 0.5  # that a probe waits for the ledger: it is to say in time that the ledger is away


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
        header: dict[str, Any] | None = None,
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
            openapi_extra={"parameters": [header]} if header else None,
        )

    add("POST", "/v1/predict", predict, PredictResponse, "predictions", *BODY)
    key = idempotency.PARAMETER
    add("POST", "/v1/intervene", intervene, InterveneResponse, "corrections", *BODY, 409, header=key)
    add("GET", "/v1/interventions", interventions, InterventionPage, "corrections", 503)
    add("GET", "/v1/interventions/{id}", intervention, InterventionRecord, "corrections", 404, 503)
    add("GET", "/v1/model", model, ModelCard, "predictions")
    add("GET", "/metrics", metrics, None, "operation")
    add("GET", "/healthz", healthz, Health, "operation")
    add("GET", "/readyz", readyz, Readiness, "operation", 503)


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
    ledger, who = services.ledger, _who(request)
    claim = idempotency.claim(request, message)
    if claim is not None and message.record:
        answered = await ledger.database.run(ledger.answered, who, claim)
        if answered is not None:
            return Response(answered, media_type=JSON)
    outcomes = await services.intervene(
        [Intervention(item.text, item.corrections, item.level) for item in message.inputs]
    )
    done = [
        (item, outcome)
        for item, outcome in zip(message.inputs, outcomes, strict=True)
        if not isinstance(outcome, InputError)
    ]

    def write(ids: Sequence[str | None]) -> bytes:
        recorded = iter(ids)
        answers = [
            InterventionFailure(input_id=_input_id(item, position), error=_error(outcome, position))
            if isinstance(outcome, InputError)
            else InterventionAnswer.model_construct(
                id=next(recorded), input_id=_input_id(item, position), **outcome.__dict__
            )
            for position, (item, outcome) in enumerate(zip(message.inputs, outcomes, strict=True))
        ]
        return _json(InterveneResponse.model_construct(**_served(services), interventions=answers))

    if message.record and done:
        deadlines.commit(request)
        manifest = services.engine.manifest
        origin = Origin(who, manifest.name, manifest.version, mask_version=manifest.version)
        entries = [Entry(item.text, item.note, outcome) for item, outcome in done]
        if claim is not None:
            answer = await ledger.database.run(ledger.record_once, entries, origin, claim, write)
        else:
            answer = write(await ledger.database.run(ledger.record, entries, origin))
    else:
        answer = write([None] * len(done))
    services.metrics.interventions(outcome for _, outcome in done)
    return Response(answer, media_type=JSON)


async def interventions(
    request: Request,
    concept: Annotated[
        str | None, Query(max_length=128, description="Only corrections of this concept.", examples=["service"])
    ] = None,
    level: Annotated[Level | None, Query(description="Only interventions at this level.", examples=["mask"])] = None,
    label_flipped: Annotated[
        bool | None, Query(description="Only those that changed the label, or that didn't.", examples=[True])
    ] = None,
    who: Annotated[
        str | None, Query(max_length=128, description="Only those made with the key of this name.", examples=["ada"])
    ] = None,
    since: Annotated[
        _Moment | None,
        Query(description="Only those recorded at this time or later.", examples=["2026-01-31T12:00:00Z"]),
    ] = None,
    until: Annotated[
        _Moment | None,
        Query(description="Only those recorded before this time.", examples=["2026-02-28T12:00:00Z"]),
    ] = None,
    version: Annotated[
        str | None,
        Query(max_length=64, description="Only those on this version of the model.", examples=["3f9c0a51d2e47b86"]),
    ] = None,
    mask_version: Annotated[
        str | None,
        Query(max_length=64, description="Only those on this version of the masks.", examples=["3f9c0a51d2e47b86"]),
    ] = None,
    after: Annotated[
        str | None,
        Query(pattern=CURSOR, description="'next' of the page before.", examples=["AaIR5FZFcVaiq1k1nFHqXg"]),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most interventions to give.", examples=[20])] = 20,
) -> Response:
    """The ledger, newest first."""
    ledger = _services(request).ledger
    only = Filter(concept, level, label_flipped, who, since, until, version, mask_version)
    return _answer(await ledger.database.run(ledger.page, limit, after, only))


async def intervention(
    request: Request,
    id: Annotated[str, Path(description="Its id in the ledger.", examples=["01a211e4-5645-7156-a2ab-59359c51ea5e"])],
) -> Response:
    """One intervention of the ledger."""
    ledger = _services(request).ledger
    return _answer(await ledger.database.run(ledger.get, id))


async def model(request: Request) -> Response:
    """The card of the model that is served."""
    return Response(request.app.state.card, media_type=JSON)


async def metrics(request: Request) -> Response:
    """Metrics of all replicas, for Prometheus."""
    services = _services(request)
    corrections: int | None = None
    with suppress(UnavailableError):
        corrections = await services.ledger.database.run(services.ledger.count)
    shown = await asyncio.to_thread(services.metrics.exposition, corrections)
    return Response(shown, media_type=CONTENT_TYPE_LATEST)


async def healthz(request: Request) -> Response:
    """Whether the process answers at all."""
    return _answer(Health(status="alive"))


async def readyz(request: Request) -> Response:
    """Whether predictions are answered; and whether corrections are recorded, which they need not be for that."""
    services = _services(request)
    if not services.batcher.alive:
        raise UnavailableError("The engine is not running.")
    up = await services.ledger.database.answers(_PROBE_S)
    return _answer(Readiness(status="ready", ledger="up" if up else "away"))


def _answer(message: BaseModel) -> Response:
    return Response(_json(message), media_type=JSON)


def _json(message: BaseModel) -> bytes:
    return message.__pydantic_serializer__.to_json(message)


def _who(request: Request) -> str:
    """The name of the caller's key."""
    return getattr(request.state, "who", "anonymous")


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
