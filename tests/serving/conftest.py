"""The tiny bundle's engine, and metrics and a ledger of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import values

from serving.engine import Engine, EngineSettings
from serving.ledger import Ledger
from serving.metrics import Metrics
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
def metrics(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    # Metrics set both for their process, which here goes on to other tests.
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""))
    metrics = Metrics(tmp_path / "metrics", manifest)
    yield metrics
    metrics.close()
