"""A replica's costs, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.process import measure
from sparsecbm.errors import SetupError


def test_a_fresh_process_is_timed_and_weighed(bundle: Path) -> None:
    found = measure(bundle, threads=1, texts=["the pasta was tasty", "the room was loud"], repeats=1)
    assert 0 < found["import_to_answer_s"] < found["start_to_answer_s"]
    assert found["first_explanation_s"] > 0
    assert 20e6 < found["first_prediction_bytes"] < found["first_explanation_bytes"] < 2e9


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is not a bundle"):
        measure(tmp_path, threads=1, texts=["text"], repeats=1)
