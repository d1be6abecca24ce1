"""Whether probabilities mean what they say: reliability by bin, and a temperature that mends them."""

from __future__ import annotations

import numpy as np

from sparsecbm.errors import DataError
from sparsecbm.evaluation import CALIBRATION_BINS

COLDEST, HOTTEST = 0.05, 20.0


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = CALIBRATION_BINS) -> list[dict[str, float]]:
    """What a reliability diagram shows (DeGroot and Fienberg 1983), for the most probable class.

    Args:
        probabilities: [N, classes].
        truth: [N].
        bins: of equal width; those without texts are left out.

    Returns:
        By bin: ``low`` and ``high``, its edges; ``texts``; ``confidence`` and ``accuracy``, their means.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    position = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for index in np.unique(position):
        inside = position == index
        found.append(
            {
                "low": float(index / bins),
                "high": float((index + 1) / bins),
                "texts": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(right[inside].mean()),
            }
        )
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature T for which softmax(logits / T) has the lowest mean negative log-likelihood (Guo et al. 2017).

    Fit it on texts that the model wasn't trained on, and judge it on others still. It changes no most
    probable class. The likelihood is convex in 1 / T, so its slope is bisected.

    Args:
        logits: [N, classes], -inf at classes that can't be.
        truth: [N] int.

    Returns:
        T in [0.05, 20]; the nearest end where the best lies beyond (as where every text is right).

    Raises:
        DataError: there are no texts, the shapes don't fit, or a truth is a class that can't be.
    """
    if logits.ndim != 2 or truth.shape != logits.shape[:1] or not len(truth):
        raise DataError(
            f"a temperature is fitted to logits [N, classes] and truth [N] of at least one text; got "
            f"{list(logits.shape)} and {list(truth.shape)}."
        )
    scores = logits.astype(np.float64)
    chosen = scores[np.arange(len(truth)), truth]
    if not np.isfinite(chosen).all():
        raise DataError("a truth is a class whose logit is not finite; check that truth and logits belong together.")
    finite = np.where(np.isfinite(scores), scores, 0.0)

    def slope(inverse: float) -> float:
        """Derivative of the mean negative log-likelihood by 1 / T."""
        return float(((_softmax(scores * inverse) * finite).sum(1) - chosen).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def scale(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [N, classes] of logits [N, classes] at a temperature."""
    return _softmax(logits.astype(np.float64) / temperature)
