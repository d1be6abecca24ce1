"""A running server from outside: what it loads, where it listens, and its errors as they come through the proxy."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from serving.headers import SECURITY
from tests.server.conftest import Server, is_loopback, wait_for

REVIEW = "the pasta was tasty , the waiter was rude ."


def assert_is_error(answer: httpx.Response, status: int, type: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "detail"}
    assert error["type"] == type
    assert error["message"].endswith(".")


def raw(server: Server, request: bytes) -> httpx.Response:
    """The answer to bytes that need not be HTTP."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)  # type: ignore[arg-type]


def test_no_process_imports_torch_or_transformers(server: Server) -> None:
    server.predict(REVIEW)
    imported = {int(file.name): set(file.read_text().split()) for file in server.imported.iterdir()}
    for replica in server.replicas():
        assert {"onnxruntime", "tokenizers"} <= imported[replica]  # or the record is worth nothing
    assert [modules & {"torch", "transformers"} for modules in imported.values()] == [set()] * len(imported)


def test_replica_maps_nothing_of_torch(server: Server) -> None:
    server.predict(REVIEW)
    for replica in server.replicas():
        files = [file.path for file in psutil.Process(replica).memory_maps()]
        assert any("onnxruntime" in file for file in files)
        assert not [file for file in files if "torch" in file]


def test_nothing_is_written_outside_of_its_own_folders(server: Server) -> None:
    server.predict(REVIEW)
    [folder] = server.scratch.iterdir()
    assert folder.name.startswith("sparsecbm-")
    assert list(server.home.iterdir()) == []


def test_every_port_is_on_loopback(server: Server) -> None:
    server.predict(REVIEW)
    assert [found for found in server.ports() if not is_loopback(found[1])] == []


def test_proxy_is_haproxy(server: Server) -> None:
    assert [name for name, _, port in server.ports() if port == server.port] == ["haproxy"]


def test_overload_is_429_with_retry_after(server: Server) -> None:
    def ask(_: int) -> httpx.Response:
        body = {"inputs": [REVIEW] * 16, "explain": ["tokens", "subnetwork"]}
        return server.post("/v1/predict", body)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(36)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert_is_error(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1


def test_request_past_its_time_is_504(server: Server) -> None:
    body = {"inputs": [REVIEW] * 16, "explain": ["tokens", "subnetwork"]}
    answer = httpx.post(f"{server.url}/v1/predict", json=body, headers={"x-request-timeout": "0.001"}, timeout=60)
    assert_is_error(answer, 504, "deadline_exceeded")


def test_work_of_clients_that_left_is_not_done(server: Server) -> None:
    heavy = {"inputs": [REVIEW] * 15, "explain": ["tokens", "subnetwork"]}
    light = json.dumps({"inputs": [REVIEW]}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(light)}\r\n"
    before = server.metrics().get("sparsecbm_cancelled_texts_total", 0)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            server.post("/v1/predict", heavy)

    def noticed() -> bool:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + light)
            time.sleep(0.01)  # for as long as the one before it runs
        return server.metrics()["sparsecbm_cancelled_texts_total"] > before

    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(keep_busy) for _ in range(2)]
        try:
            wait_for("a request whose client left is taken out of the queue", noticed, 60)
        finally:
            stop.set()
    for worker in busy:
        worker.result()


def test_open_inference_protocol_is_served(server: Server) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [REVIEW]}
    answer = server.post("/v2/models/tiny-reviews/infer", {"inputs": [tensor]})
    assert answer.json()["outputs"][0]["data"] == [server.predict(REVIEW)["predictions"][0]["label"]["value"]]


def test_body_over_the_limit_is_413(server: Server) -> None:
    assert_is_error(server.post("/v1/predict", {"inputs": ["x" * 65536]}), 413, "too_large")


def test_chunked_body_over_the_limit_is_413(server: Server) -> None:
    chunks = (b"x" * 8192 for _ in range(9))
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/predict", content=chunks, headers=headers, timeout=60)
    assert_is_error(answer, 413, "too_large")


MALFORMED = {
    "no-http": b"NOT HTTP AT ALL\r\n\r\n",
    "bad-header-name": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n",
    "too-long-a-header": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 32768 + b"\r\n\r\n",
    "bad-chunk": b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nNO SIZE\r\n",
}
malformed = pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)


@malformed
def test_malformed_http_is_400(server: Server, request_: bytes) -> None:
    assert raw(server, request_).status_code == 400


@pytest.mark.xfail(reason="HAProxy 2.8 ignores errorfile for a request that it can't parse (its issue 3032)")
@malformed
def test_malformed_http_is_answered_in_our_shape(server: Server, request_: bytes) -> None:
    assert_is_error(raw(server, request_), 400, "bad_request")


def test_unknown_path_is_404(server: Server) -> None:
    assert_is_error(httpx.get(f"{server.url}/nothing"), 404, "not_found")


@pytest.mark.parametrize("target", ["OPTIONS *", "GET *", "GET nothing", "GET /-/routes", "GET /%2d/ROUTES"])
def test_what_ray_would_answer_itself_is_404(server: Server, target: str) -> None:
    answer = raw(server, f"{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert_is_error(answer, 404, "not_found")
    assert answer.headers.items() >= SECURITY.items()


def test_unknown_host_is_403(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/model", headers={"host": "elsewhere.example"})
    assert_is_error(answer, 403, "unknown_host")


def test_request_id_comes_back_once(server: Server) -> None:
    answer = httpx.get(f"{server.url}/healthz", headers={"x-request-id": "of-the-client"})
    assert answer.headers.get_list("x-request-id") == ["of-the-client"]


def test_ray_takes_no_instructions_from_headers(server: Server) -> None:
    headers = {"x-request-timeout-seconds": "-1", "x-request-disconnect-disabled": "?", "x-request-id": "\u00e9"}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert httpx.get(f"{server.url}/healthz", headers=encoded).status_code == 200


def test_messages_keep_what_json_can_hold(server: Server) -> None:
    text = "tasty \u2028 \U0001f600 \x00 pasta"
    answer = server.post("/v1/predict", {"inputs": [{"id": text, "text": text}]})
    assert json.loads(answer.content)["predictions"][0]["id"] == text
