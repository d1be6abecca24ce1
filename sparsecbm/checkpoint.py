"""A trained model on disk: safetensors and JSON, written so that a crash leaves the old one or the new one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sparsecbm.backbone import ACTIVATIONS, Backbone, BackboneConfig
from sparsecbm.bundle import Concept
from sparsecbm.data import Schema
from sparsecbm.errors import CheckpointError
from sparsecbm.folders import atomic_folder
from sparsecbm.model import SparseCBM
from sparsecbm.recipe import BottleneckKind
from sparsecbm.tokens import TOKENIZER

CHECKPOINT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_MASKS = "masks."


class CheckpointConfig(BaseModel):
    """``config.json``: all of a model but its weights, masks and tokeniser."""

    model_config = ConfigDict(extra="forbid")

    checkpoint_version: Literal[1] = 1
    name: str
    backbone: BackboneConfig
    concepts: list[Concept] = Field(min_length=1)
    labels: list[str] = Field(min_length=2)
    trunk: int = Field(ge=0)
    width: int = Field(ge=1)
    bottleneck: BottleneckKind = "vectors"
    reach: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(ge=1)
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}

    @property
    def knows_concepts(self) -> bool:
        """Whether concepts were learned, which a classifier's are not."""
        return bool(self.training.get("concept_weight", 1))

    def has_task_of(self, schema: Schema) -> bool:
        """Whether data have the concepts and labels that the model was trained on, in their order."""
        return (list(schema.concepts), list(schema.labels)) == (self.concepts, self.labels)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        backbone = self.backbone
        for name in ("layers", "hidden", "heads", "neurons", "vocabulary", "max_tokens"):
            if getattr(backbone, name) < 1:
                raise ValueError(f"backbone.{name} must be at least 1, got {getattr(backbone, name)}")
        if backbone.hidden % backbone.heads:
            raise ValueError(f"backbone.hidden ({backbone.hidden}) must be a multiple of its {backbone.heads} heads")
        if backbone.activation not in ACTIVATIONS:
            raise ValueError(f"backbone.activation must be one of {sorted(ACTIVATIONS)}, got {backbone.activation!r}")
        if self.trunk >= backbone.layers:
            raise ValueError(f"trunk must be below the backbone's {backbone.layers} layers, got {self.trunk}")
        return self


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with what it needs to read texts."""

    config: CheckpointConfig
    model: SparseCBM
    tokenizer: str


def save(checkpoint: Checkpoint, target: Path) -> None:
    """Writes a checkpoint folder, replacing one that is there."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    tensors |= {_MASKS + name: mask for name, mask in checkpoint.model.mask_tensors().items()}
    config = checkpoint.config.model_dump(mode="json")
    with atomic_folder(target) as folder:
        save_file(tensors, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (folder / TOKENIZER).write_text(checkpoint.tokenizer, encoding="utf-8")


def read_config(folder: Path) -> CheckpointConfig:
    """Reads a checkpoint's configuration alone.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG}. Make one with 'sparsecbm train'.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    version = content.get("checkpoint_version") if isinstance(content, dict) else None
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version!r}; this program reads version {CHECKPOINT_VERSION}. "
            "Train again, or use the program that wrote it."
        )
    try:
        return CheckpointConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise CheckpointError(f"{path} is not a checkpoint's configuration, at {where}: {first['msg']}.") from error


def load(folder: Path | str) -> Checkpoint:
    """Reads a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or of shapes that don't fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        tokenizer = (folder / TOKENIZER).read_text(encoding="utf-8")
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder} can't be read as a checkpoint: {error}") from error
    model = SparseCBM(
        Backbone(config.backbone),
        config.concepts,
        config.labels,
        config.trunk,
        config.width,
        granularity="weights" if any(name.startswith(f"{_MASKS}weights.") for name in tensors) else "units",
        bottleneck=config.bottleneck,
    )
    masks: dict[str, torch.Tensor] = {}
    for kind, wanted in model.mask_shapes().items():
        if kind.startswith("trunk_") and _MASKS + kind not in tensors:
            continue  # a dense trunk
        masks[kind] = tensors.pop(_MASKS + kind, torch.empty(0))
        if tuple(masks[kind].shape) != wanted:
            raise CheckpointError(
                f"{folder / WEIGHTS}: masks of {kind} have shape {list(masks[kind].shape)}, but {CONFIG} asks for "
                f"{list(wanted)}."
            )
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() ^ tensors.keys())
    wrong += sorted(name for name in expected.keys() & tensors.keys() if tensors[name].shape != expected[name])
    if wrong:
        raise CheckpointError(
            f"{folder / WEIGHTS} doesn't fit {CONFIG}: {len(wrong)} tensor(s) are missing, too many or of another "
            f"shape, first {wrong[0]!r}."
        )
    model.load_state_dict(tensors)
    model.load_masks(masks)
    model.reach = config.reach
    model.eval()
    return Checkpoint(config, model, tokenizer)
