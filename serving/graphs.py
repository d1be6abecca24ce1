"""A bundle's graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from sparsecbm.errors import BundleError

PREDICT = "predict.onnx"
ATTRIBUTE = "attribute.onnx"
EXPLAIN = "explain.onnx"
# ONNX Runtime's fused residual + normalisation is slower on processors than the two apart.
_SLOW_OPTIMIZERS = ["SkipLayerNormFusion"]

GRADIENTS = ("logits", "vectors", "token_scores", "head_gradients", "neuron_gradients")


class Gradients(NamedTuple):
    """What ``attribute.onnx`` and ``explain.onnx`` give for N texts, in the order of ``GRADIENTS``.

    Shapes: logits [N, concepts, values]; vectors [N, concepts, values, width]; tokens
    [N, concepts, length]; heads and neurons [N, concepts, branch layers, units].
    """

    logits: np.ndarray
    vectors: np.ndarray
    tokens: np.ndarray
    heads: np.ndarray
    neurons: np.ndarray


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Opens a graph on the processor.

    Args:
        path: of the graph; its weights lie beside it.
        threads: that one run uses.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW_OPTIMIZERS
        )
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        raise BundleError(f"{path} can't be loaded by ONNX Runtime: {error}") from error


def check_signature(
    session: ort.InferenceSession, path: Path, inputs: Collection[str], outputs: Mapping[str, tuple[int, ...]]
) -> None:
    """Compares a graph with what its bundle's manifest promises.

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
        if given.get(name) != shape:
            raise BundleError(f"{path}: {name} must be of shape {list(shape)} per text, not {given.get(name)}.")
