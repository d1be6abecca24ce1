"""A recipe: every setting of a training run, from a file, from flags, or by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsecbm.bundle import Granularity
from sparsecbm.errors import TrainingError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"

Importance = Literal["obs", "magnitude", "first_order"]
Shape = Literal["cubic", "linear"]
Threshold = Literal["layer", "global"]
Mode = Literal["joint", "sequential", "independent"]
Balance = Literal["none", "balanced"]
BottleneckKind = Literal["vectors", "logits"]


class Recipe(BaseModel):
    """How a model is built and trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: str = Field(default=MINILM, description="Hugging Face model: a folder or a hub name.")
    trunk: int = Field(default=3, ge=0, description="Lower layers that all concepts share.")
    width: int = Field(default=8, ge=1, description="Width of a concept's activation.")
    bottleneck: BottleneckKind = Field(
        default="vectors",
        description="What concepts hand to the label: 'vectors' that corrections move, or, to compare with, their "
        "'logits' (the plain joint CBM; can't be exported).",
    )
    max_tokens: int = Field(default=256, ge=4, description="Longer texts are truncated (and counted).")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout on pooled branch outputs.")
    strength_dropout: float = Field(
        default=0.3, ge=0, lt=1, description="Chance that the label hears of a text the concepts' values alone."
    )
    mode: Mode = Field(
        default="joint",
        description="How the label head learns: with the concepts ('joint'), after them on their predictions "
        "('sequential'), or from their true values ('independent').",
    )
    epochs: int = Field(default=12, ge=1, description="Passes over the training split.")
    patience: int = Field(
        default=0, ge=0, description="Epochs at the final density without a better one after which to stop; 0: never."
    )
    batch_size: int = Field(default=32, ge=1, description="Texts per step.")
    accumulate: int = Field(
        default=1, ge=1, description="Parts of a batch that pass one after another, for less memory."
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak, of the backbone.")
    concept_learning_rate: float = Field(default=1e-3, gt=0, description="Peak, of the concept layers.")
    head_learning_rate: float = Field(
        default=2e-2, gt=0, description="Peak, of the values' vectors and the label head, which are few numbers."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Of AdamW, on matrices.")
    warmup: float = Field(
        default=0.1, ge=0, lt=1, description="Share of all steps in which the learning rate rises; then it falls to 0."
    )
    granularity: Granularity = Field(
        default="units",
        description="What masks are over: 'units' (heads and neurons), or 'weights' (each weight; as in the paper "
        "with --trunk 0; saves no time).",
    )
    density: float = Field(
        default=0.3, gt=0, le=1, description="Share of branch units, or weights, that every concept's mask keeps."
    )
    trunk_density: float = Field(
        default=1.0, gt=0, le=1, description="Share of trunk units that the one mask of the shared layers keeps."
    )
    importance: Importance = Field(
        default="obs",
        description="What goes first: 'obs' (least rise of the loss to second order), 'first_order', 'magnitude'.",
    )
    threshold: Threshold = Field(
        default="layer", description="Whether each layer keeps the density, or only all layers together ('global')."
    )
    schedule: Shape = Field(default="cubic", description="How the density falls; 'linear' as in the paper.")
    fisher_block: int = Field(
        default=0, ge=0, description="Size of a block of the Fisher matrix; 0: 64 for units, 4 for weights."
    )
    fisher_memory: float = Field(default=4.0, gt=0, description="Most GB that Fisher matrices may take.")
    prune_start: float = Field(default=1.0, ge=0, description="Epoch, from 0, at which pruning starts.")
    prune_end: float = Field(default=6.0, ge=0, description="Epoch by which the density is reached.")
    prune_cuts: int = Field(default=4, ge=1, description="Cuts per epoch while pruning.")
    correction_rate: float = Field(
        default=0.25, ge=0, le=1, description="Chance that a concept has its true value before the label head."
    )
    label_weight: float = Field(default=1.0, ge=0, description="Of the label's loss beside the concepts' mean loss.")
    concept_weight: float = Field(
        default=1.0, ge=0, description="Of the concepts' mean loss; 0 trains a classifier that knows no concepts."
    )
    class_weights: Balance = Field(
        default="none",
        description="Weights of values and labels in the loss; 'balanced': the rarer in the training split, the more.",
    )
    vote_weight: float = Field(
        default=0.5, ge=0, le=1, description="Of the annotators' votes in the targets; the majority has the rest."
    )
    average: float = Field(
        default=0.98, ge=0, lt=1, description="Decay per step of the running mean of weights that is kept; 0: none."
    )
    temperature: bool = Field(
        default=True, description="Whether temperatures, fitted on the validation split, calibrate the probabilities."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="'auto' is bf16 where the processor multiplies it natively, else fp32."
    )
    seed: int = Field(default=0, ge=0, description="Of everything random.")

    @property
    def prunes(self) -> bool:
        """Whether anything is pruned."""
        return self.density < 1 or self.trunk_density < 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.concept_weight and (not self.label_weight or self.mode != "joint"):
            raise ValueError(
                "with a concept_weight of 0 the label alone is learned: give label_weight more than 0, and the mode "
                "'joint'"
            )
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} can't be split into {self.accumulate} parts: lower accumulate to "
                "batch_size or less"
            )
        if self.trunk_density < 1 and not self.trunk:
            raise ValueError(f"trunk_density is {self.trunk_density}, but there is no trunk to prune: trunk is 0")
        if not self.prunes:
            return self
        if not self.prune_start <= self.prune_end:
            raise ValueError(
                f"pruning must not end before it starts: prune_start is {self.prune_start}, prune_end {self.prune_end}"
            )
        if self.prune_end > self.epochs - 1:
            raise ValueError(
                "at least one epoch must follow pruning, or no model of the final density is trained: prune_end is "
                f"{self.prune_end}, epochs {self.epochs}"
            )
        return self


def read_recipe(file: Path | None = None, **given: object) -> Recipe:
    """A recipe from what is given, then the file, then the defaults; None counts as not given.

    Args:
        file: YAML with fields of ``Recipe``.
        given: fields of ``Recipe``.

    Raises:
        TrainingError: no such file, or a setting that makes no sense; names it.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError as error:
            raise TrainingError(f"There is no recipe at {file}.") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TrainingError(f"{file} can't be read as YAML: {error}") from error
        if not isinstance(settings, dict):
            raise TrainingError(f"{file} must hold settings by name, such as 'epochs: 12'.")
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        return Recipe.model_validate(settings | flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = f"--{name.replace('_', '-')}" if name in flags else f"{file}, at {name}" if name else "The recipe"
        raise TrainingError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from error
