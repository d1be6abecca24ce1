"""The tiny bundle's engine, and metrics and a ledger of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import values

from serving.engine import Engine, EngineSettings
from serving.ledger import Ledger
from serving.metrics import Metrics
from sparsecbm.bundle import Manifest, read_manifest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="session")
def engine(bundle: Path) -> Engine:
    return Engine.load(bundle, EngineSettings(threads=1))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
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
