"""What holds for every request: its id, its host, its time, its log line, its headers, its failure."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Collection

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs, problems, tracing
from serving.metrics import Metrics

_log = structlog.get_logger()

REQUEST_ID = "x-request-id"
UNMATCHED = "unmatched"
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class RequestMiddleware:
    """The outermost layer of the application.

    Args:
        app: what answers.
        metrics: counts and times every request by its route's template, so that labels stay bounded.
        hosts: names besides the loopback's under which the server may be addressed. Any other Host is refused:
            a page elsewhere that points its own name at this machine reaches nothing (DNS rebinding).
        returns_id: whether to send the request's id back; Ray Serve's own server does so already.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Collection[str], returns_id: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = {*_LOCAL_NAMES, *(host.lower() for host in hosts)}
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
                for name, value in _SECURITY.items():
                    dressed.setdefault(name, value)
                dressed.setdefault("cache-control", "no-store")
                if self._returns_id:
                    dressed[REQUEST_ID] = request_id
            await send(message)

        try:
            if self._knows(headers.get("host", "")):
                await self._app(scope, receive, send_dressed)
            else:
                await self._refuse(scope, receive, send_dressed)
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
            structlog.contextvars.unbind_contextvars("request_id", tracing.TRACE_ID)

    def _knows(self, host: str) -> bool:
        name = host.lower() if host.endswith("]") else host.lower().rsplit(":", 1)[0]
        return name in self._hosts

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = (
            "The Host header names no host of this server. Address it as localhost, or name the host in "
            "the setting allowed_hosts."
        )
        await problems.problem(403, problems.TYPES[403], message)(scope, receive, send)
