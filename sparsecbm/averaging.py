"""A running mean of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RunningMean:
    """Exponential running mean of weights (Polyak & Juditsky 1992), its bias towards the start removed.

    Args:
        weights: a model's state, for names, shapes and device.
        decay: per step.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self._decay = decay
        self.steps = 0
        self.sums = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Takes in the weights of one more step."""
        self.steps += 1
        torch._foreach_lerp_(list(self.sums.values()), [weights[name].detach() for name in self.sums], 1 - self._decay)

    def weights(self) -> dict[str, Tensor]:
        """The mean, as a state of the model."""
        correction = 1 - self._decay**self.steps
        return {name: total / correction for name, total in self.sums.items()}
