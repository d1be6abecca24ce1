"""What a batch should be answered with, and how far from it an answer is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsecbm.data import SILENT, Dataset
from sparsecbm.model import Bottleneck, SparseCBM, corrected


class Targets(NamedTuple):
    """What texts should be answered with.

    Shapes: concepts [texts, concepts] int64, -1 where nothing is said; concept_shares [texts, concepts, values] and
    label_shares [texts, labels], target distributions, all 0 where nothing is said: that adds nothing to the loss, and
    takes no weight from other texts.
    """

    concepts: Tensor
    concept_shares: Tensor
    label_shares: Tensor

    @classmethod
    def of(cls, data: Dataset, vote_weight: float) -> Targets:
        """The targets of a split, between the majority's choice and the annotators' votes."""

        def mix(choices: np.ndarray, votes: np.ndarray) -> Tensor:
            chosen = np.eye(votes.shape[-1], dtype=np.float32)[choices] * (choices != SILENT)[..., None]
            return torch.from_numpy(chosen + np.float32(vote_weight) * (votes - chosen))

        return cls(
            torch.from_numpy(data.concepts),
            mix(data.concepts, data.concept_votes),
            mix(data.labels, data.label_votes),
        )

    def rows(self, rows: np.ndarray) -> Targets:
        """Those of some texts."""
        index = torch.from_numpy(rows).to(self.concepts.device)
        return Targets(*(tensor[index] for tensor in self))

    def to(self, device: torch.device) -> Targets:
        return Targets(*(tensor.to(device) for tensor in self))


class ClassWeights(NamedTuple):
    """Factors on the losses of single values and labels: concepts [concepts, values], label [labels]."""

    concepts: Tensor
    label: Tensor

    @classmethod
    def even(cls, targets: Targets) -> ClassWeights:
        """All 1."""
        return cls(torch.ones_like(targets.concept_shares[0]), torch.ones_like(targets.label_shares[0]))

    @classmethod
    def balanced(cls, targets: Targets) -> ClassWeights:
        """The rarer, the heavier: texts / (classes × texts of the class), so that all classes weigh the same.

        Classes that never occur don't count as one, nor do texts of which nothing is said. The mean weight over the
        texts is 1. (King & Zeng 2001,
        section 4.1; ``class_weight="balanced"`` in scikit-learn.)
        """

        def balance(shares: Tensor) -> Tensor:
            counts = shares.sum(0)
            occurring = counts > 0
            weights = counts.sum(-1, keepdim=True) / (occurring.sum(-1, keepdim=True) * counts)
            return torch.where(occurring, weights, 0.0)

        return cls(balance(targets.concept_shares), balance(targets.label_shares))


def cross_entropy(logits: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy, a mean over all but the last axis; no sum of weights divides it.

    Args:
        logits: [.., classes]; -inf where there is no class.
        shares: [.., classes], the target distributions.
        weights: broadcast to them.
    """
    log_chances = logits.log_softmax(-1).clamp(min=-1e4)
    return -(weights * shares * log_chances).sum(-1).mean()


def concept_loss(output: Bottleneck, targets: Targets, weights: ClassWeights) -> Tensor:
    """The concepts' mean cross-entropy."""
    return cross_entropy(output.logits.float(), targets.concept_shares, weights.concepts)


def label_loss(
    model: SparseCBM, output: Bottleneck, targets: Targets, weights: ClassWeights, correction_rate: float
) -> Tensor:
    """The label's cross-entropy, a random part of the concepts corrected to their true values.

    Args:
        model: whose label head is used.
        output: of the model.
        targets: what it should have said.
        weights: of the labels.
        correction_rate: chance of a correction; at 1 the head reads true values only.
    """
    told = torch.rand(targets.concepts.shape, device=targets.concepts.device) < correction_rate
    mixture = corrected(output.logits.float().softmax(-1), torch.where(told, targets.concepts, -1))
    return cross_entropy(model.label_logits(mixture, output.vectors.float()), targets.label_shares, weights.label)
