"""Traces: the caller's in log lines, and spans at a collector, without a text in them."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from starlette.datastructures import Headers

from serving import logs, tracing
from serving.app import create_app
from serving.services import Services
from sparsecbm.errors import SetupError

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = f"00-{TRACE}-00f067aa0ba902b7-01"
SECRET = "zyzzyva"

pytestmark = pytest.mark.anyio


class Collector(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP, and keeps them."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Span]:
        return [
            span
            for body in self.received
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.received.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, object]:
    return {
        item.key: item.value.int_value if item.value.HasField("int_value") else item.value.string_value
        for item in span.attributes
    }


async def sent(app: FastAPI, collector: Collector, *requests: httpx.Request) -> list[Span]:
    """The spans of requests, once the application has ended."""
    services: Services = app.state.services
    traced = create_app(services, tracing=tracing.to_endpoint(collector.url))
    transport = httpx.ASGITransport(app=traced)
    async with traced.router.lifespan_context(traced), httpx.AsyncClient(transport=transport) as client:
        for request in requests:
            await client.send(request)
    return collector.spans()


def predict(**headers: str) -> httpx.Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Request("POST", "http://localhost/v1/predict", json={"inputs": [SECRET]}, headers=named)


async def test_request_is_a_span(idle_app: FastAPI, collector: Collector) -> None:
    [span] = await sent(idle_app, collector, predict(x_request_id="mine"))
    assert (span.name, span.kind) == ("POST /v1/predict", Span.SPAN_KIND_SERVER)
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/v1/predict",
        "http.response.status_code": 200,
        "request_id": "mine",
    }


async def test_span_is_in_the_callers_trace(idle_app: FastAPI, collector: Collector) -> None:
    [span] = await sent(idle_app, collector, predict(traceparent=CALLER))
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, "00f067aa0ba902b7")


async def test_span_without_a_caller_begins_a_trace(idle_app: FastAPI, collector: Collector) -> None:
    [span] = await sent(idle_app, collector, predict(traceparent="nonsense"))
    assert span.trace_id and not span.parent_span_id


async def test_no_span_holds_a_text_a_path_or_a_query(idle_app: FastAPI, collector: Collector) -> None:
    urls = [f"http://localhost/{path}" for path in (SECRET, f"v1/interventions/{SECRET}", f"v1/model?{SECRET}")]
    spans = await sent(idle_app, collector, predict(), *(httpx.Request("GET", url) for url in urls))
    assert [span.name for span in spans] == [
        "POST /v1/predict",
        "GET",
        "GET /v1/interventions/{id}",
        "GET /v1/model",
    ]
    assert SECRET.encode() not in b"".join(collector.received)


async def test_failure_is_marked_without_its_words(
    idle_app: FastAPI, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Services, *_: object) -> None:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(Services, "predict", fail)
    [span] = await sent(idle_app, collector, predict())
    assert attributes(span)["http.response.status_code"] == 500
    assert span.status.code == Status.STATUS_CODE_ERROR and not span.events
    assert SECRET.encode() not in b"".join(collector.received)


@pytest.mark.parametrize("header", [CALLER, f"cc-{TRACE}-00f067aa0ba902b7-01-later"])
def test_callers_trace_is_read(header: str) -> None:
    assert tracing.of_caller(Headers({"traceparent": header})) == {"trace_id": TRACE}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        CALLER.upper(),
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-00f067aa0ba902b7-01",
    ],
)
def test_what_is_no_trace_is_ignored(header: str) -> None:
    assert tracing.of_caller(Headers({"traceparent": header})) == {}


async def test_log_lines_name_request_and_trace(client: httpx.AsyncClient, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug")
    await client.get("/healthz", headers={"traceparent": CALLER, "x-request-id": "mine"})
    await client.get("/healthz", headers={"x-request-id": "next"})
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["request_id"], first["trace_id"]) == ("mine", TRACE)
    assert second["request_id"] == "next" and "trace_id" not in second


def test_missing_exporter_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match=r"sparsecbm\[otel\]"):
        tracing.check_installed()


def test_installed_exporter_is_found() -> None:
    tracing.check_installed()
