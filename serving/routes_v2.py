"""The Open Inference Protocol's routes (version 2, REST), over the same engine and within the same limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

import sparsecbm
from serving.bodies import JSON
from serving.contract import Answer
from serving.message_route import MessageRoute
from serving.routes import BODY, ERRORS, EVERY
from serving.services import Services
from serving.tensors import (
    InferRequest,
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    Outputs,
    ProtocolError,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from sparsecbm.errors import InputError, NotFoundError, UnavailableError

_MODEL = "/v2/models/{model_name}"
_VERSION = f"{_MODEL}/versions/{{model_version}}"


class ProtocolRoute(MessageRoute):
    """A route of the protocol, whose clients declare no Content-Type. It changes nothing, so CSRF gains nothing."""

    must_declare = False


def add_v2_routes(app: FastAPI, services: Services) -> None:
    """Adds the protocol's routes to an application."""
    app.state.outputs = Outputs(services.engine.manifest)
    router = APIRouter(route_class=ProtocolRoute, tags=["Open Inference Protocol"])
    manifest = services.engine.manifest

    def add(
        method: str, path: str, endpoint: Callable[..., Awaitable[Response]], answer: type[BaseModel], *errors: int
    ) -> None:
        given = {"model_name": ("Its name.", manifest.name), "model_version": ("Its version.", manifest.version)}
        parameters = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": description,
                "schema": {"type": "string", "examples": [example]},
            }
            for name, (description, example) in given.items()
            if f"{{{name}}}" in path
        ]
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=answer,
            response_model_exclude_none=True,
            responses={
                code: {"model": ProtocolError, "description": ERRORS[code]} for code in sorted((*EVERY, *errors))
            },
            openapi_extra={"parameters": parameters},
        )

    add("GET", "/v2", server_metadata, ServerMetadata)
    add("GET", "/v2/health/live", live, Live)
    add("GET", "/v2/health/ready", ready, Ready, 503)
    for path in (_MODEL, _VERSION):
        add("GET", path, model_metadata, ModelMetadata, 404)
        add("GET", f"{path}/ready", model_ready, ModelReady, 404, 503)
        add("POST", f"{path}/infer", infer, InferResponse, 404, *BODY)
    app.router.routes += router.routes  # not included: each is guarded by its own role


async def server_metadata(request: Request) -> Response:
    """The server's name and version."""
    return _answer(ServerMetadata(name="sparsecbm", version=sparsecbm.__version__, extensions=[]))


async def live(request: Request) -> Response:
    """Whether the server answers at all."""
    return _answer(Live(live=True))


async def ready(request: Request) -> Response:
    """Whether inference is answered."""
    _check_running(request)
    return _answer(Ready(ready=True))


async def model_ready(request: Request) -> Response:
    """Whether the model answers."""
    _check_model(request)
    _check_running(request)
    return _answer(ModelReady(name=request.path_params["model_name"], ready=True))


async def model_metadata(request: Request) -> Response:
    """The model's input and outputs."""
    _check_model(request)
    manifest = _services(request).engine.manifest
    outputs: Outputs = request.app.state.outputs
    return _answer(
        ModelMetadata(
            name=manifest.name,
            versions=[manifest.version],
            platform="onnx_onnxv1",
            inputs=[TensorMetadata(name="text", datatype="BYTES", shape=[-1])],
            outputs=outputs.metadata(),
        )
    )


async def infer(request: Request, message: InferRequest) -> Response:
    """Predicts concepts and label of each text. A text that can't be answered fails the request."""
    _check_model(request)
    services = _services(request)
    answers: list[Answer] = []
    for position, answer in enumerate(await services.predict(message.inputs[0].texts(), ("concepts",))):
        if isinstance(answer, InputError):
            raise type(answer)(f"Input {position}: {answer.message}")
        answers.append(answer)
    manifest = services.engine.manifest
    outputs: Outputs = request.app.state.outputs
    return _answer(
        InferResponse.model_construct(
            model_name=manifest.name,
            model_version=manifest.version,
            id=message.id,
            outputs=outputs.tensors(answers, message.outputs),
        )
    )


def _check_model(request: Request) -> None:
    manifest = _services(request).engine.manifest
    if request.path_params["model_name"] != manifest.name:
        raise NotFoundError(f"There is no model of this name; the one served is {manifest.name}.")
    if request.path_params.get("model_version", manifest.version) != manifest.version:
        raise NotFoundError(f"There is no such version of {manifest.name}; the one served is {manifest.version}.")


def _check_running(request: Request) -> None:
    if not _services(request).batcher.alive:
        raise UnavailableError("The engine is not running.")


def _answer(message: BaseModel) -> Response:
    return Response(message.__pydantic_serializer__.to_json(message, exclude_none=True), media_type=JSON)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
