"""Graphs: opened, checked, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from structlog.testing import capture_logs

from serving.graphs import (
    EXPLAIN_TORCH,
    PREDICT,
    PREDICT_TORCH,
    OnnxGraph,
    check_signature,
    open_predict,
    open_session,
)
from sparsecbm.bundle import read_manifest
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


def test_a_graph_that_fails_is_the_bundles_fault(session: ort.InferenceSession) -> None:
    ids = np.full((1, 5), 10**6, np.int64)  # no such token
    with pytest.raises(BundleError, match=r"predict\.onnx fails in ONNX Runtime: "):
        OnnxGraph(PREDICT, session, {"logits": (3, 3)}).run(
            ["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        )


CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_fp16_on_a_processor_is_run_and_logged(bundle: Path) -> None:
    with capture_logs() as logs:
        session = open_session(bundle / PREDICT, 1, "fp16")
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("on_processor", "ONNX Runtime has no CUDA here; install onnxruntime-gpu")
    ]


def test_cuda_that_cannot_start_leaves_the_processor_and_is_logged(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: CUDA)
    with capture_logs() as logs, pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        session = open_session(bundle / PREDICT, 1, "fp32")
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert [log["reason"] for log in logs] == ["ONNX Runtime couldn't start CUDA"]


def test_int8_stays_on_the_processor(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: CUDA)
    with capture_logs() as logs:
        assert open_session(bundle / PREDICT, 1, "int8").get_providers() == ["CPUExecutionProvider"]
    assert not logs


def test_torchscript_of_another_function_is_refused(torch_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / PREDICT_TORCH).write_bytes((torch_bundle / EXPLAIN_TORCH).read_bytes())
    with pytest.raises(BundleError, match=r"takes input_ids, attention_mask, head_gates, .* but should take input_ids"):
        open_predict(tmp_path, read_manifest(torch_bundle), 1, trust_torchscript=True)


def test_torchscript_of_other_shapes_is_refused(torch_bundle: Path) -> None:
    manifest = read_manifest(torch_bundle)
    wider = manifest.model_copy(update={"head": manifest.head.model_copy(update={"width": 5})})
    with pytest.raises(BundleError, match=r"vectors must be of shape \[3, 3, 5\] per text"):
        open_predict(torch_bundle, wider, 1, trust_torchscript=True)


def test_a_file_that_is_no_torchscript_is_refused(torch_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / PREDICT_TORCH).write_bytes(b"no archive")
    with pytest.raises(BundleError, match="can't be loaded by torch"):
        open_predict(tmp_path, read_manifest(torch_bundle), 1, trust_torchscript=True)
