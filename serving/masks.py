"""A bundle's unit masks, and the smallest edit of one that brings a concept to a value.

Units are numbered through: branch layer by layer, in each its heads, then its neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from serving.contract import Edit, UnitKind
from sparsecbm.bundle import Layout, Manifest
from sparsecbm.errors import BundleError

MASKS = "masks.safetensors"


@dataclass(frozen=True, slots=True)
class Units:
    """The numbering of branch units."""

    layout: Layout

    @property
    def per_layer(self) -> int:
        return self.layout.heads + self.layout.neurons

    def join(self, heads: np.ndarray, neurons: np.ndarray) -> np.ndarray:
        """[.., layers, heads] and [.., layers, neurons] to [.., units]."""
        joined = np.concatenate((heads, neurons), axis=-1)
        return joined.reshape(*joined.shape[:-2], -1)

    def split(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[.., units] to [.., layers, heads] and [.., layers, neurons], contiguous."""
        by_layer = units.reshape(*units.shape[:-1], self.layout.branch, self.per_layer)
        heads, neurons = np.split(by_layer, [self.layout.heads], axis=-1)
        return np.ascontiguousarray(heads), np.ascontiguousarray(neurons)

    def place(self, unit: int) -> tuple[int, UnitKind, int]:
        """A unit's layer in the backbone, its kind, and its index there."""
        layer, within = divmod(unit, self.per_layer)
        if within < self.layout.heads:
            return self.layout.trunk + layer, "head", within
        return self.layout.trunk + layer, "neuron", within - self.layout.heads


def read_masks(folder: Path, manifest: Manifest) -> np.ndarray:
    """The masks of a bundle, [concepts, units] bool.

    Raises:
        BundleError: the file isn't of the manifest's shapes.
    """
    layout, concepts = manifest.layout, len(manifest.concepts)
    try:
        packed = load_file(folder / MASKS)
        parts = []
        for kind, count in (("heads", layout.heads), ("neurons", layout.neurons)):
            shape = (concepts, layout.branch, -(-count // 8))
            if packed[kind].shape != shape or packed[kind].dtype != np.uint8:
                raise BundleError(f"{folder / MASKS}: {kind} must be bytes of shape {list(shape)}.")
            parts.append(np.unpackbits(packed[kind], axis=-1, count=count).astype(bool))
    except (OSError, SafetensorError, KeyError) as error:
        raise BundleError(f"{folder / MASKS} can't be read: {error}") from error
    return Units(layout).join(*parts)


def edit_units(mask: np.ndarray, base: np.ndarray, gradient: np.ndarray, count: int) -> np.ndarray:
    """Flips the units of one concept that promise to raise its corrected value most.

    Dropping a kept unit is expected to change the objective by minus its gradient, growing a pruned one by
    its gradient. Units that were flipped before are left alone, and so are those that promise nothing.

    Args:
        mask: [units] bool, as it stands.
        base: [units] bool, before any edit.
        gradient: [units], of the objective by each unit's gate.
        count: most units to flip.

    Returns:
        The edited mask.
    """
    promise = np.where(mask, -gradient, gradient)
    promise[mask != base] = -np.inf
    chosen = np.argpartition(promise, -count)[-count:]
    edited = mask.copy()
    flips = chosen[promise[chosen] > 0]
    edited[flips] = ~mask[flips]
    return edited


def describe_edits(units: Units, concept: str, base: np.ndarray, mask: np.ndarray) -> list[Edit]:
    """What differs between a concept's mask, [units] bool, before and after."""
    edits = []
    for unit in np.flatnonzero(base != mask):
        layer, kind, index = units.place(int(unit))
        change: Literal["dropped", "grown"] = "dropped" if base[unit] else "grown"
        edits.append(Edit(concept=concept, layer=layer, kind=kind, index=index, change=change))
    return edits
