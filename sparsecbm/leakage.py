"""What a concept's activation tells of the label beyond the concept's value.

Leakage (Mahinpei et al. 2021) is measured by linear probes (Alain and Bengio 2017): multinomial logistic
regressions of the label on a concept's hard value and on its activation, fitted on one half of the texts and
judged on the other, and the other way round. The gap in accuracy is what a person reads; the gap in log loss, in
bits, is the usable information of Xu et al. (2020) for linear predictors, which doesn't hang on the most probable
label alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecbm.evaluation import Outputs
from sparsecbm.model import SparseCBM, corrected

RIDGE = 1.0  # weight of the squared coefficients, against the summed log loss; features are standardised


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe says of N texts that it wasn't fitted on.

    Attributes:
        right: [N] bool.
        bits: [N], log loss.
    """

    right: np.ndarray
    bits: np.ndarray


def fit_probe(features: Tensor, labels: Tensor, classes: int, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with a ridge on its weights, by L-BFGS from zero.

    Args:
        features: [N, size], standardised.
        labels: [N] int64.
        classes: how many labels there are.
        ridge: see ``RIDGE``.

    Returns:
        Weight [size, classes] and bias [classes], float64.
    """
    weight = torch.zeros(features.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight + bias, labels, reduction="sum") + ridge / 2 * weight.square().sum()
        value = value / len(labels)
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def halves(groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """[N] bool, true in one half; texts of a group [N] are in the same half."""
    unique, position = np.unique(groups, return_inverse=True)
    side = np.random.default_rng(seed).permutation(len(unique)) < len(unique) / 2
    return np.asarray(side[position])


def probe(features: np.ndarray, labels: np.ndarray, classes: int, first: np.ndarray) -> Probed:
    """Predicts the label of each half by a probe fitted on the other.

    Args:
        features: [N, size].
        labels: [N] int.
        classes: how many labels there are.
        first: [N] bool, the first half; both halves have texts.
    """
    right, bits = np.zeros(len(labels), dtype=bool), np.zeros(len(labels))
    for judged in (first, ~first):
        fitted = features[~judged].astype(np.float64)
        mean, spread = fitted.mean(0), fitted.std(0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        inputs = torch.from_numpy((features.astype(np.float64) - mean) / spread)
        weight, bias = fit_probe(inputs[torch.from_numpy(~judged)], torch.from_numpy(labels[~judged]), classes)
        chances = (inputs[torch.from_numpy(judged)] @ weight + bias).log_softmax(-1).numpy()
        right[judged] = chances.argmax(1) == labels[judged]
        bits[judged] = -chances[np.arange(len(chances)), labels[judged]] / np.log(2)
    return Probed(right, bits)


def representations(model: SparseCBM, output: Outputs, truth: np.ndarray) -> dict[str, np.ndarray]:
    """What a probe may read of each concept, each [N, concepts, size].

    ``true value`` and ``predicted value`` are one-hot, ``probabilities`` soft; ``activation`` is what the concept
    hands to the label head, and ``corrected activation`` what it hands over once it is set to its true value.

    Args:
        model: that gave the output.
        output: of N texts.
        truth: [N, concepts] int64.
    """
    probabilities = output.logits.softmax(-1)
    gold = corrected(probabilities, torch.from_numpy(truth))
    said = corrected(probabilities, probabilities.argmax(-1))
    return {
        "true value": gold.numpy(),
        "predicted value": said.numpy(),
        "probabilities": probabilities.numpy(),
        "activation": model.activations(probabilities, output.vectors).numpy(),
        "corrected activation": model.activations(gold, output.vectors).numpy(),
    }
