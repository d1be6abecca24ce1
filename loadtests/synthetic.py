"""Models to measure that nobody trained: random weights, which cost as much time as trained ones.

They become bundles by the same export as trained ones, parity check included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from export.exporter import export_bundle
from serving.masks import MASKS, Units, read_masks
from sparsecbm.backbone import Backbone, BackboneConfig
from sparsecbm.bundle import Concept, Granularity, Manifest, Precision
from sparsecbm.checkpoint import Checkpoint, CheckpointConfig
from sparsecbm.data import Dataset, Schema
from sparsecbm.model import SparseCBM

POSITIONS = 512


def backbone_like(manifest: Manifest, tokenizer: str) -> BackboneConfig:
    """A backbone of a bundle's sizes with BERT's conventions.

    Args:
        manifest: of the bundle.
        tokenizer: its ``tokenizer.json``, which says how many tokens there are.
    """
    sizes = manifest.backbone
    return BackboneConfig(
        name=f"{sizes.name}, random",
        family="bert",
        layers=sizes.layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        neurons=sizes.neurons,
        vocabulary=Tokenizer.from_str(tokenizer).get_vocab_size(),
        positions=max(POSITIONS, manifest.max_tokens),
        position_offset=0,
        pad_id=sizes.pad_id,
        activation="gelu",
        norm_epsilon=1e-12,
        dropout=0.0,
    )


def base_sized(config: BackboneConfig) -> BackboneConfig:
    """BERT-base's sizes with another backbone's tokens."""
    return dataclasses.replace(config, name="BERT-base, random", layers=12, hidden=768, heads=12, neurons=3072)


def random_backbone(config: BackboneConfig) -> Backbone:
    """A backbone whose matrices are drawn as BERT's are before training; always the same."""
    backbone = Backbone(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if weight.ndim > 1 and not name.endswith("bias"):
                weight.normal_(0, 0.02, generator=generator)
    return backbone


def random_model(
    backbone: Backbone,
    concepts: int,
    trunk: int,
    width: int = 8,
    density: float = 1.0,
    granularity: Granularity = "units",
) -> SparseCBM:
    """A model over a backbone, always the same.

    Every concept keeps the same number of heads and of neurons in each branch layer, another choice of them in each.

    Args:
        backbone: that it shares.
        concepts: how many, of three values each.
        trunk: shared layers.
        width: of a concept's activation.
        density: share of units that each concept keeps, at least one of each kind.
        granularity: "weights" gives each concept whole matrices of its own.
    """
    values = ["Negative", "Positive", "unknown"]
    named = [Concept(name=f"concept {index + 1}", values=values) for index in range(concepts)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = SparseCBM(backbone, named, ["1", "2", "3", "4", "5"], trunk, width, granularity=granularity)
        # Random states tell texts apart by little; biases keep every answer clear of rounding.
        for bias in (model.logit_bias, model.head_bias):
            bias.copy_(2 * torch.rand(bias.shape).argsort(-1))
        if granularity == "units":
            for mask in (model.masks.heads, model.masks.neurons):
                rank = torch.rand(mask.shape).argsort(-1).argsort(-1)
                mask.copy_(rank < max(1, round(density * mask.shape[-1])))
    return model.eval()


def dense_model(backbone: Backbone) -> SparseCBM:
    """One concept that keeps every unit: a backbone's dense pass and a classifier on top."""
    return random_model(backbone, concepts=1, trunk=backbone.config.layers - 1)


def model_like(folder: Path, manifest: Manifest, backbone: Backbone) -> SparseCBM:
    """A model with a bundle's concepts and masks over another backbone of the same sizes."""
    layout = manifest.layout
    model = random_model(
        backbone, len(manifest.concepts), layout.trunk, manifest.head.width, granularity=manifest.granularity
    )
    heads, neurons = Units(layout).split(read_masks(folder, manifest))
    masks = {"heads": heads, "neurons": neurons}
    packed = load_file(folder / MASKS)
    for name, units in (("trunk_heads", layout.heads), ("trunk_neurons", layout.neurons)):
        if name in packed:
            masks[name] = np.unpackbits(packed[name], axis=-1, count=units).astype(bool)
    weights = model.mask_tensors()
    model.load_masks(weights | {name: torch.from_numpy(mask) for name, mask in masks.items()})
    return model


def export_model(
    model: SparseCBM, tokenizer: str, max_tokens: int, folder: Path, precision: Precision, texts: Sequence[str]
) -> Path:
    """Exports a model that nobody trained; gives the bundle's folder.

    Args:
        model: to export.
        tokenizer: a ``tokenizer.json``.
        max_tokens: how many tokens of a text it reads.
        folder: for the bundle.
        precision: of its weights.
        texts: to check parity on.
    """
    config = CheckpointConfig(
        name="random",
        backbone=model.backbone.config,
        concepts=model.concepts,
        labels=model.labels,
        trunk=model.trunk,
        width=model.width,
        max_tokens=max_tokens,
    )
    return export_checkpoint(Checkpoint(config, model, tokenizer), folder, precision, texts)


def export_checkpoint(checkpoint: Checkpoint, folder: Path, precision: Precision, texts: Sequence[str]) -> Path:
    """Exports a checkpoint where no labels are at hand, its parity checked on texts; gives the bundle's folder."""
    config = checkpoint.config
    values = max(len(concept.values) for concept in config.concepts)
    unlabelled = Dataset(
        Schema("made up", tuple(config.concepts), tuple(config.labels)),
        tuple(texts),
        np.zeros(len(texts), dtype=np.int64),
        np.zeros((len(texts), len(config.concepts)), dtype=np.int64),
        np.zeros((len(texts), len(config.labels)), dtype=np.float32),
        np.zeros((len(texts), len(config.concepts), values), dtype=np.float32),
    )
    export_bundle(checkpoint, folder, unlabelled, "made up", precision)
    return folder
