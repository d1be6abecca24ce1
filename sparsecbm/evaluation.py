"""How good a model is: accuracies, both F1 scores, calibration, and what corrections do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsecbm.data import Dataset
from sparsecbm.model import SparseCBM, corrected
from sparsecbm.tokens import batches, pad

CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Outputs:
    """A model's outputs on N texts, in the texts' order.

    Attributes:
        logits: [N, concepts, values].
        vectors: [N, concepts, values, width].
    """

    logits: torch.Tensor
    vectors: torch.Tensor


@torch.inference_mode()
def run(model: SparseCBM, ids: Sequence[np.ndarray], batch: int = 64) -> Outputs:
    """Runs a model over token ids, in batches of similar length; the outputs are on the processor."""
    was_training = model.training
    device = model.head_bias.device
    model.eval()
    logits: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    vectors: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    lengths = np.array([len(row) for row in ids])
    for chosen in batches(lengths, batch):
        padded, mask = pad([ids[index] for index in chosen], model.backbone.config.pad_id)
        output = model(torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device))
        found = Outputs(output.logits.cpu(), output.vectors.cpu())
        for position, index in enumerate(chosen):
            logits[index], vectors[index] = found.logits[position], found.vectors[position]
    model.train(was_training)
    return Outputs(torch.stack(logits), torch.stack(vectors))


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """[classes, classes] counts, truth by row."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def _f1(hits: np.ndarray, misses: np.ndarray, false_alarms: np.ndarray) -> np.ndarray:
    denominator = 2 * hits + misses + false_alarms
    return np.where(denominator > 0, 2 * hits / np.maximum(denominator, 1), 0.0)


def scores(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy and two F1 scores over the classes that occur in the truth or the prediction.

    ``macro_f1`` is the standard one: the mean of each class's F1. ``one_vs_rest_f1`` is the one in the
    paper's tables: for each class, the mean of the F1 of "it is this class" and of "it isn't", then the
    mean over classes. It is the higher of the two, and not comparable with other papers' macro-F1.
    """
    return {key: float(value) for key, value in scores_of(confusion(truth, predicted, classes)).items()}


def scores_of(counts: np.ndarray) -> dict[str, np.ndarray]:
    """The ``scores`` of [.., classes, classes] counts, truth by row; each is [..]."""
    hits = counts.diagonal(axis1=-2, axis2=-1)
    every = counts.sum((-2, -1))
    misses = counts.sum(-1) - hits
    false_alarms = counts.sum(-2) - hits
    occurring = counts.sum(-2) + counts.sum(-1) > 0
    is_class = _f1(hits, misses, false_alarms)
    is_not = _f1(every[..., None] - hits - misses - false_alarms, false_alarms, misses)
    return {
        "accuracy": hits.sum(-1) / every,
        "macro_f1": (is_class * occurring).sum(-1) / occurring.sum(-1),
        "one_vs_rest_f1": ((is_class + is_not) / 2 * occurring).sum(-1) / occurring.sum(-1),
    }


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error of the most probable class (Guo et al. 2017), in 15 bins of equal width.

    Args:
        probabilities: [N, classes].
        truth: [N].
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))


def evaluate(model: SparseCBM, data: Dataset, ids: Sequence[np.ndarray]) -> dict[str, Any]:
    """Figures of a model on one split, of which ``ids`` are the texts as token ids; see ``judge``."""
    return judge(model, data, run(model, ids))


@torch.inference_mode()
def judge(model: SparseCBM, data: Dataset, output: Outputs) -> dict[str, Any]:
    """Figures of a model's outputs on one split.

    Args:
        model: whose label head is used.
        data: with the same schema as the model.
        output: what the model, or an export of it, says of the data's texts.

    Returns:
        JSON values: ``texts``, ``label``, ``concept`` (means over concepts) and ``concepts`` (each one's)
        with the keys of ``scores`` and ``calibration_error``; ``label_corrected``, the label's scores once
        every mistaken concept is corrected at concept level.
    """
    probabilities = output.logits.softmax(-1)
    device = model.head_bias.device
    vectors = output.vectors.to(device)
    label_logits = model.label_logits(probabilities.to(device), vectors).cpu()
    truth = torch.from_numpy(data.concepts)
    mistaken = torch.where(probabilities.argmax(-1) == truth, -1, truth)
    fixed_logits = model.label_logits(corrected(probabilities, mistaken).to(device), vectors).cpu()
    label_probabilities = label_logits.softmax(-1).detach().numpy()
    concepts = {}
    for position, concept in enumerate(data.schema.concepts):
        chances = probabilities[:, position, : len(concept.values)].numpy()
        gold = data.concepts[:, position]
        concepts[concept.name] = scores(gold, chances.argmax(1), len(concept.values)) | {
            "calibration_error": calibration_error(chances, gold)
        }
    labels = len(data.schema.labels)
    means = {
        key: float(np.mean([figures[key] for figures in concepts.values()])) for key in next(iter(concepts.values()))
    }
    return {
        "texts": len(data),
        "label": scores(data.labels, label_probabilities.argmax(1), labels)
        | {"calibration_error": calibration_error(label_probabilities, data.labels)},
        "label_corrected": scores(data.labels, fixed_logits.argmax(-1).numpy(), labels),
        "concept": means,
        "concepts": concepts,
    }
