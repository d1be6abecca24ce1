"""What holds for every request: its id, its time, its log line, its headers, its failure."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs, problems, tracing
from serving.headers import SECURITY
from serving.metrics import Metrics

_log = structlog.get_logger()

REQUEST_ID = "x-request-id"
UNMATCHED = "unmatched"
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestMiddleware:
    """The outermost layer of the application.

    Args:
        app: what answers.
        metrics: counts and times every request by its route's template, so that labels stay bounded.
        returns_id: whether to send the request's id back; Ray Serve's own server does so already.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, returns_id: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._returns_id = returns_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _SAFE_ID.fullmatch(given) else str(uuid.uuid4())
        structlog.contextvars.bind_contextvars(request_id=request_id, **tracing.of_caller(headers))
        status = 0

        async def send_dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                dressed = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    dressed.setdefault(name, value)
                if self._returns_id:
                    dressed[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_dressed)
        except Exception as error:
            _log.error("failed", error=type(error).__name__, places=logs.places(error.__traceback__))
            if not status:
                response = problems.problem(500, problems.TYPES[500], problems.INTERNAL)
                await response(scope, receive, send_dressed)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", UNMATCHED)
            # No answer was begun: the client left, or the server is going down.
            self._metrics.request(route, status or 499, seconds)
            _log.debug("request", method=scope["method"], route=route, status=status or 499, seconds=seconds)
            structlog.contextvars.unbind_contextvars("request_id", "who", tracing.TRACE_ID)
