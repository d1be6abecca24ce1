"""What others can reach of a running server, and what they get without a key or Ray's token."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import expect

from serving import keys
from serving.keys import ROLES, Role
from tests.console.conftest import chromium
from tests.server.conftest import Launcher, Server, is_loopback, launching, wait_for

REVIEW = "the pasta was tasty , the waiter was rude ."
TOKEN = "RAY_AUTH_TOKEN"
_ASK_RAY = """
import sys
from ray._raylet import GcsClient

print("keys:", len(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=None, timeout=5)))
"""


# Ray's token


def environment(server: Server) -> dict[str, str]:
    return psutil.Process(next(iter(server.replicas()))).environ()


def ask_ray(server: Server, **variables: str) -> subprocess.CompletedProcess[str]:
    """What Ray's control store answers to a program with this environment."""
    [port] = [port for name, _, port in server.ports() if name == "gcs_server"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", _ASK_RAY, f"127.0.0.1:{port}"]
    return subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=False, timeout=120)


def test_ray_answers_who_has_its_token(server: Server) -> None:
    asked = ask_ray(server, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=environment(server)[TOKEN])
    assert asked.stdout.startswith("keys: "), asked.stderr


@pytest.mark.parametrize(
    "variables",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", TOKEN: "0" * 64}],
    ids=["no token", "another token"],
)
def test_ray_refuses_who_has_not(server: Server, variables: dict[str, str]) -> None:
    asked = ask_ray(server, **variables)
    assert asked.stdout == ""
    assert "AuthenticationError" in asked.stderr


def test_rays_token_is_in_no_file_output_or_command_line(server: Server) -> None:
    server.predict(REVIEW)
    token = environment(server)[TOKEN]
    files = [path for folder in (server.folder, server.scratch) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20  # or Ray's logs are elsewhere
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    assert [process for process in server.processes() if token in " ".join(process.cmdline())] == []


def test_what_faces_the_network_has_no_token(server: Server) -> None:
    [haproxy] = [process for process in server.processes() if process.name() == "haproxy"]
    assert "PATH" in haproxy.environ()
    assert TOKEN not in haproxy.environ()


def test_state_folder_is_the_users_alone(server: Server) -> None:
    assert server.state.stat().st_mode & 0o777 == 0o700


# A server on every interface


@dataclass
class Open:
    """A server on every interface, and a key of each role, by whom it is called."""

    server: Server
    keys: dict[Role, str]

    def get(self, path: str, key: str | None = None, url: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.get((url or self.server.url) + path, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Open]:
    with launching(tmp_path_factory.mktemp("open")) as launcher:
        path = launcher.state / "keys.json"
        made = {role: keys.create(path, f"who may {role}", role)[0] for role in ROLES}
        yield Open(launcher.start(bundle, "--host=0.0.0.0"), made)


def own_addresses() -> list[str]:
    """This machine's addresses that other machines may reach."""
    found = [address.address for names in psutil.net_if_addrs().values() for address in names]
    return [address for address in found if address.count(".") == 3 and not is_loopback(address)]


@pytest.mark.slow
def test_nothing_but_http_is_on_an_open_interface(opened: Open) -> None:
    assert opened.get("/v1/model", opened.keys["predict"]).status_code == 200
    found = [found for found in opened.server.ports() if not is_loopback(found[1])]
    assert found == [("haproxy", "0.0.0.0", opened.server.port)]


@pytest.mark.slow
def test_nothing_but_http_takes_a_connection_from_another_interface(opened: Open) -> None:
    addresses = own_addresses()
    if not addresses:
        pytest.skip("this machine has no other interface than loopback")
    taken = set()
    for _, _, port in opened.server.ports():
        with socket.socket() as connection:
            connection.settimeout(5)
            if connection.connect_ex((addresses[0], port)) == 0:
                taken.add(port)
    assert taken == {opened.server.port}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/model", "/v1/interventions", "/metrics"])
def test_no_key_no_answer(opened: Open, path: str) -> None:
    answer = opened.get(path)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["error"]["type"] == "unauthorized"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz"])
def test_pages_and_probes_need_no_key(opened: Open, path: str) -> None:
    assert opened.get(path).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "statuses"),
    [("/v1/model", [200, 200, 200]), ("/v1/interventions", [403, 200, 200]), ("/metrics", [403, 403, 200])],
)
def test_roles_reach_as_far_as_they_should(opened: Open, path: str, statuses: list[int]) -> None:
    assert [opened.get(path, opened.keys[role]).status_code for role in ROLES] == statuses


@pytest.mark.slow
def test_no_inner_port_shows_the_model_without_a_key(opened: Open) -> None:
    answered = []
    for name, _, port in opened.server.ports():
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/v1/model", timeout=5)
        except httpx.TransportError:  # it speaks no HTTP
            continue
        answered.append(name)
        assert "tiny-reviews" not in answer.text, name
    for name in ("haproxy", "ray::ServeRepli", "ray::ProxyActor"):
        assert [found for found in answered if found.startswith(name)], answered


@pytest.mark.slow
def test_revoked_key_is_refused_within_seconds(opened: Open) -> None:
    path = opened.server.state / "keys.json"
    given, key = keys.create(path, "guest", "predict")
    wait_for("the new key is known", lambda: opened.get("/v1/model", given).status_code == 200, 5)
    keys.revoke(path, key.id)
    wait_for("the key is refused", lambda: opened.get("/v1/model", given).status_code == 401, 5)


@pytest.mark.slow
def test_no_key_is_in_a_file_or_printed(opened: Open) -> None:
    for key in opened.keys.values():
        opened.get("/v1/model", key)
    files = [path for folder in (opened.server.folder, opened.server.scratch) for path in folder.rglob("*")]
    held = [path for path in [*files, *opened.server.state.iterdir()] if path.is_file()]
    assert [path for path in held if any(key.encode() in path.read_bytes() for key in opened.keys.values())] == []


@pytest.mark.slow
def test_console_reads_with_a_key(opened: Open) -> None:
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(30_000)
        page.goto(opened.server.url)
        page.get_by_label("Key", exact=True).fill(opened.keys["correct"])
        page.get_by_role("button", name="Use this key").click()
        page.get_by_role("heading", name="tiny-reviews").wait_for()
        page.get_by_label("Text to read").fill(REVIEW)
        page.get_by_role("button", name="Read it").click()
        expect(page.get_by_role("article", name="Concept food")).to_be_visible()


@pytest.mark.slow
def test_each_server_has_a_token_of_its_own(opened: Open, server: Server) -> None:
    assert environment(opened.server)[TOKEN] != environment(server)[TOKEN]


@pytest.mark.slow
@pytest.mark.parametrize(("host", "reached"), [("::1", "[::1]"), ("::", "127.0.0.1")])
def test_address_of_version_6_is_served(launcher: Launcher, bundle: Path, host: str, reached: str) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    keys.create(launcher.state / "keys.json", "ada", "operate")
    server = launcher.launch(bundle, f"--host={host}")
    url = f"http://{reached}:{server.port}"
    wait_for("the server is ready", lambda: "ready: " in server.out.read_text(), 150)
    assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
    http = [found for found in server.ports() if found[0] == "haproxy"]
    assert http == [("haproxy", host, server.port)]
