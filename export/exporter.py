"""Checkpoint → bundle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from pydantic import ValidationError
from safetensors.numpy import save_file
from torch import Tensor

from export import torchscript
from export.graph import save_graphs
from export.graphs import ATTRIBUTE, EXPLAIN, PREDICT, attribute_graph, explain_graph, predict_graph
from export.half import compute_in_half, store_in_half
from export.layers import array
from export.parity import check_parity
from export.products import ExactProduct, Int8Product, Product
from export.ranges import measure_ranges
from sparsecbm.bundle import MANIFEST, PRECISIONS, Format, Manifest, Precision, read_bundle, write_manifest
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.data import Dataset
from sparsecbm.errors import BundleError, DataError
from sparsecbm.folders import atomic_folder
from sparsecbm.masks import WeightMasks
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import TOKENIZER, encode, tokenizer_from_text

MASKS = "masks.safetensors"
NO_TIME_SAVED = (
    "Masks are over single weights: pruned weights are zeros in whole matrices, of which every concept has its own. "
    "They save neither time nor space; masks over units do."
)
IS_A_PROGRAM = (
    "The graphs are TorchScript, which is a program: a server loads them only where it is told to trust whoever made "
    "them."
)


def pack_masks(model: SparseCBM) -> dict[str, np.ndarray]:
    """All masks of a model as bits, eight a byte (most significant first); see ``SparseCBM.mask_tensors``."""
    tensors = {name: tensor.numpy() for name, tensor in model.mask_tensors().items()}
    return {
        name: tensor if name.startswith("weights.") else np.packbits(tensor, axis=-1)
        for name, tensor in tensors.items()
    }


def _kept_of_units(model: SparseCBM, concept: int, layer: int) -> tuple[float, float]:
    """Shares of a layer's heads and neurons that a concept keeps."""
    heads, neurons = model.masks.heads[concept, layer], model.masks.neurons[concept, layer]
    return float(heads.float().mean()), float(neurons.float().mean())


def _kept_of_weights(masks: WeightMasks, concept: int, layer: int) -> tuple[float, float]:
    """Shares of a layer's attention and feed-forward weights that a concept keeps."""
    parts = masks.of(concept, layer)
    attention = [parts.pop(name) for name in ("qkv", "out")]

    def share(masks: Collection[Tensor]) -> float:
        return sum(int(mask.count_nonzero()) for mask in masks) / sum(mask.numel() for mask in masks)

    return share(attention), share(parts.values())


def _graphs(model: SparseCBM, precision: Precision, ids: Sequence[np.ndarray]) -> dict[str, ModelProto]:
    """A bundle's graphs by file; where single weights are pruned, attribution has no unit to leave out."""
    ranges = measure_ranges(model, ids) if precision == "int8" else []

    def product() -> Product:
        return Int8Product(ranges) if ranges else ExactProduct()

    graphs = {PREDICT: predict_graph(model, precision, product()), EXPLAIN: explain_graph(model, precision)}
    if model.weight_masks is None:
        graphs[ATTRIBUTE] = attribute_graph(model, precision, product())
    return graphs


def _write_graphs(
    folder: Path, model: SparseCBM, precision: Precision, format: Format, ids: Sequence[np.ndarray]
) -> None:
    if format == "torchscript":
        torchscript.save_module(torchscript.predict_module(model, precision), folder / torchscript.PREDICT)
        torchscript.save_module(torchscript.explain_module(model, precision), folder / torchscript.EXPLAIN)
        return
    graphs = _graphs(model, precision, ids)
    if precision == "fp16":
        graphs = {
            name: compute_in_half(graph) if name == PREDICT else store_in_half(graph) for name, graph in graphs.items()
        }
    save_graphs(folder, graphs)


def _notes(model: SparseCBM, format: Format) -> list[str]:
    notes = [NO_TIME_SAVED] if model.granularity == "weights" else []
    return [*notes, IS_A_PROGRAM] if format == "torchscript" else notes


def _describe_masks(model: SparseCBM) -> dict[str, Any]:
    names = [concept.name for concept in model.concepts]
    overlap = model.overlap()

    def layer_density(concept: int, layer: int) -> dict[str, float]:
        single = model.weight_masks
        kept = _kept_of_units(model, concept, layer) if single is None else _kept_of_weights(single, concept, layer)
        return {"layer": model.trunk + layer, "heads": kept[0], "neurons": kept[1]}

    return {
        "granularity": model.granularity,
        "concept_density": dict(zip(names, model.densities(), strict=True)),
        "branch_density": model.density(),
        "trunk_density": model.trunk_masks.density(),
        "density": {
            name: [layer_density(index, layer) for layer in range(model.branch_layers)]
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
    folder: Path,
    checkpoint: Checkpoint,
    data: Dataset,
    split: str,
    precision: Precision,
    format: Format,
    name: str,
    description: str,
) -> Manifest:
    """Writes a bundle's files into an empty folder, the manifest last."""
    config, model = checkpoint.config, checkpoint.model
    encoded = encode(tokenizer_from_text(checkpoint.tokenizer, config.max_tokens), data.texts)
    _write_graphs(folder, model, precision, format, encoded.ids)
    (folder / TOKENIZER).write_text(checkpoint.tokenizer, encoding="utf-8")
    save_file(pack_masks(model), folder / MASKS)
    parity, figures = map(_rounded, check_parity(folder, model, data, encoded.ids, precision, format))
    backbone = config.backbone
    write_manifest(
        folder,
        {
            "name": name,
            "description": description,
            "format": format,
            "backbone": {
                "name": _public_name(backbone.name),
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
            "notes": _notes(model, format),
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
    return read_bundle(folder)  # what a server would refuse isn't left behind


def _public_name(backbone: str) -> str:
    """A backbone's name without the folders that lead to it on this machine."""
    return Path(backbone).name if Path(backbone).is_absolute() else backbone


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    data: Dataset,
    split: str,
    precision: Precision = "int8",
    name: str | None = None,
    description: str = "",
    format: Format = "onnx",
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
        format: of the graphs.

    Raises:
        BundleError: the format doesn't come in the precision; the checkpoint is one to compare with, not to serve; the
            target exists and isn't a bundle or can't be written; or the bundle would be one that is refused (a name
            that is too long, an operator that isn't known).
        DataError: the data asks for other concepts or labels than the checkpoint.
        ParityError: the export answers otherwise; nothing is written then.
    """
    config = checkpoint.config
    if precision not in PRECISIONS[format]:
        known = "; ".join(f"{name} comes in {', '.join(those)}" for name, those in PRECISIONS.items())
        raise BundleError(f"There is no {precision} export in the format {format}: {known}.")
    if config.bottleneck != "vectors" or not config.knows_concepts:
        raise BundleError(
            "This checkpoint was trained to compare with, not to serve: "
            + (
                "its label reads the concepts' logits, which corrections harm"
                if config.bottleneck != "vectors"
                else "it learned no concepts"
            )
            + ". Train one with --bottleneck vectors and a --concept-weight over 0."
        )
    if target.exists() and not (target / MANIFEST).is_file():
        raise BundleError(f"{target} exists and is not a bundle; name another folder.")
    if not config.has_task_of(data.schema):
        raise DataError(
            f"The data has other concepts or labels than the checkpoint, which knows "
            f"{[concept.name for concept in config.concepts]} and {config.labels}."
        )
    try:
        with atomic_folder(target) as folder:
            return _fill(folder, checkpoint, data, split, precision, format, name or config.name, description)
    except OSError as error:
        raise BundleError(f"{target} can't be written: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the manifest"
        raise BundleError(
            f"No bundle was written, since it would break the schema at {where}: {first['msg']}."
        ) from error
