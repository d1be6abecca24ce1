"""From concepts to label, in NumPy: the label head is small enough to run again for every correction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsecbm.bundle import Manifest


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Reading:
    """What the bottleneck makes of N texts, in float64.

    Attributes:
        probabilities: [N, concepts, values]; one-hot where corrected, 0 at values that a concept lacks.
        contributions: [N, concepts, labels], each concept's share of the label logits.
        labels: [N, labels] probabilities.
        gains: [N, concepts], expected total variation of the label's distribution if a human set the concept.
    """

    probabilities: np.ndarray
    contributions: np.ndarray
    labels: np.ndarray
    gains: np.ndarray


class LabelHead:
    """The linear label head of a bundle."""

    def __init__(self, manifest: Manifest) -> None:
        self._weight = np.array(manifest.head.weight, dtype=np.float64)  # [labels, concepts, width]
        self._bias = np.array(manifest.head.bias, dtype=np.float64)

    def read(self, logits: np.ndarray, vectors: np.ndarray, corrections: np.ndarray | None = None) -> Reading:
        """Mixes each concept's vectors by its values' probabilities and sums the contributions.

        Args:
            logits: [N, concepts, values], -inf at values that a concept lacks.
            vectors: [N, concepts, values, width].
            corrections: [N, concepts] int, index of the value that a human set, or -1; none by default.
        """
        probabilities = softmax(logits.astype(np.float64))
        if corrections is not None:
            one_hot = np.eye(probabilities.shape[-1])[np.maximum(corrections, 0)]
            probabilities = np.where((corrections >= 0)[..., None], one_hot, probabilities)
        # What each concept would contribute, were it certain of a value: [N, concepts, values, labels].
        certain = np.matmul(vectors.astype(np.float64), self._weight.transpose(1, 2, 0))
        contributions = np.matmul(probabilities[:, :, None, :], certain)[:, :, 0]
        label_logits = contributions.sum(1) + self._bias
        labels = softmax(label_logits)
        others = (label_logits[:, None] - contributions)[:, :, None, :]
        moved = np.abs(softmax(others + certain) - labels[:, None, None, :]).sum(-1) / 2
        return Reading(probabilities, contributions, labels, (probabilities * moved).sum(-1))
