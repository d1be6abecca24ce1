"""Checkpoint → bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import save_file

from export.graph import save_graphs
from export.graphs import EXPLAIN, PREDICT, explain_graph, predict_graph
from export.layers import array
from export.parity import check_parity
from sparsecbm.bundle import MANIFEST, Manifest, Precision, write_manifest
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.data import Dataset
from sparsecbm.errors import BundleError, DataError
from sparsecbm.folders import atomic_folder
from sparsecbm.masks import UnitMasks
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import TOKENIZER, encode, tokenizer_from_text

MASKS = "masks.safetensors"


def pack_masks(masks: UnitMasks) -> dict[str, np.ndarray]:
    """Masks as bits, eight units a byte along the last axis (most significant first)."""
    return {
        "heads": np.packbits(masks.heads.numpy(), axis=-1),
        "neurons": np.packbits(masks.neurons.numpy(), axis=-1),
    }


def _describe_masks(model: SparseCBM) -> dict[str, Any]:
    masks, names = model.masks, [concept.name for concept in model.concepts]
    overlap = masks.overlap()
    return {
        "branch_density": masks.density(),
        "density": {
            name: [
                {
                    "layer": model.trunk + layer,
                    "heads": float(masks.heads[index, layer].float().mean()),
                    "neurons": float(masks.neurons[index, layer].float().mean()),
                }
                for layer in range(model.branch_layers)
            ]
            for index, name in enumerate(names)
        },
        "overlap": {
            name: {other: round(float(overlap[i, j]), 6) for j, other in enumerate(names)}
            for i, name in enumerate(names)
        },
    }


def _rounded(figures: Any) -> Any:
    """Figures to four decimals; what is beyond depends on the threads that summed them, and so would the version."""
    if isinstance(figures, dict):
        return {key: _rounded(figure) for key, figure in figures.items()}
    return round(figures, 4) if isinstance(figures, float) else figures


def _fill(
    folder: Path, checkpoint: Checkpoint, data: Dataset, split: str, precision: Precision, name: str, description: str
) -> Manifest:
    """Writes a bundle's files into an empty folder, the manifest last."""
    config, model = checkpoint.config, checkpoint.model
    encoded = encode(tokenizer_from_text(checkpoint.tokenizer, config.max_tokens), data.texts)
    save_graphs(folder, {PREDICT: predict_graph(model, precision), EXPLAIN: explain_graph(model, precision)})
    (folder / TOKENIZER).write_text(checkpoint.tokenizer, encoding="utf-8")
    save_file(pack_masks(model.masks), folder / MASKS)
    parity, figures = map(_rounded, check_parity(folder, model, data, encoded.ids, precision))
    backbone = config.backbone
    return write_manifest(
        folder,
        {
            "name": name,
            "description": description,
            "backbone": {
                "name": backbone.name,
                "family": backbone.family,
                "layers": backbone.layers,
                "hidden": backbone.hidden,
                "heads": backbone.heads,
                "neurons": backbone.neurons,
                "pad_id": backbone.pad_id,
            },
            "concepts": [concept.model_dump() for concept in config.concepts],
            "labels": config.labels,
            "layout": {
                "trunk": config.trunk,
                "branch": model.branch_layers,
                "heads": backbone.heads,
                "neurons": backbone.neurons,
            },
            "head": {
                "width": config.width,
                "weight": array(model.head_weight).tolist(),
                "bias": array(model.head_bias).tolist(),
            },
            **_describe_masks(model),
            "precision": precision,
            "max_tokens": config.max_tokens,
            "evaluation": {split: figures},
            "calibration": {
                split: {
                    "label": figures["label"]["calibration_error"],
                    "concepts": figures["concept"]["calibration_error"],
                }
            },
            "parity": {split: parity},
        },
    )


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    data: Dataset,
    split: str,
    precision: Precision = "int8",
    name: str | None = None,
    description: str = "",
) -> Manifest:
    """Writes a bundle, once it has answered as its checkpoint does on real texts.

    Args:
        checkpoint: to export.
        target: the bundle's folder; a bundle that is there is replaced, at the very end.
        data: labelled texts for parity and evaluation.
        split: what the data is called in the bundle's figures.
        precision: of the weights.
        name: of the model, by default the checkpoint's.
        description: one sentence for the card.

    Raises:
        BundleError: the target exists and isn't a bundle or can't be written, or the manifest would break its
            schema (a name that is too long).
        DataError: the data asks for other concepts or labels than the checkpoint.
        ParityError: the export answers otherwise; nothing is written then.
    """
    config = checkpoint.config
    if target.exists() and not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is not a bundle; name another folder.")
    if (list(data.schema.concepts), list(data.schema.labels)) != (config.concepts, config.labels):
        raise DataError(
            f"The data has other concepts or labels than the checkpoint, which knows "
            f"{[concept.name for concept in config.concepts]} and {config.labels}."
        )
    try:
        with atomic_folder(target) as folder:
            return _fill(folder, checkpoint, data, split, precision, name or config.name, description)
    except OSError as error:
        raise BundleError(f"{target} can't be written: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the manifest"
        raise BundleError(
            f"No bundle was written, since it would break the schema at {where}: {first['msg']}."
        ) from error
