"""The tiny bundle's engine and the application over it, with metrics and a ledger of the test's own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import values

from serving.app import create_app
from serving.batcher import Batcher
from serving.engine import Engine, EngineSettings
from serving.ledger import Ledger
from serving.metrics import Metrics
from serving.services import Services
from serving.settings import Settings, read_settings
from sparsecbm.bundle import Format, Manifest, Precision, read_manifest

MakeBundle = Callable[[Format, Precision], Path]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="session")
def engine(bundle: Path) -> Engine:
    return Engine.load(bundle, EngineSettings(threads=1))


@pytest.fixture(scope="session")
def make_bundle(checkpoint: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Exports the tiny checkpoint in a format and a precision."""
    from export.exporter import export_bundle
    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data

    def make(format: Format, precision: Precision) -> Path:
        folder = tmp_path_factory.mktemp("made") / "bundle"
        loaded, labelled = checkpoints.load(checkpoint), data.load(str(reviews), "dev")
        export_bundle(loaded, folder, labelled, "dev", precision, format=format)
        return folder

    return make


@pytest.fixture(scope="session")
def fp32_bundle(make_bundle: MakeBundle) -> Path:
    """The checkpoint as ONNX in fp32."""
    return make_bundle("onnx", "fp32")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    yield ledger
    ledger.close()


@pytest.fixture
def hashing(ledger_url: str) -> Iterator[Ledger]:
    """The ledger of a server that keeps no texts, in each database."""
    ledger = Ledger(ledger_url, store_texts=False)
    yield ledger
    ledger.close()


@pytest.fixture
def metrics(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    # Metrics set both for their process, which here goes on to other tests.
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    metrics = Metrics(tmp_path / "metrics", manifest)
    yield metrics
    metrics.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings(
        state_dir=tmp_path, max_body_bytes=20_000, max_inputs=4, max_text_chars=1000, max_queue=8, max_batch=4
    )


@pytest.fixture
def idle_app(settings: Settings, engine: Engine, ledger: Ledger, metrics: Metrics) -> FastAPI:
    """The application before it is started."""
    batcher = Batcher(engine, metrics, settings.max_queue, settings.max_batch)
    return create_app(Services(settings, engine, batcher, ledger, metrics))


@pytest.fixture
async def app(idle_app: FastAPI) -> AsyncIterator[FastAPI]:
    async with idle_app.router.lifespan_context(idle_app):
        yield idle_app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def url(tmp_path: Path, engine: Engine, ledger: Ledger, metrics: Metrics) -> Iterator[str]:
    """Where the application is served by a real server, with its own limits."""
    settings = read_settings(state_dir=tmp_path)
    batcher = Batcher(engine, metrics, settings.max_queue, settings.max_batch)
    app = create_app(Services(settings, engine, batcher, ledger, metrics))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def error(answer: httpx.Response, status: int, type: str) -> dict[str, Any]:
    """The error in an answer, after a look at its shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert set(content) == {"error"} and set(content["error"]) == {"type", "message", "detail"}
    found: dict[str, Any] = content["error"]
    assert found["type"] == type
    return found
