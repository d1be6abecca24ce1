"""The web application: the interface's routes, the console, the documentation, and one shape for every error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import sparsecbm
from serving import access, documentation, problems
from serving.keys import Keyring
from serving.middleware import REQUEST_ID, RequestMiddleware
from serving.origins import OriginMiddleware
from serving.routes import add_routes
from serving.routes_v2 import add_v2_routes
from serving.services import Services
from serving.tracing import Tracing
from sparsecbm.errors import SparseCBMError

_ROOM = Path(__file__).parent
_MESSAGES = {
    404: "There is nothing at this path; /docs lists what there is.",
    405: "This path does not know this method; the Allow header names those that it knows.",
}


def create_app(services: Services, *, returns_id: bool = True, tracing: Tracing | None = None) -> FastAPI:
    """The application over an engine, a ledger and metrics, behind keys where the settings need them.

    Args:
        services: what it answers with; its batcher is started and stopped with the application.
        returns_id: whether to send each request's id back, for a server that doesn't.
        tracing: where a span of each request is sent; it is closed with the application.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.batcher.start()
        yield
        await services.batcher.stop()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    settings = services.settings
    needed = access.table(settings.open_metrics)
    keyring = Keyring(settings.keys_path) if settings.needs_keys else None
    app = FastAPI(
        title="SparseCBM",
        summary="Text classification that predicts human concepts first, says why, and can be corrected.",
        description=documentation.DESCRIPTION,
        version=sparsecbm.__version__,
        openapi_tags=documentation.TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=[
            Middleware(RequestMiddleware, metrics=services.metrics, returns_id=returns_id),
            Middleware(OriginMiddleware, hosts=settings.known_hosts, origins=settings.cors_origins),
            *_cors(settings.cors_origins),
            *([] if tracing is None else [Middleware(tracing.middleware)]),
        ],
        exception_handlers={
            SparseCBMError: _ours,
            RequestValidationError: _invalid,
            HTTPException: _http,
            ClientDisconnect: _broken_off,
        },
    )
    add_routes(app, services)
    add_v2_routes(app, services)
    described = needed if keyring else {}
    app.openapi = cache(lambda: documentation.describe(app, settings, described))  # type: ignore[method-assign]
    app.router.routes += [
        Mount("/console", StaticFiles(directory=_ROOM / "console")),
        Mount("/docs/page", StaticFiles(directory=_ROOM / "docs")),
        Mount("/docs/swagger", StaticFiles(packages=[("fastapi_offline", "static")])),
        Route("/docs", _page("docs/index.html", _DOCS_POLICY)),
        Route("/", _page("console/index.html")),
    ]
    access.guard(app.routes, needed, keyring)
    return app


def _cors(origins: Sequence[str]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "idempotency-key", "x-request-timeout", REQUEST_ID],
            expose_headers=["retry-after", REQUEST_ID],
        )
    ]


# Swagger UI sets style attributes; its scripts come from this server like everything else.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _page(file: str, policy: str | None = None) -> Callable[[Request], Awaitable[Response]]:
    headers = {} if policy is None else {"content-security-policy": policy}

    async def page(_: Request) -> Response:
        return FileResponse(_ROOM / file, headers=headers)

    return page


async def _ours(_: Request, error: Exception) -> Response:
    assert isinstance(error, SparseCBMError)
    return problems.from_error(error)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problems.from_error(problems.from_validation(error.errors(), "The request"))


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = problems.TYPES.get(error.status_code, "http")
    message = _MESSAGES.get(error.status_code, f"The request was refused with status {error.status_code}.")
    return problems.problem(error.status_code, kind, message, headers=error.headers)


async def _broken_off(_: Request, __: Exception) -> Response:
    return problems.problem(400, problems.TYPES[400], "The body broke off before its end.")
