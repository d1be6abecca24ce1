"""Gradual pruning of units by the optimal-brain-surgeon score.

Each unit has a gate that is 1 while it is kept. Removing unit u changes the loss, to second order and with
the empirical Fisher matrix F in place of the Hessian, by 1 / (2 [F⁻¹]ᵤᵤ) (Hassibi & Stork 1992; block-wise
empirical Fisher: Kurtic et al. 2022, oBERT, section 3). Here F is over gates: its blocks hold the products
of per-text gate gradients of neighbouring units of one concept, layer and kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecbm.backbone import Gates
from sparsecbm.masks import UnitMasks


@dataclass(frozen=True, slots=True)
class Schedule:
    """Density over training steps: 1 before ``start``, ``density`` from ``end`` on, cubic between
    (Zhu & Gupta 2017, equation 1).
    """

    start: int
    end: int
    density: float

    def at(self, step: int) -> float:
        """Share of units to keep at a step."""
        if step >= self.end:
            return self.density
        progress = max(0, step - self.start) / (self.end - self.start)
        return self.density + (1.0 - self.density) * (1.0 - progress) ** 3


class BlockFisher:
    """Empirical Fisher matrix of one group of gates, in diagonal blocks.

    Args:
        units: number of gates.
        block: size of a block.
    """

    def __init__(self, units: int, block: int) -> None:
        self.units = units
        self.block = min(block, units)
        self.blocks = torch.zeros(-(-units // self.block), self.block, self.block)
        self.texts = 0

    def add(self, gradients: Tensor) -> None:
        """Takes per-text gradients of the gates, [texts, units]."""
        padding = len(self.blocks) * self.block - self.units
        gradients = torch.nn.functional.pad(gradients.float(), (0, padding))
        grouped = gradients.view(len(gradients), -1, self.block).transpose(0, 1)  # [blocks, texts, block]
        self.blocks += grouped.transpose(1, 2) @ grouped
        self.texts += len(gradients)

    def importance(self, damping: float = 0.1) -> Tensor:
        """Loss increase expected from removing each unit alone, [units].

        ``damping``, times the mean of the diagonal, is added to the diagonal.
        """
        fisher = self.blocks / max(1, self.texts)
        diagonal = fisher.diagonal(dim1=1, dim2=2).flatten()[: self.units]  # without the last block's padding
        scale = diagonal.mean().clamp(min=1e-20)
        identity = torch.eye(self.block)
        inverse: Tensor = torch.linalg.inv(fisher / scale + damping * identity)
        return (0.5 * scale / inverse.diagonal(dim1=1, dim2=2)).flatten()[: self.units]


class Pruner:
    """Watches gate gradients during training and lowers the masks' density step by step.

    Use: pass ``gates(batch)`` to the model's forward, call ``observe`` after backward, and ``prune`` to cut.

    Args:
        masks: edited in place.
        block: size of a Fisher block.
    """

    def __init__(self, masks: UnitMasks, block: int = 64) -> None:
        self.masks = masks
        self.block = block
        self._gates: list[list[Gates]] = []
        self._reset()

    def _reset(self) -> None:
        concepts, layers, _ = self.masks.heads.shape
        self._kept = [[self.masks.kept(k, layer) for layer in range(layers)] for k in range(concepts)]
        self._fisher = [
            [tuple(BlockFisher(len(units), self.block) for units in kept) for kept in row] for row in self._kept
        ]

    def gates(self, batch: int) -> Sequence[Sequence[Gates]]:
        """Fresh gates of 1 for every kept unit and text, whose gradients ``observe`` reads."""
        self._gates = [
            [Gates(*(torch.ones(batch, len(units), requires_grad=True) for units in kept)) for kept in row]
            for row in self._kept
        ]
        return self._gates

    def observe(self) -> None:
        """Adds the last backward pass's gate gradients to the Fisher blocks.

        The loss must be a mean over the batch; gradients are scaled back to those of single texts.
        """
        for gate_row, fisher_row in zip(self._gates, self._fisher, strict=True):
            for gates, fishers in zip(gate_row, fisher_row, strict=True):
                for gate, fisher in zip(gates, fishers, strict=True):
                    assert gate.grad is not None
                    fisher.add(gate.grad * len(gate))

    def prune(self, density: float) -> None:
        """Cuts every concept's layers to a share of their heads and neurons (at least one of each)."""
        for concept, row in enumerate(self._kept):
            for layer, kept in enumerate(row):
                groups = (self.masks.heads[concept, layer], self.masks.neurons[concept, layer])
                for mask, units, fisher in zip(groups, kept, self._fisher[concept][layer], strict=True):
                    keep = max(1, int(density * len(mask) + 1e-6))
                    if keep < len(units) and fisher.texts:
                        removed = fisher.importance().argsort()[: len(units) - keep]
                        mask[units[removed]] = False
        self._reset()
