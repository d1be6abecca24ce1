"""How much a gate or a weight matters: what the loss is expected to rise by when it becomes zero.

A measure takes gradients in, [samples, size], and scores values, [size]. A unit's gate is a value of 1 whose
gradients come text by text; a weight's come batch by batch. The gate's gradient is the sum over all of the
unit's weights of gradient times weight, so that its score is the unit's as a whole, with what its weights do
together; the sum of its weights' own scores would leave that out, and would need a Fisher matrix over every
weight instead of one over the gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-20  # keeps what nothing flows through finite
DAMPING = 0.1  # of the mean of the Fisher matrix's diagonal


class Measure(Protocol):
    """Collects gradients and scores values by them.

    Attributes:
        seen: gradients taken in.
    """

    seen: int

    def add(self, gradients: Tensor) -> None:
        """Takes gradients in, [samples, size]."""

    def scores(self, values: Tensor) -> Tensor:
        """Expected rise of the loss from setting each value to zero alone, [size]."""

    def state(self) -> dict[str, Tensor]:
        """What was collected, as plain tensors."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what another measure of the same size had collected."""


class BlockFisher:
    """Optimal-brain-surgeon scores from the products of gradients, inverted when asked for: for small sizes.

    The score is w² / (2 [F⁻¹]ww) (Hassibi & Stork 1992), with F = λI + 1/m Σ g gᵀ over m gradients in diagonal
    blocks (the block-wise empirical Fisher matrix: Kurtic et al. 2022, oBERT, section 3.1). λ is ``damping``
    times the mean of the undamped diagonal.

    Args:
        size: number of values.
        block: size of a block.
        damping: see above.
    """

    def __init__(self, size: int, block: int, damping: float = DAMPING) -> None:
        self.size = size
        self.block = min(block, size)
        self.damping = damping
        self.products = torch.zeros(-(-size // self.block), self.block, self.block)
        self.seen = 0

    def add(self, gradients: Tensor) -> None:
        """Takes gradients in, [samples, size]."""
        padding = len(self.products) * self.block - self.size
        grouped = F.pad(gradients.float(), (0, padding)).view(len(gradients), -1, self.block).transpose(0, 1)
        self.products += grouped.transpose(1, 2) @ grouped  # [blocks, block, samples] @ [blocks, samples, block]
        self.seen += len(gradients)

    def scores(self, values: Tensor) -> Tensor:
        """The score of each value, [size]."""
        fisher = self.products / max(1, self.seen)
        diagonal = fisher.diagonal(dim1=1, dim2=2).flatten()[: self.size]  # without the last block's padding
        scale = diagonal.mean().clamp(min=_TINY)
        inverse: Tensor = torch.linalg.inv(fisher / scale + self.damping * torch.eye(self.block))
        return values.square() * (0.5 * scale / inverse.diagonal(dim1=1, dim2=2)).flatten()[: self.size]

    def state(self) -> dict[str, Tensor]:
        """What was collected, as plain tensors."""
        return {"products": self.products, "seen": torch.tensor(self.seen)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what another measure of the same size had collected."""
        self.products.copy_(state["products"])
        self.seen = int(state["seen"])


class WoodburyFisher:
    """Optimal-brain-surgeon scores from an inverse that every gradient updates: for as many values as weights.

    The score and F = λI + 1/m Σ g gᵀ are those of ``BlockFisher``; each gradient changes the blocks of F⁻¹ by

        F⁻¹ ← F⁻¹ − (F⁻¹g)(F⁻¹g)ᵀ / (m + gᵀF⁻¹g)

    (Woodbury's identity for a rank of one: Kurtic et al. 2022, oBERT, section 3.2). oBERT also moves the
    weights that stay to make up for one that goes; here they are shared by concepts whose masks differ, so they
    are left to training. λ must be known before the first update: it is ``damping`` times the mean square of the
    first gradient that is not zero. A block of 1 makes F diagonal.

    Args:
        size: number of values.
        block: size of a block; memory and time per gradient are size · block.
        samples: m, the gradients expected; more or fewer change F's scale against λ only.
        damping: see above.
    """

    def __init__(self, size: int, block: int, samples: int, damping: float = DAMPING) -> None:
        self.size = size
        self.block = min(block, size)
        self.samples = max(1, samples)
        self.damping = damping
        self.inverse = torch.zeros(-(-size // self.block), self.block, self.block)
        self.ridge = 0.0
        self.seen = 0

    def add(self, gradients: Tensor) -> None:
        """Takes gradients in, [samples, size]."""
        for gradient in gradients.float():
            self.seen += 1
            if not self.ridge:
                self.ridge = self.damping * float(gradient.square().mean())
                if not self.ridge:  # nothing flowed; it would change nothing
                    continue
                self.inverse.diagonal(dim1=1, dim2=2).fill_(1 / self.ridge)
            padded = F.pad(gradient, (0, len(self.inverse) * self.block - self.size))
            grouped = padded.view(-1, self.block, 1)  # [blocks, block, 1]
            if self.block == 1:  # the same, written without a difference of near numbers
                self.inverse *= self.samples / (self.samples + grouped.square() * self.inverse)
                continue
            step = self.inverse @ grouped
            along = self.samples + (grouped * step).sum(1, keepdim=True)
            self.inverse.baddbmm_(step, (step / along).transpose(1, 2), alpha=-1)

    def scores(self, values: Tensor) -> Tensor:
        """The score of each value, [size]; zeros where no gradient flowed."""
        if not self.ridge:
            return torch.zeros(self.size)
        diagonal = self.inverse.diagonal(dim1=1, dim2=2).flatten()[: self.size]
        return values.square() / (2 * diagonal)

    def state(self) -> dict[str, Tensor]:
        """What was collected, as plain tensors."""
        ridge = torch.tensor(self.ridge, dtype=torch.float64)
        return {"inverse": self.inverse, "ridge": ridge, "seen": torch.tensor(self.seen)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what another measure of the same size had collected."""
        self.inverse.copy_(state["inverse"])
        self.ridge, self.seen = float(state["ridge"]), int(state["seen"])


class FirstOrder:
    """|w| · E|g|: the first-order rise of the loss, its size averaged over gradients.

    For unit gates it is the score of Michel et al. 2019, for weights that of Molchanov et al. 2017
    for a single weight.

    Args:
        size: number of values.
    """

    def __init__(self, size: int) -> None:
        self.total = torch.zeros(size)
        self.seen = 0

    def add(self, gradients: Tensor) -> None:
        """Takes gradients in, [samples, size]."""
        self.total += gradients.float().abs().sum(0)
        self.seen += len(gradients)

    def scores(self, values: Tensor) -> Tensor:
        """The score of each value, [size]."""
        return values.abs() * self.total / max(1, self.seen)

    def state(self) -> dict[str, Tensor]:
        """What was collected, as plain tensors."""
        return {"total": self.total, "seen": torch.tensor(self.seen)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what another measure of the same size had collected."""
        self.total.copy_(state["total"])
        self.seen = int(state["seen"])


class Magnitude:
    """|w|, which needs no gradient (Han et al. 2015); a unit's value is the norm of its weights.

    Args:
        size: number of values.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen = 1

    def add(self, gradients: Tensor) -> None:
        """Takes nothing in."""

    def scores(self, values: Tensor) -> Tensor:
        """The size of each value, [size]."""
        return values.abs()

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes nothing over."""
