"""Whose requests are refused: those of other names and of other sites' pages."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from serving.origins import OriginMiddleware

pytestmark = pytest.mark.anyio

HOSTS = frozenset(["localhost", "127.0.0.1", "[::1]", "reviews.example"])


async def greet(_: Request) -> Response:
    return PlainTextResponse("hello")


def client(hosts: frozenset[str] | None = HOSTS) -> httpx.AsyncClient:
    middleware = Middleware(OriginMiddleware, hosts=hosts, origins=["https://friend.example"])
    app = Starlette(routes=[Route("/", greet, methods=["GET", "POST"])], middleware=[middleware])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "reviews.EXAMPLE:443"],
)
async def test_known_host_is_answered(host: str) -> None:
    assert (await client().get("/", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "localhost.evil.example", "evil.example:8000", "localhost@evil.example", "127.0.0.2", "::1"],
)
async def test_unknown_host_is_refused(host: str) -> None:
    answer = await client().get("/", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "unknown_host")


@pytest.mark.parametrize("name", ["x-forwarded-host", "forwarded", "x-forwarded-for"])
async def test_host_is_not_read_from_what_a_proxy_may_add(name: str) -> None:
    answer = await client().get("/", headers={"host": "evil.example", name: "localhost"})
    assert answer.status_code == 403


async def test_any_host_is_answered_where_none_is_named() -> None:
    assert (await client(None).get("/", headers={"host": "any.example"})).status_code == 200


async def test_refusal_does_not_repeat_the_host() -> None:
    assert "evil" not in (await client().get("/", headers={"host": "evil.example"})).text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin", "origin": "http://localhost"},
        {"sec-fetch-site": "none"},
        # A proxy before the server may have put another name in the place of the browser's.
        {"sec-fetch-site": "same-origin", "origin": "https://public.example"},
        {"origin": "http://localhost:8000", "host": "localhost:8000"},
        {"origin": "https://reviews.example", "host": "reviews.EXAMPLE"},
        {"sec-fetch-site": "cross-site", "origin": "https://friend.example"},
        {"origin": "https://friend.example"},
    ],
)
async def test_post_of_a_program_an_own_page_or_a_friend_is_answered(headers: dict[str, str]) -> None:
    assert (await client().post("/", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost"},
        {"sec-fetch-site": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000", "host": "localhost:8000"},
        {"origin": "http://friend.example"},
        {"origin": "https://friend.example.evil.example"},
    ],
)
@pytest.mark.parametrize("hosts", [HOSTS, None])
async def test_post_of_another_sites_page_is_refused(headers: dict[str, str], hosts: frozenset[str] | None) -> None:
    answer = await client(hosts).post("/", headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "cross_site")


async def test_get_of_another_sites_page_is_answered() -> None:
    """It can't read the answer: no header of ours allows it to."""
    answer = await client().get("/", headers={"sec-fetch-site": "cross-site", "origin": "https://evil.example"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]
