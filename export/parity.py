"""Whether an export answers as its checkpoint does, checked before the bundle is declared good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch

from export import torchscript
from export.graphs import ATTRIBUTE, EXPLAIN, PREDICT
from sparsecbm.attribution import attribute
from sparsecbm.bundle import (
    EXPLAIN_INPUTS,
    EXPLAIN_OUTPUTS,
    PREDICT_INPUTS,
    PREDICT_OUTPUTS,
    Format,
    Precision,
)
from sparsecbm.data import Dataset
from sparsecbm.errors import ParityError
from sparsecbm.evaluation import Outputs, judge, run
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import batches, pad
from sparsecbm.torchscript import TorchGraph

_EXPLAIN_TEXTS = 32
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Least agreement that an export must reach.

    Attributes:
        agreement: share of concept values and of labels that are the same.
        accuracy_loss: of concepts and label, in share of texts.
        correlation: between the explanation graph's vectors and gradients, over tokens and units, and the
            model's.
        activation_error: most root mean square difference from the model's activations, in their standard deviations.
    """

    agreement: float
    accuracy_loss: float
    correlation: float
    activation_error: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(agreement=0.998, accuracy_loss=0.002, correlation=0.9999, activation_error=0.001),
    "int8": Tolerance(agreement=0.95, accuracy_loss=0.01, correlation=0.97, activation_error=0.2),
    "fp16": Tolerance(agreement=0.99, accuracy_loss=0.005, correlation=0.999, activation_error=0.02),
    "bf16": Tolerance(agreement=0.97, accuracy_loss=0.01, correlation=0.99, activation_error=0.1),
}


class Graph(Protocol):
    """An ONNX Runtime session, or a TorchScript graph with the same interface."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs for the named inputs."""
        ...


def open_session(path: Path) -> ort.InferenceSession:
    """An ONNX Runtime session on the processor, as the server opens it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )


def open_graphs(folder: Path, format: Format) -> tuple[Graph, Graph]:
    """The prediction and the explanation graph that a folder holds."""
    if format == "torchscript":
        return (
            TorchGraph(folder / torchscript.PREDICT, PREDICT_INPUTS, PREDICT_OUTPUTS, gradients=False),
            TorchGraph(folder / torchscript.EXPLAIN, EXPLAIN_INPUTS, EXPLAIN_OUTPUTS, gradients=True),
        )
    return open_session(folder / PREDICT), open_session(folder / EXPLAIN)


def run_exported(graph: Graph, ids: Sequence[np.ndarray], pad_id: int) -> Outputs:
    """Runs a prediction graph over token ids."""
    logits: list[np.ndarray] = [np.empty(0)] * len(ids)
    vectors: list[np.ndarray] = [np.empty(0)] * len(ids)
    for chosen in batches(np.array([len(row) for row in ids]), _BATCH):
        padded, mask = pad([ids[index] for index in chosen], pad_id)
        outputs = graph.run(PREDICT_OUTPUTS, {"input_ids": padded, "attention_mask": mask})
        for position, index in enumerate(chosen):
            logits[index], vectors[index] = outputs[0][position], outputs[1][position]
    return Outputs(torch.from_numpy(np.stack(logits)), torch.from_numpy(np.stack(vectors)))


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])


def _explain_parity(model: SparseCBM, graph: Graph, ids: Sequence[np.ndarray], expected: Outputs) -> dict[str, float]:
    """Compares an explanation graph with the model's gradients and, since corrections read them, its outputs."""
    padded, mask = pad(ids, model.backbone.config.pad_id)
    present = np.isfinite(model.absent_values.numpy()).astype(np.float32)
    weights = np.broadcast_to(present, (len(ids), *present.shape)).copy()
    weights[..., 0] = -1.0  # any direction in which the logits can differ
    reference = attribute(model, torch.from_numpy(padded), torch.from_numpy(mask), torch.from_numpy(weights))
    gates = [
        np.broadcast_to(units.numpy().astype(np.float32), (len(ids), *units.shape)).copy()
        for units in (model.masks.heads, model.masks.neurons)
    ]
    feeds = {"input_ids": padded, "attention_mask": mask, "value_weights": weights}
    feeds |= {"head_gates": gates[0], "neuron_gates": gates[1]}
    logits, vectors, tokens, heads, neurons = graph.run(EXPLAIN_OUTPUTS, feeds)
    wanted = expected.logits[: len(ids)].numpy()
    finite = np.isfinite(wanted)
    return {
        "explain_logit_difference": float(np.abs(logits[finite] - wanted[finite]).max()),
        "explain_value_agreement": float((logits.argmax(-1) == wanted.argmax(-1)).mean()),
        "explain_vector_correlation": _correlation(vectors, expected.vectors[: len(ids)].numpy()),
        "token_correlation": _correlation(tokens, reference.tokens.numpy()),
        "head_correlation": _correlation(heads, reference.heads.numpy()),
        "neuron_correlation": _correlation(neurons, reference.neurons.numpy()),
    }


def _attribute_parity(model: SparseCBM, session: ort.InferenceSession, ids: Sequence[np.ndarray]) -> dict[str, float]:
    """Compares ``attribute.onnx`` with the model's gradients, by the values that it finds most probable."""
    padded, mask = pad(ids, model.backbone.config.pad_id)
    names = ["logits", "token_scores", "head_gradients", "neuron_gradients"]
    logits, *scores = session.run(names, {"input_ids": padded, "attention_mask": mask})
    finite = np.isfinite(logits)
    chosen = np.eye(logits.shape[-1])[logits.argmax(-1)]
    others = finite & (chosen == 0)
    weights = (chosen - others / np.maximum(others.sum(-1, keepdims=True), 1)).astype(np.float32)
    reference = attribute(model, *map(torch.from_numpy, (padded, mask, weights)))
    wanted = (reference.tokens, reference.heads * model.masks.heads, reference.neurons * model.masks.neurons)
    return {
        f"attribute_{name}_correlation": _correlation(found, right.numpy())
        for name, found, right in zip(("token", "head", "neuron"), scores, wanted, strict=True)
    }


def check_parity(
    folder: Path,
    model: SparseCBM,
    data: Dataset,
    ids: Sequence[np.ndarray],
    precision: Precision,
    format: Format = "onnx",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compares the graphs in a folder with the model that they were exported from.

    Args:
        folder: with both graphs.
        model: in PyTorch.
        data: real texts with labels.
        ids: the texts as token ids.
        precision: of the graphs; sets the tolerance.
        format: of the graphs.

    Returns:
        The parity figures, and the exported graph's evaluation figures on the data.

    Raises:
        ParityError: a figure is beyond its tolerance.
    """
    tolerance = TOLERANCES[precision]
    expected = run(model, ids)
    predict, explain = open_graphs(folder, format)
    exported = run_exported(predict, ids, model.backbone.config.pad_id)
    before, after = judge(model, data, expected), judge(model, data, exported)
    finite = torch.isfinite(expected.logits)
    labels, activations = [], []
    for output in (expected, exported):
        mixture = output.logits.softmax(-1)
        labels.append(model.label_logits(mixture, output.vectors).argmax(-1))
        activations.append(model.activations(mixture, output.vectors).numpy())
    figures: dict[str, Any] = {
        "texts": len(ids),
        "logit_difference": float((expected.logits - exported.logits)[finite].abs().max()),
        "activation_error": float(np.sqrt(np.square(activations[1] - activations[0]).mean()) / activations[0].std()),
        "value_agreement": float((expected.logits.argmax(-1) == exported.logits.argmax(-1)).float().mean()),
        "label_agreement": float((labels[0] == labels[1]).float().mean()),
        "concept_accuracy": {
            "checkpoint": before["concept"]["accuracy"],
            "export": after["concept"]["accuracy"],
        },
        "label_accuracy": {"checkpoint": before["label"]["accuracy"], "export": after["label"]["accuracy"]},
        **_explain_parity(model, explain, ids[:_EXPLAIN_TEXTS], expected),
    }
    correlations = ["explain_vector_correlation", "token_correlation", "head_correlation", "neuron_correlation"]
    if (folder / ATTRIBUTE).is_file():
        attributed = _attribute_parity(model, open_session(folder / ATTRIBUTE), ids[:_EXPLAIN_TEXTS])
        figures |= attributed
        correlations += attributed
    failures = [
        f"{key} is {figures[key]:.4f}, must be at least {bound}"
        for keys, bound in (
            (("value_agreement", "label_agreement", "explain_value_agreement"), tolerance.agreement),
            (correlations, tolerance.correlation),
        )
        for key in keys
        if not figures[key] >= bound
    ]
    failures += [
        f"{key} falls by {figures[key]['checkpoint'] - figures[key]['export']:.4f}, may fall by at most "
        f"{tolerance.accuracy_loss}"
        for key in ("concept_accuracy", "label_accuracy")
        if not figures[key]["checkpoint"] - figures[key]["export"] <= tolerance.accuracy_loss
    ]
    if not figures["activation_error"] <= tolerance.activation_error:
        failures.append(
            f"activation_error is {figures['activation_error']:.4f}, may be at most {tolerance.activation_error}"
        )
    if failures:
        raise ParityError(
            f"The {precision} export doesn't answer as its checkpoint does, so no bundle was written: "
            f"{'; '.join(failures)}.",
            figures,
        )
    return figures, after
