"""Settings small enough to be measured in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.setting import Setting
from loadtests.texts import sample
from sparsecbm.bundle import read_bundle


@pytest.fixture
def setting(bundle: Path, tmp_path: Path) -> Setting:
    """The tiny int8 bundle, eight texts in batches of four, one round, one thread."""
    return Setting(bundle, read_bundle(bundle), sample(8), batch=4, rounds=1, threads=1, work=tmp_path / "work")
