"""Traces: the caller's place in one, by W3C Trace Context, and a span of each request where an endpoint is set.

A span names method, route, status and request id, and never a path, a query or a text.
"""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import sparsecbm
from sparsecbm.errors import SetupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

TRACE_ID = "trace_id"
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def of_caller(headers: Headers) -> dict[str, str]:
    """The trace that the caller's ``traceparent`` names, for log lines; nothing where it names none."""
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return {TRACE_ID: found[1]} if found else {}


def check_installed() -> None:
    """Raises SetupError where what sends traces is not installed."""
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise SetupError(
            "--otlp-endpoint needs OpenTelemetry's exporter; install it with: pip install 'sparsecbm[otel]'"
        )


class Tracing:
    """Where spans go.

    Args:
        provider: of OpenTelemetry, which exports them.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """The application, with a span around each request."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        tracer = self._provider.get_tracer("sparsecbm", sparsecbm.__version__)
        propagator = TraceContextTextMapPropagator()

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 0

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            with tracer.start_as_current_span(
                scope["method"],
                propagator.extract(Headers(scope=scope)),
                SpanKind.SERVER,
                record_exception=False,  # its message may hold a text
                set_status_on_exception=False,
            ) as span:
                try:
                    await app(scope, receive, noting)
                except Exception:
                    status = status or 500
                    raise
                finally:
                    status = status or 499  # no answer was begun: the client left
                    route = getattr(scope.get("route"), "path", None)
                    if route is not None:
                        span.update_name(f"{scope['method']} {route}")
                        span.set_attribute("http.route", route)
                    span.set_attribute("http.request.method", scope["method"])
                    span.set_attribute("http.response.status_code", status)
                    span.set_attribute("request_id", structlog.contextvars.get_contextvars().get("request_id", ""))
                    if status >= 500:
                        span.set_status(StatusCode.ERROR)

        return traced

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def to_endpoint(endpoint: str) -> Tracing:
    """Tracing to a collector that takes OTLP over HTTP.

    Args:
        endpoint: its address, such as ``http://127.0.0.1:4318``.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "sparsecbm", "service.version": sparsecbm.__version__})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
