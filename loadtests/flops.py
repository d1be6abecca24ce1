"""How many floating-point operations a model's matrix products take, a multiply-add counting as two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from serving.masks import MASKS
from sparsecbm.bundle import Backbone, Manifest


def layer_flops(backbone: Backbone, heads: np.ndarray, neurons: np.ndarray, lengths: np.ndarray) -> float:
    """Operations of transformer layers with some of their units, per text, the mean over texts.

    Args:
        backbone: sizes.
        heads: [layers], how many each layer runs.
        neurons: [layers], likewise.
        lengths: [texts] tokens, without padding.
    """
    attended = heads.sum() * (backbone.hidden // backbone.heads)  # columns of the query, over all layers
    by_token = 8 * backbone.hidden * attended + 4 * backbone.hidden * neurons.sum()
    return float(by_token * lengths.mean() + 4 * attended * np.square(lengths).mean())


def dense_flops(backbone: Backbone, lengths: np.ndarray) -> float:
    """Operations of one dense pass per text."""
    layers = np.ones(backbone.layers)
    return layer_flops(backbone, layers * backbone.heads, layers * backbone.neurons, lengths)


def bundle_flops(folder: Path, manifest: Manifest, lengths: np.ndarray) -> float:
    """Operations of a bundle's prediction per text: of the trunk once and of every concept's branch."""
    masks = load_file(folder / MASKS)

    def units_run(name: str, layers: int, units: int) -> np.ndarray:
        """How many units each layer keeps, over all concepts; all where the mask is not in the bundle."""
        if name not in masks:
            return np.full(layers, units)
        kept: np.ndarray = np.unpackbits(masks[name], axis=-1, count=units).sum((0, 2), dtype=np.int64)
        return kept

    layout = manifest.layout
    heads = [units_run("trunk_heads", layout.trunk, layout.heads), units_run("heads", layout.branch, layout.heads)]
    neurons = [
        units_run("trunk_neurons", layout.trunk, layout.neurons),
        units_run("neurons", layout.branch, layout.neurons),
    ]
    return layer_flops(manifest.backbone, np.concatenate(heads), np.concatenate(neurons), lengths)
