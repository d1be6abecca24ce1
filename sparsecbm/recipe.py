"""A recipe: every setting of a training run, from a file, from flags, or by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsecbm.errors import TrainingError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class Recipe(BaseModel):
    """How a model is built and trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: str = Field(default=MINILM, description="Hugging Face model: a folder or a hub name.")
    trunk: int = Field(default=3, ge=0, description="Lower layers that all concepts share.")
    width: int = Field(default=8, ge=1, description="Width of a concept's activation.")
    max_tokens: int = Field(default=256, ge=4, description="Longer texts are truncated (and counted).")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout on pooled branch outputs.")
    vector_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Chance that a concept hands over its value's constant vector alone."
    )
    epochs: int = Field(default=12, ge=1, description="Passes over the training split.")
    batch_size: int = Field(default=32, ge=1, description="Texts per step.")
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak, of the backbone.")
    head_learning_rate: float = Field(default=1e-3, gt=0, description="Peak, of the concept layers and the label head.")
    weight_decay: float = Field(default=0.01, ge=0, description="Of AdamW, on matrices.")
    warmup: float = Field(
        default=0.1, ge=0, lt=1, description="Share of all steps in which the learning rate rises; then it falls to 0."
    )
    density: float = Field(default=0.32, gt=0, le=1, description="Share of branch units that every mask keeps.")
    prune_start: float = Field(default=1.0, ge=0, description="Epoch, from 0, at which pruning starts.")
    prune_end: float = Field(default=6.0, ge=0, description="Epoch by which the density is reached.")
    prune_cuts: int = Field(default=4, ge=1, description="Cuts per epoch while pruning.")
    correction_rate: float = Field(
        default=0.25, ge=0, le=1, description="Chance that a concept has its true value before the label head."
    )
    label_weight: float = Field(default=1.0, ge=0, description="Of the label's loss beside the concepts' mean loss.")
    vote_weight: float = Field(
        default=0.5, ge=0, le=1, description="Of the annotators' votes in the targets; the majority has the rest."
    )
    average: float = Field(
        default=0.98, ge=0, lt=1, description="Decay per step of the running mean of weights that is kept; 0: none."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="'auto' is bf16 where the processor multiplies it natively, else fp32."
    )
    seed: int = Field(default=0, ge=0, description="Of everything random.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.density == 1:
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
