"""The application behind keys: every route, every role, and what is told to those who may not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute

from serving import access, keys
from serving.access import NEEDED
from serving.app import create_app
from serving.batcher import Batcher
from serving.engine import Engine
from serving.keys import ROLES, Keyring, Role
from serving.ledger import Ledger
from serving.metrics import Metrics
from serving.services import Services
from serving.settings import read_settings

pytestmark = pytest.mark.anyio

Start = Callable[..., FastAPI]


@pytest.fixture
async def start(tmp_path: Path, engine: Engine, ledger: Ledger, metrics: Metrics) -> AsyncIterator[Start]:
    """Makes the application of the settings given, and stops it at the end."""
    batcher = Batcher(engine, metrics, 8, 4)

    def start(**given: object) -> FastAPI:
        settings = read_settings(state_dir=tmp_path, max_inputs=4, max_queue=8, max_batch=4, **given)
        return create_app(Services(settings, engine, batcher, ledger, metrics))

    batcher.start()
    yield start
    await batcher.stop()


@pytest.fixture
def made(tmp_path: Path) -> dict[Role, str]:
    """A key of each role."""
    return {role: keys.create(tmp_path / "keys.json", f"who may {role}", role)[0] for role in ROLES}


def client(app: FastAPI, key: str | None = None) -> httpx.AsyncClient:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


def type_of(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "detail"} and error["message"].endswith(".")
    return str(error["type"])


def request_to(name: str) -> tuple[str, str]:
    """Method and path of a request that a route of the table takes."""
    method, path = name.split(" ")
    return method, path.replace("*", "anything").replace("{id}", "0198c0de-0000-7000-8000-000000000000")


# The table


async def test_every_route_is_in_the_table_and_the_table_has_no_other(start: Start) -> None:
    app = start()
    assert {name for route in app.routes for name in access.names(route)} == set(NEEDED)


@pytest.mark.parametrize("name", NEEDED)
async def test_no_route_answers_but_who_may(start: Start, made: dict[Role, str], name: str) -> None:
    app = start(require_keys=True)
    method, path = request_to(name)
    needed = NEEDED[name]
    for held in (None, *ROLES):
        async with client(app, made[held] if held else None) as caller:
            status = (await caller.request(method, path)).status_code
        if needed is None or (held is not None and ROLES.index(held) >= ROLES.index(needed)):
            assert status not in (401, 403), held
        else:
            assert status == (401 if held is None else 403), held


@pytest.mark.parametrize("name", NEEDED)
async def test_head_tells_no_more_than_the_route(start: Start, made: dict[Role, str], name: str) -> None:
    _, path = request_to(name)
    async with client(start(require_keys=True)) as caller:
        status = (await caller.head(path)).status_code
    assert status in ((200, 404, 405) if NEEDED[name] is None else (401, 405))


async def greet(_: Request) -> Response:
    return PlainTextResponse("hello")


@pytest.mark.parametrize(
    "route",
    [
        Route("/new", greet),
        Route("/v1/predict", greet, methods=["DELETE"]),
        Route("/any", greet, methods=None),
        Mount("/mounted", routes=[]),
        WebSocketRoute("/socket", greet),
    ],
    ids=lambda route: route.path,
)
@pytest.mark.parametrize("with_keys", [True, False])
def test_route_that_the_table_lacks_is_refused(tmp_path: Path, route: Route, with_keys: bool) -> None:
    if route.path == "/any":
        route.methods = set()  # Starlette's for any method
    with pytest.raises(LookupError, match="is not in the table"):
        access.guard([route], NEEDED, Keyring(tmp_path / "keys.json") if with_keys else None)


def test_methods_of_one_route_have_one_role() -> None:
    needed: dict[str, Role | None] = {"GET /both": "predict", "POST /both": "operate"}
    with pytest.raises(LookupError, match="different roles"):
        access.guard([Route("/both", greet, methods=["GET", "POST"])], needed, None)


# Keys in requests


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
async def test_scheme_may_be_in_any_case(start: Start, made: dict[Role, str], scheme: str) -> None:
    async with client(start(require_keys=True)) as caller:
        answer = await caller.get("/v1/model", headers={"authorization": f"{scheme} {made['predict']}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("given", ["{}", "Basic {}", "Bearer", "Bearer ", "Bearer{}", "Token {}", ""])
async def test_other_than_a_bearers_key_is_none(start: Start, made: dict[Role, str], given: str) -> None:
    async with client(start(require_keys=True)) as caller:
        answer = await caller.get("/v1/model", headers={"authorization": given.format(made["operate"])})
    assert (answer.status_code, type_of(answer)) == (401, "unauthorized")


@pytest.mark.parametrize("given", [b"sparsecbm_", b"\xff\xfe", b"x" * 5000, b"'; --"])
async def test_unknown_key_is_refused_and_not_repeated(start: Start, made: dict[Role, str], given: bytes) -> None:
    async with client(start(require_keys=True)) as caller:
        answer = await caller.get("/v1/model", headers={b"authorization": b"Bearer " + given})
    assert (answer.status_code, type_of(answer)) == (401, "unauthorized")
    assert given not in answer.content


async def test_key_elsewhere_than_in_the_header_is_none(start: Start, made: dict[Role, str]) -> None:
    key = made["operate"]
    async with client(start(require_keys=True)) as caller:
        for place in ({"params": {"key": key}}, {"headers": {"cookie": f"key={key}"}}, {"headers": {"x-api-key": key}}):
            assert (await caller.request("GET", "/v1/model", **place)).status_code == 401  # type: ignore[arg-type]


async def test_refusal_says_how_to_authenticate(start: Start) -> None:
    async with client(start(require_keys=True)) as caller:
        assert (await caller.get("/v1/model")).headers["www-authenticate"] == "Bearer"


async def test_refusal_has_the_security_headers(start: Start) -> None:
    async with client(start(require_keys=True)) as caller:
        headers = (await caller.get("/v1/model")).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


async def test_lower_role_is_told_which_one_is_needed(start: Start, made: dict[Role, str]) -> None:
    async with client(start(require_keys=True), made["predict"]) as caller:
        answer = await caller.get("/metrics")
    assert (answer.status_code, type_of(answer)) == (403, "forbidden")
    assert answer.json()["error"]["detail"] == {"needed": "operate", "role": "predict"}


async def test_key_is_checked_before_the_body(start: Start) -> None:
    async with client(start(require_keys=True)) as caller:
        answer = await caller.post("/v1/predict", content=b"{", headers={"content-type": "text/plain"})
    assert answer.status_code == 401


async def test_revoked_key_is_refused_by_a_running_server(
    start: Start, made: dict[Role, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_LOOK_S", 0.0)
    async with client(start(require_keys=True), made["predict"]) as caller:
        assert (await caller.get("/v1/model")).status_code == 200
        keys.revoke(tmp_path / "keys.json", keys.read(tmp_path / "keys.json")[0].id)
        assert (await caller.get("/v1/model")).status_code == 401


async def test_keys_that_cannot_be_read_are_unavailable(
    start: Start, made: dict[Role, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys.json").write_text("{")
    async with client(start(require_keys=True), made["operate"]) as caller:
        answer = await caller.get("/v1/model")
        assert (await caller.get("/healthz")).status_code == 200
    assert (answer.status_code, type_of(answer)) == (503, "unavailable")
    assert str(tmp_path) not in answer.text


async def test_request_knows_whose_key_it_has(tmp_path: Path, made: dict[Role, str]) -> None:
    async def who(request: Request) -> Response:
        return PlainTextResponse(request.state.who)

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes.append(Route("/who", who))
    access.guard(app.routes, {"GET /who": "predict"}, Keyring(tmp_path / "keys.json"))
    async with client(app, made["correct"]) as caller:
        assert (await caller.get("/who")).text == "who may correct"


async def test_keys_are_logged_by_nobody(
    start: Start, made: dict[Role, str], capfd: pytest.CaptureFixture[str]
) -> None:
    app = start(require_keys=True)
    for key in (*made.values(), "sparsecbm_wrong"):
        async with client(app, key) as caller:
            await caller.get("/v1/model")
    printed = "".join(capfd.readouterr())
    assert not [key for key in (*made.values(), "sparsecbm_wrong") if key in printed]


# Where no key is needed


async def test_loopback_needs_no_key(start: Start) -> None:
    async with client(start()) as caller:
        assert (await caller.get("/metrics")).status_code == 200


@pytest.mark.parametrize("key", ["sparsecbm_unknown", ""])
async def test_key_where_none_is_needed_is_not_looked_at(start: Start, key: str) -> None:
    async with client(start(), key) as caller:
        assert (await caller.get("/v1/model")).status_code == 200


async def test_other_address_needs_keys(start: Start) -> None:
    async with client(start(host="0.0.0.0")) as caller:
        answer = await caller.get("/v1/model", headers={"host": "any.example"})
    assert answer.status_code == 401


async def test_nothing_that_a_proxy_may_add_stands_for_a_key(start: Start) -> None:
    headers = {"x-forwarded-for": "127.0.0.1", "forwarded": "for=127.0.0.1", "x-forwarded-user": "ada"}
    async with client(start(host="0.0.0.0")) as caller:
        assert (await caller.get("/v1/model", headers=headers)).status_code == 401


async def test_metrics_may_be_open_and_nothing_else_is(start: Start) -> None:
    async with client(start(require_keys=True, open_metrics=True)) as caller:
        assert (await caller.get("/metrics")).status_code == 200
        assert (await caller.get("/v1/interventions")).status_code == 401


# Other sites' pages

ORIGIN = "https://reviews.example"


async def test_without_origins_no_answer_has_cors_headers(start: Start) -> None:
    async with client(start()) as caller:
        asking = {"origin": ORIGIN, "access-control-request-method": "POST"}
        for answer in (await caller.options("/v1/predict", headers=asking), await caller.get("/v1/model")):
            assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_named_origin_may_ask_and_post(start: Start) -> None:
    async with client(start(cors_origins=[ORIGIN])) as caller:
        asking = {
            "origin": ORIGIN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        asked = await caller.options("/v1/predict", headers=asking)
        sent = await caller.post(
            "/v1/predict", json={"inputs": ["fish"]}, headers={"origin": ORIGIN, "sec-fetch-site": "cross-site"}
        )
    assert (asked.status_code, sent.status_code) == (200, 200)
    for answer in (asked, sent):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in answer.headers


async def test_named_origin_can_read_that_it_needs_a_key(start: Start) -> None:
    async with client(start(require_keys=True, cors_origins=[ORIGIN])) as caller:
        answer = await caller.get("/v1/model", headers={"origin": ORIGIN})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, ORIGIN)


async def test_other_origin_is_allowed_nothing(start: Start) -> None:
    async with client(start(cors_origins=[ORIGIN])) as caller:
        other = "https://evil.example"
        asked = await caller.options("/v1/model", headers={"origin": other, "access-control-request-method": "GET"})
        sent = await caller.post("/v1/predict", json={"inputs": ["fish"]}, headers={"origin": other})
    assert "access-control-allow-origin" not in asked.headers
    assert (sent.status_code, type_of(sent)) == (403, "cross_site")


# The description


async def test_description_says_which_operations_need_a_key(start: Start) -> None:
    async with client(start(require_keys=True, open_metrics=True)) as caller:
        document = (await caller.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"] == {
        "type": "http",
        "scheme": "bearer",
        "description": "A key made by `sparsecbm keys create`.",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            role = access.table(open_metrics=True)[f"{method.upper()} {path}"]
            assert ("security" in operation) == (role is not None), path
            assert ({"401", "403"} <= set(operation["responses"])) or role is None, path
            if role is not None:
                assert f"`{role}`" in operation["description"]


async def test_description_of_a_server_without_keys_has_none(start: Start) -> None:
    async with client(start()) as caller:
        document = (await caller.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert not [
        operation for methods in document["paths"].values() for operation in methods.values() if "security" in operation
    ]
