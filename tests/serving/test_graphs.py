"""ONNX graphs: opened, checked, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from serving.graphs import PREDICT, check_signature, open_session
from sparsecbm.errors import BundleError

INPUTS = ("input_ids", "attention_mask")


@pytest.fixture
def session(bundle: Path) -> ort.InferenceSession:
    return open_session(bundle / PREDICT, 1)


def test_session_runs(session: ort.InferenceSession) -> None:
    ids = np.full((2, 5), 4, np.int64)
    [logits] = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert logits.shape == (2, 3, 3)


def test_session_uses_the_threads_given(bundle: Path) -> None:
    options = open_session(bundle / PREDICT, 1).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_missing_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=PREDICT):
        open_session(tmp_path / PREDICT, 1)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / PREDICT).write_bytes(b"no graph")
    with pytest.raises(BundleError, match="ONNX Runtime"):
        open_session(tmp_path / PREDICT, 1)


def test_graph_without_its_weights_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / PREDICT).write_bytes((bundle / PREDICT).read_bytes())
    with pytest.raises(BundleError, match="ONNX Runtime"):
        open_session(tmp_path / PREDICT, 1)


def test_signature_as_promised_passes(session: ort.InferenceSession) -> None:
    check_signature(session, Path(PREDICT), INPUTS, {"logits": (3, 3), "vectors": (3, 3, 4)})


def test_other_inputs_are_refused(session: ort.InferenceSession) -> None:
    with pytest.raises(BundleError, match="should take input_ids"):
        check_signature(session, Path(PREDICT), ("input_ids",), {})


def test_output_of_another_shape_is_refused(session: ort.InferenceSession) -> None:
    with pytest.raises(BundleError, match=r"logits must be of shape \[4, 3\]"):
        check_signature(session, Path(PREDICT), INPUTS, {"logits": (4, 3)})


def test_missing_output_is_refused(session: ort.InferenceSession) -> None:
    with pytest.raises(BundleError, match="token_scores"):
        check_signature(session, Path(PREDICT), INPUTS, {"token_scores": (3,)})
