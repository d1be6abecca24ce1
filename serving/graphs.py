"""A bundle's graphs, in ONNX Runtime or, where it is a trusted TorchScript bundle, in torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
import structlog

from serving.trust import check_trust
from sparsecbm.bundle import EXPLAIN_INPUTS, EXPLAIN_OUTPUTS, PREDICT_INPUTS, PREDICT_OUTPUTS, Manifest, Precision
from sparsecbm.errors import BundleError

PREDICT = "predict.onnx"
ATTRIBUTE = "attribute.onnx"
EXPLAIN = "explain.onnx"
PREDICT_TORCH = "predict.ts"
EXPLAIN_TORCH = "explain.ts"
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# ONNX Runtime's fused residual + normalisation is slower on processors than the two apart.
_SLOW_OPTIMIZERS = ["SkipLayerNormFusion"]

_log = structlog.get_logger()


class Graph(Protocol):
    """What the engine runs: an ONNX graph, or a TorchScript graph with the same interface."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs for the named inputs."""
        ...


class OnnxGraph:
    """An ONNX Runtime session. Where its graph can't compute what it promises, the bundle is to blame.

    Args:
        name: of the graph.
        session: of the graph.
        shapes: of its outputs, behind the batch.
    """

    def __init__(self, name: str, session: ort.InferenceSession, shapes: Mapping[str, tuple[int | str, ...]]) -> None:
        self._name = name
        self._session = session
        self._shapes = shapes

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs for the named inputs.

        Raises:
            BundleError: ONNX Runtime fails on the graph, or it gives other shapes than the manifest promises.
        """
        try:
            given: list[np.ndarray] = self._session.run(outputs, feeds)
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise BundleError(f"{self._name} fails in ONNX Runtime: {str(error)[:300]}") from error
        batch, length = feeds["input_ids"].shape
        for name, array in zip(outputs, given, strict=True):
            promised = (batch, *(length if size == "length" else size for size in self._shapes[name]))
            if array.shape != promised:
                raise BundleError(f"{self._name}: {name} is of shape {array.shape}, but should be of {promised}.")
        return given


class Gradients(NamedTuple):
    """What the graphs that explain give for N texts, in the order of ``EXPLAIN_OUTPUTS``.

    Shapes: logits [N, concepts, values]; vectors [N, concepts, values, width]; tokens
    [N, concepts, length]; heads and neurons [N, concepts, branch layers, units].
    """

    logits: np.ndarray
    vectors: np.ndarray
    tokens: np.ndarray
    heads: np.ndarray
    neurons: np.ndarray


def open_predict(folder: Path, manifest: Manifest, threads: int, trust_torchscript: bool = False) -> Graph:
    """Opens a bundle's prediction graph.

    Args:
        folder: of the bundle.
        manifest: of the bundle.
        threads: that one run uses.
        trust_torchscript: whether TorchScript, which is a program, may be loaded.

    Raises:
        BundleError: the graph can't be loaded, isn't what the manifest promises, or isn't trusted.
        SetupError: it is TorchScript and torch isn't installed.
    """
    if manifest.format == "torchscript":
        return _open_torch(folder / PREDICT_TORCH, manifest, threads, trust_torchscript)
    return _open_onnx(folder / PREDICT, manifest, threads, PREDICT_INPUTS, PREDICT_OUTPUTS)


def open_attribute(folder: Path, manifest: Manifest, threads: int) -> Graph:
    """Opens the attribution graph of a bundle that has one; arguments and errors are those of ``open_predict``."""
    return _open_onnx(folder / ATTRIBUTE, manifest, threads, PREDICT_INPUTS, EXPLAIN_OUTPUTS)


def open_explain(folder: Path, manifest: Manifest, threads: int, trust_torchscript: bool = False) -> Graph:
    """Opens a bundle's explanation graph; arguments and errors are those of ``open_predict``."""
    if manifest.format == "torchscript":
        return _open_torch(folder / EXPLAIN_TORCH, manifest, threads, trust_torchscript)
    return _open_onnx(folder / EXPLAIN, manifest, threads, EXPLAIN_INPUTS, EXPLAIN_OUTPUTS)


def output_shapes(manifest: Manifest, outputs: Collection[str]) -> dict[str, tuple[int | str, ...]]:
    """Shapes, behind the batch, of what a graph gives."""
    layout, concepts = manifest.layout, len(manifest.concepts)
    values = max(len(concept.values) for concept in manifest.concepts)
    shapes: dict[str, tuple[int | str, ...]] = {
        "logits": (concepts, values),
        "vectors": (concepts, values, manifest.head.width),
        "token_scores": (concepts, "length"),
        "head_gradients": (concepts, layout.branch, layout.heads),
        "neuron_gradients": (concepts, layout.branch, layout.neurons),
    }
    return {name: shapes[name] for name in outputs}


def open_session(path: Path, threads: int, precision: Precision = "int8") -> ort.InferenceSession:
    """Opens an ONNX graph: on the GPU where ONNX Runtime has CUDA, unless the graph is int8, which processors run.

    Where there is no CUDA, or it fails, the processor runs the graph, and the log says so.

    Args:
        path: of the graph; its weights lie beside it.
        threads: that one run uses.
        precision: of the graph.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    cuda = precision != "int8" and _CUDA in ort.get_available_providers()
    places: dict[str, Any] = {"providers": [_CUDA, _CPU]} if cuda else {"providers": [_CPU]}
    if not cuda:
        places["disabled_optimizers"] = _SLOW_OPTIMIZERS
    try:
        session = ort.InferenceSession(str(path), options, **places)
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise BundleError(f"{path} can't be loaded by ONNX Runtime: {error}") from error
    if precision == "fp16" and not cuda:
        _log.warning("on_processor", graph=path.name, reason="ONNX Runtime has no CUDA here; install onnxruntime-gpu")
    elif cuda and _CUDA not in session.get_providers():
        _log.warning("on_processor", graph=path.name, reason="ONNX Runtime couldn't start CUDA")
    return session


def _open_onnx(
    path: Path, manifest: Manifest, threads: int, inputs: Collection[str], outputs: Collection[str]
) -> Graph:
    session = open_session(path, threads, manifest.precision)
    shapes = output_shapes(manifest, outputs)
    check_signature(session, path, inputs, shapes)
    return OnnxGraph(path.name, session, shapes)


def _open_torch(path: Path, manifest: Manifest, threads: int, trusted: bool) -> Graph:
    check_trust(path.parent, manifest, trusted)
    from sparsecbm.torchscript import TorchGraph

    explains = path.name == EXPLAIN_TORCH
    inputs, outputs = (EXPLAIN_INPUTS, EXPLAIN_OUTPUTS) if explains else (PREDICT_INPUTS, PREDICT_OUTPUTS)
    graph = TorchGraph(path, inputs, outputs, explains, threads)
    try:
        example = _example(manifest, inputs)
        given = dict(zip(outputs, graph.run(outputs, example), strict=True))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} can't be run by torch: {str(error)[:500]}") from error
    for name, shape in output_shapes(manifest, outputs).items():
        length = example["input_ids"].shape[1]
        if given[name].shape != (1, *(length if size == "length" else size for size in shape)):
            raise BundleError(f"{path}: {name} must be of shape {list(shape)} per text, not {given[name].shape[1:]}.")
    return graph


def _example(manifest: Manifest, inputs: Collection[str]) -> dict[str, np.ndarray]:
    """One text of two tokens."""
    layout, concepts = manifest.layout, len(manifest.concepts)
    values = max(len(concept.values) for concept in manifest.concepts)
    ids = np.full((1, 2), manifest.backbone.pad_id, np.int64)
    whole: dict[str, np.ndarray] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "head_gates": np.ones((1, concepts, layout.branch, layout.heads), np.float32),
        "neuron_gates": np.ones((1, concepts, layout.branch, layout.neurons), np.float32),
        "value_weights": np.zeros((1, concepts, values), np.float32),
    }
    return {name: whole[name] for name in inputs}


def check_signature(
    session: ort.InferenceSession, path: Path, inputs: Collection[str], outputs: Mapping[str, tuple[int | str, ...]]
) -> None:
    """Compares a graph with what its bundle's manifest promises, but for lengths, which ONNX Runtime infers wrongly.

    Args:
        session: of the graph.
        path: of the graph.
        inputs: names of all that the graph is given.
        outputs: names of what is asked of it, with their shapes behind the batch.

    Raises:
        BundleError: it takes other inputs, or gives outputs of other shapes.
    """
    taken = {node.name for node in session.get_inputs()}
    if taken != set(inputs):
        raise BundleError(f"{path} takes {', '.join(sorted(taken))}, but should take {', '.join(sorted(inputs))}.")
    given = {node.name: tuple(node.shape[1:]) for node in session.get_outputs()}
    for name, shape in outputs.items():
        found = given.get(name, ())
        if len(found) != len(shape) or any(
            size != "length" and size != has for size, has in zip(shape, found, strict=True)
        ):
            raise BundleError(f"{path}: {name} must be of shape {list(shape)} per text, not {given.get(name)}.")
