"""A mask per concept: which heads and neurons of each branch layer its subnetwork keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class UnitMasks:
    """Unit masks of all concepts.

    Attributes:
        heads: [concepts, branch layers, heads] bool, true where kept.
        neurons: [concepts, branch layers, neurons] bool, true where kept.
    """

    heads: Tensor
    neurons: Tensor

    @classmethod
    def dense(cls, concepts: int, layers: int, heads: int, neurons: int) -> Self:
        """Masks that keep every unit."""
        return cls(
            torch.ones(concepts, layers, heads, dtype=torch.bool),
            torch.ones(concepts, layers, neurons, dtype=torch.bool),
        )

    def kept(self, concept: int, layer: int) -> tuple[Tensor, Tensor]:
        """Indices of the heads and neurons that a concept keeps in a branch layer, each [kept] int64."""
        return self.heads[concept, layer].nonzero()[:, 0], self.neurons[concept, layer].nonzero()[:, 0]

    def flat(self) -> Tensor:
        """[concepts, units] bool."""
        return torch.cat((self.heads.flatten(1), self.neurons.flatten(1)), 1)

    def density(self) -> float:
        """Share of units kept, over all concepts, layers and kinds; in (0, 1]."""
        return float(self.flat().float().mean())

    def overlap(self) -> Tensor:
        """[concepts, concepts] Jaccard index of the units that two concepts keep."""
        units = self.flat().float()
        shared = units @ units.T
        sizes = units.sum(1)
        return shared / (sizes[:, None] + sizes[None, :] - shared).clamp(min=1)

    def clone(self) -> UnitMasks:
        return UnitMasks(self.heads.clone(), self.neurons.clone())
