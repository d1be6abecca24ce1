"""The HTTP interface's routes: from a message to the engine and the ledger, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, get_type_hints
from uuid import UUID

import structlog
from fastapi import FastAPI, Query, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serving import problems
from serving.batcher import Batcher, Model
from serving.contract import (
    ErrorResponse,
    Health,
    InterveneRequest,
    InterveneResponse,
    InterventionAnswer,
    InterventionPage,
    InterventionRecord,
    Level,
    Limits,
    Message,
    ModelCard,
    Prediction,
    PredictRequest,
    PredictResponse,
    TextInput,
)
from serving.engine import Intervention
from serving.ledger import Entry, Ledger
from serving.metrics import Metrics
from serving.settings import Settings
from sparsecbm.bundle import Manifest
from sparsecbm.errors import InputError, TooLargeError, UnavailableError

_log = structlog.get_logger()

_JSON = "application/json"
_ERRORS = {
    400: "The request is not well-formed HTTP, or its body broke off.",
    403: "The Host header names no host of this server, or a page of another site sent the request.",
    404: "There is nothing of this id.",
    413: "The body, a text or the number of inputs is over its limit.",
    415: "The body is not declared as application/json.",
    422: "A value in the request is wrong; the message says which and what would be right.",
    429: "More work waits than the queue holds; Retry-After says when to come again.",
    500: "The server failed.",
    503: "A part of the server is away for now.",
}
_ERROR_SCHEMA = {"$ref": "#/components/schemas/ErrorResponse"}
_MOST_ERRORS = 1000  # that are read out one by one
_BODY = (403, 413, 415, 422, 429, 500, 503)


class UnsupportedMediaError(InputError):
    """A body not declared as JSON. A page elsewhere can't send one so declared unasked, so this stops CSRF too."""

    type, status = problems.TYPES[415], 415


class CheckedModel(Model, Protocol):
    """An engine as the routes see it."""

    manifest: Manifest

    def check_text(self, text: str) -> None: ...

    def check_corrections(self, corrections: Mapping[str, str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes answer with."""

    settings: Settings
    engine: CheckedModel
    batcher: Batcher
    ledger: Ledger
    metrics: Metrics


class MessageRoute(APIRoute):
    """A route that reads its message from the body's JSON in one step, within the limit, and answers with bytes.

    The message is the endpoint's parameter of a `Message` type; FastAPI describes it in OpenAPI as usual. Its own way
    of reading takes longer, lets unpaired surrogates through and, in its older versions, has no limit.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        messages = [
            (name, hint)
            for name, hint in get_type_hints(self.endpoint).items()
            if isinstance(hint, type) and issubclass(hint, Message)
        ]
        if not messages:
            return super().get_route_handler()
        [(name, model)] = messages
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            body = await _body(request)
            try:
                message = model.model_validate_json(body)
            except ValidationError as error:
                if error.error_count() > _MOST_ERRORS:
                    raise InputError(
                        f"The body is wrong in {error.error_count()} places; /docs says what it may hold."
                    ) from None
                found = error.errors(include_url=False, include_context=False, include_input=False)
                raise problems.from_validation(found, "The body") from None
            return await endpoint(request, **{name: message})

        return handle


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
        errors: Sequence[int],
    ) -> None:
        # An error is JSON even where the answer is plain text, which FastAPI would describe it as.
        error: dict[str, Any] = {"model": ErrorResponse} if answer else {"content": {_JSON: {"schema": _ERROR_SCHEMA}}}
        app.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=answer,
            response_class=PlainTextResponse if answer is None else JSONResponse,
            responses={code: {**error, "description": _ERRORS[code]} for code in errors},
        )

    add("POST", "/v1/predict", predict, PredictResponse, _BODY)
    add("POST", "/v1/intervene", intervene, InterveneResponse, _BODY)
    add("GET", "/v1/interventions", interventions, InterventionPage, (403, 422, 500, 503))
    # FastAPI would describe a 422 of its own shape where none is named.
    add("GET", "/v1/interventions/{id}", intervention, InterventionRecord, (403, 404, 422, 500, 503))
    add("GET", "/v1/model", model, ModelCard, (403, 500))
    add("GET", "/metrics", metrics, None, (403, 500))
    add("GET", "/healthz", healthz, Health, (403, 500))
    add("GET", "/readyz", readyz, Health, (403, 500, 503))


async def predict(request: Request, message: PredictRequest) -> Response:
    """Predicts concepts and label of each text, and says why."""
    services = _services(request)
    inputs = [item if isinstance(item, TextInput) else None for item in message.inputs]
    texts = [item if isinstance(item, str) else item.text for item in message.inputs]
    _check_texts(services, texts)
    if services.settings.log_texts:
        _log.info("texts", texts=texts)
    answers = await services.batcher.predict(texts, message.explain)
    services.metrics.predictions(answers)
    manifest = services.engine.manifest
    return _answer(
        PredictResponse.model_construct(
            model=manifest.name,
            version=manifest.version,
            predictions=[
                Prediction.model_construct(id=_input_id(item, position), **answer.__dict__)
                for position, (item, answer) in enumerate(zip(inputs, answers, strict=True))
            ],
        )
    )


async def intervene(request: Request, message: InterveneRequest) -> Response:
    """Corrects concepts of each text, by their activation or by their mask, and says what changes."""
    services = _services(request)
    texts = [item.text for item in message.inputs]
    _check_texts(services, texts)
    for position, item in enumerate(message.inputs):
        _check(services.engine.check_corrections, item.corrections, position)
    if services.settings.log_texts:
        _log.info("texts", texts=texts)
    outcomes = await services.batcher.intervene(
        [Intervention(item.text, item.corrections, item.level) for item in message.inputs]
    )
    manifest = services.engine.manifest
    ids: Sequence[str | None] = [None] * len(outcomes)
    if message.record:
        entries = [Entry(item.text, item.note, outcome) for item, outcome in zip(message.inputs, outcomes, strict=True)]
        ids = await asyncio.to_thread(services.ledger.record, entries, manifest.name, manifest.version)
    services.metrics.interventions(outcomes)
    return _answer(
        InterveneResponse.model_construct(
            model=manifest.name,
            version=manifest.version,
            interventions=[
                InterventionAnswer.model_construct(id=id, input_id=_input_id(item, position), **outcome.__dict__)
                for position, (id, item, outcome) in enumerate(zip(ids, message.inputs, outcomes, strict=True))
            ],
        )
    )


async def interventions(
    request: Request,
    concept: Annotated[str | None, Query(max_length=128, description="Only corrections of this concept.")] = None,
    level: Annotated[Level | None, Query(description="Only interventions at this level.")] = None,
    after: Annotated[UUID | None, Query(description="'next' of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Most interventions to give.")] = 20,
) -> Response:
    """The ledger, newest first."""
    ledger = _services(request).ledger
    cursor = str(after) if after else None
    return _answer(await asyncio.to_thread(ledger.page, limit, cursor, concept, level))


async def intervention(request: Request, id: str) -> Response:
    """One intervention of the ledger."""
    return _answer(await asyncio.to_thread(_services(request).ledger.get, id))


async def model(request: Request) -> Response:
    """The card of the model that is served."""
    return Response(request.app.state.card, media_type=_JSON)


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
    return Response(message.__pydantic_serializer__.to_json(message), media_type=_JSON)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _input_id(item: TextInput | None, position: int) -> str:
    return str(position) if item is None or item.id is None else item.id


def _check_texts(services: Services, texts: Sequence[str]) -> None:
    settings = services.settings
    if len(texts) > settings.max_inputs:
        raise TooLargeError(
            f"The request has {len(texts)} inputs; send at most {settings.max_inputs} at once.",
            {"inputs": len(texts), "limit": settings.max_inputs},
        )
    for position, text in enumerate(texts):
        if len(text) > settings.max_text_chars:
            raise TooLargeError(
                f"Input {position} has {len(text)} characters; a text may have at most {settings.max_text_chars}.",
                {"input": position, "characters": len(text), "limit": settings.max_text_chars},
            )
        _check(services.engine.check_text, text, position)


def _check(check: Callable[[Any], None], value: Any, position: int) -> None:
    try:
        check(value)
    except InputError as error:
        detail = error.detail if error.detail is not None else {"input": position}
        raise type(error)(f"Input {position}: {error.message}", detail) from None


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON or "content-encoding" in request.headers:
        raise UnsupportedMediaError(
            "The body must be uncompressed JSON: send it with 'Content-Type: application/json'."
        )
    limit = _services(request).settings.max_body_bytes
    too_large = TooLargeError(f"The body is over {limit} bytes. Send fewer or shorter texts at once.", {"limit": limit})
    declared = request.headers.get("content-length", "")
    # Python refuses to read a number of thousands of digits.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def _card(services: Services) -> ModelCard:
    manifest, settings = services.engine.manifest, services.settings
    files = {name: entry.bytes for name, entry in manifest.files.items()}
    return ModelCard(
        **manifest.model_dump(exclude={"schema_version", "head", "files"}),
        label_bias=dict(zip(manifest.labels, manifest.head.bias, strict=True)),
        files=files,
        bytes=sum(files.values()),
        limits=Limits(
            inputs=settings.max_inputs, text_chars=settings.max_text_chars, body_bytes=settings.max_body_bytes
        ),
    )
