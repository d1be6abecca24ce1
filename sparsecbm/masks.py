"""Masks: which units of each layer, or which single weights, a subnetwork keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


def _jaccard(shared: Tensor) -> Tensor:
    """[concepts, concepts] counts that two concepts both keep to their Jaccard index."""
    sizes = shared.diagonal()
    return shared / (sizes[:, None] + sizes[None, :] - shared).clamp(min=1)


@dataclass(frozen=True, slots=True)
class UnitMasks:
    """Unit masks of all concepts; or of the trunk, which counts as one.

    Attributes:
        heads: [concepts, layers, heads] bool, true where kept.
        neurons: [concepts, layers, neurons] bool, true where kept.
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
        """Indices of the heads and neurons that a concept keeps in a layer, each [kept] int64."""
        return self.heads[concept, layer].nonzero()[:, 0], self.neurons[concept, layer].nonzero()[:, 0]

    def flat(self) -> Tensor:
        """[concepts, units] bool."""
        return torch.cat((self.heads.flatten(1), self.neurons.flatten(1)), 1)

    def density(self) -> float:
        """Share of units kept, over all concepts, layers and kinds; in (0, 1], and 1 where there are no layers."""
        units = self.flat()
        return float(units.float().mean()) if units.numel() else 1.0

    def densities(self) -> list[float]:
        """Share of units that each concept keeps."""
        return [int(units.count_nonzero()) / len(units) for units in self.flat()]

    def overlap(self) -> Tensor:
        """[concepts, concepts] Jaccard index of the units that two concepts keep."""
        units = self.flat().float()
        return _jaccard(units @ units.T)

    def clone(self) -> UnitMasks:
        return UnitMasks(self.heads.clone(), self.neurons.clone())


@dataclass(frozen=True, slots=True)
class WeightMasks:
    """Masks of all concepts over single weights.

    Attributes:
        matrices: by a weight matrix's name, [concepts, branch layers, .. its shape] bool, true where kept.
    """

    matrices: dict[str, Tensor]

    @classmethod
    def dense(cls, concepts: int, layers: int, shapes: Mapping[str, Sequence[int]]) -> Self:
        """Masks that keep every weight of matrices of the given shapes."""
        return cls({name: torch.ones(concepts, layers, *shape, dtype=torch.bool) for name, shape in shapes.items()})

    def of(self, concept: int, layer: int) -> dict[str, Tensor]:
        """A concept's mask over each matrix of a branch layer."""
        return {name: mask[concept, layer] for name, mask in self.matrices.items()}

    def density(self) -> float:
        """Share of weights kept, over all concepts, layers and matrices; in (0, 1]."""
        kept = sum(int(mask.count_nonzero()) for mask in self.matrices.values())
        return kept / sum(mask.numel() for mask in self.matrices.values())

    def densities(self) -> list[float]:
        """Share of weights that each concept keeps."""
        masks = list(self.matrices.values())
        size = sum(mask[0].numel() for mask in masks)
        return [sum(int(mask[concept].count_nonzero()) for mask in masks) / size for concept in range(len(masks[0]))]

    def overlap(self) -> Tensor:
        """[concepts, concepts] Jaccard index of the weights that two concepts keep."""
        concepts = len(next(iter(self.matrices.values())))
        shared = torch.zeros(concepts, concepts, dtype=torch.float64)
        for mask in self.matrices.values():
            for one in range(concepts):
                for other in range(one, concepts):
                    shared[one, other] += int((mask[one] & mask[other]).count_nonzero())
        return _jaccard(shared + shared.triu(1).T).float()

    def clone(self) -> WeightMasks:
        return WeightMasks({name: mask.clone() for name, mask in self.matrices.items()})


def pack_bits(mask: Tensor, dimensions: int = 1) -> Tensor:
    """Bits of a mask, eight a byte along its last axis (most significant first).

    Args:
        mask: bool.
        dimensions: how many of its last axes are flattened into one before.

    Returns:
        [.., ⌈bits / 8⌉] uint8.
    """
    flat = mask.flatten(-dimensions)
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.shape[-1] % 8))
    packed = padded.new_zeros(*padded.shape[:-1], padded.shape[-1] // 8)
    for bit in range(8):
        packed |= padded[..., bit::8] << (7 - bit)
    return packed


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of a shape whose bits ``pack_bits`` gave.

    Args:
        packed: [.., ⌈bits / 8⌉] uint8, its leading axes those of ``shape``.
        shape: of the mask.
    """
    leading = packed.shape[:-1]
    bits = torch.Size(shape[len(leading) :]).numel()
    unpacked = packed.new_empty(*leading, packed.shape[-1] * 8, dtype=torch.bool)
    for bit in range(8):
        unpacked[..., bit::8] = (packed >> (7 - bit)) & 1
    return unpacked[..., :bits].reshape(*shape)
