"""What holds for every request, around an application that does as it is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from serving.metrics import Metrics
from serving.middleware import REQUEST_ID, UNMATCHED, RequestMiddleware

pytestmark = pytest.mark.anyio


class Counted(Metrics):
    """Metrics that remember requests and write nothing."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []

    def request(self, route: str, code: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((route, code))


async def greet(_: Request) -> Response:
    return PlainTextResponse("hello")


async def own(_: Request) -> Response:
    return PlainTextResponse("hello", headers={"content-security-policy": "default-src 'self'"})


async def fail(_: Request) -> Response:
    raise ZeroDivisionError("the user's own text")


async def fail_late(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        yield b"hel"
        raise ZeroDivisionError("the user's own text")

    return StreamingResponse(parts())


async def hang(_: Request) -> Response:
    await asyncio.sleep(60)
    raise AssertionError


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def app(counted: Counted) -> Starlette:
    routes = [
        Route("/greet/{name}", greet),
        Route("/own", own),
        Route("/fail", fail),
        Route("/late", fail_late),
        Route("/hang", hang),
    ]
    return around(routes, counted, returns_id=True)


def around(routes: list[Route], counted: Counted, returns_id: bool) -> Starlette:
    middleware = Middleware(RequestMiddleware, metrics=counted, returns_id=returns_id)
    return Starlette(routes=routes, middleware=[middleware])


def client(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")


@pytest.mark.parametrize("path", ["/greet/you", "/own", "/nothing", "/fail"])
async def test_every_answer_has_the_security_headers(app: Starlette, path: str) -> None:
    answer = await client(app).get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src" in answer.headers["content-security-policy"]


async def test_answers_own_header_stays(app: Starlette) -> None:
    answer = await client(app).get("/own")
    assert answer.headers.get_list("content-security-policy") == ["default-src 'self'"]


async def test_request_id_is_returned(app: Starlette) -> None:
    answer = await client(app).get("/own", headers={REQUEST_ID: "mine-1"})
    assert answer.headers[REQUEST_ID] == "mine-1"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "caf\u00e9", "a\tb"])
async def test_unsafe_request_id_is_replaced(app: Starlette, given: str) -> None:
    answer = await client(app).get("/own", headers={REQUEST_ID.encode(): given.encode("latin-1")})
    assert re.fullmatch("[0-9a-f-]{36}", answer.headers[REQUEST_ID])


async def test_request_id_is_left_to_a_server_that_returns_it(counted: Counted) -> None:
    app = around([Route("/own", own)], counted, returns_id=False)
    assert REQUEST_ID not in (await client(app).get("/own")).headers


async def test_failure_is_answered_in_the_one_shape_without_its_words(app: Starlette) -> None:
    answer = await client(app).get("/fail")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "internal" and answer.json()["error"]["detail"] is None
    assert "text" not in answer.text


async def test_failure_is_logged_without_its_words(app: Starlette, capfd: pytest.CaptureFixture[str]) -> None:
    await client(app).get("/fail")
    assert "the user's own text" not in "".join(capfd.readouterr())


async def test_failure_after_the_head_begins_no_second_answer(app: Starlette) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/late",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "http_version": "1.1",
    }
    await app(scope, receive, send)
    assert [message["type"] for message in sent].count("http.response.start") == 1


async def test_request_is_counted_by_its_routes_template(app: Starlette, counted: Counted) -> None:
    await client(app).get("/greet/you")
    await client(app).get("/fail")
    assert counted.requests == [("/greet/{name}", 200), ("/fail", 500)]


async def test_paths_of_no_route_are_counted_as_one(app: Starlette, counted: Counted) -> None:
    for path in ("/a", "/b/c", "/%00"):
        await client(app).get(path)
    assert set(counted.requests) == {(UNMATCHED, 404)}


async def test_request_of_a_client_that_left_is_counted_as_499(app: Starlette, counted: Counted) -> None:
    task = asyncio.create_task(client(app).get("/hang"))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert counted.requests == [("/hang", 499)]


async def test_other_than_http_passes_through(counted: Counted) -> None:
    seen: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        raise AssertionError

    async def send(_: Message) -> None:
        raise AssertionError

    await RequestMiddleware(inner, counted, returns_id=True)({"type": "lifespan"}, receive, send)
    assert seen == ["lifespan"] and counted.requests == []
