"""What an unfinished run has reached, on disk: all that it takes to go on as if nothing had happened.

The folder holds safetensors and JSON. It is replaced as a whole after every epoch, so that a run that is killed at
any moment leaves the state after its last whole epoch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsecbm.backbone import BackboneConfig
from sparsecbm.data import Dataset
from sparsecbm.errors import TrainingError
from sparsecbm.folders import atomic_folder, sweep
from sparsecbm.recipe import Recipe

STATE_VERSION = 1
STATE = "state.json"
TENSORS = "state.safetensors"
# Settings that change how numbers are rounded, not what is trained.
FREE_SETTINGS = {"precision"}


class Origin(BaseModel):
    """What a run is made from; a run goes on only from its own.

    Attributes:
        recipe: all settings.
        backbone: its sizes and conventions.
        training: fingerprint of the training split.
        validation: fingerprint of the split that chooses the epoch.
        tokens: fingerprint of both as token ids, which another tokenizer would change.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: Recipe
    backbone: BackboneConfig
    training: str
    validation: str
    tokens: str


class Facts(BaseModel):
    """``state.json``: all of a state but its tensors.

    Attributes:
        epochs: finished.
        steps: taken.
        averaged: steps that the running mean of weights has taken in.
        generator: state of the numpy generator that draws batches.
        best: figures of the best epoch at the final density, if there was one.
        best_epoch: its number, from 1; 0 where there is none.
        history: a row for every finished epoch.
        seconds: that the run has taken so far.
    """

    model_config = ConfigDict(extra="forbid")

    state_version: Literal[1] = 1
    origin: Origin
    epochs: int = Field(ge=0)
    steps: int = Field(ge=0)
    averaged: int = Field(ge=0)
    generator: dict[str, Any]
    best: dict[str, Any] | None
    best_epoch: int = Field(ge=0)
    history: list[dict[str, Any]]
    seconds: float = Field(ge=0)


@dataclass(frozen=True, slots=True)
class State:
    """A run's state: facts, and tensors by name."""

    facts: Facts
    tensors: dict[str, Tensor]


def fingerprint(data: Dataset) -> str:
    """sha256 over a split's concepts, labels, texts, and what they should be answered with."""
    schema = data.schema
    names = [[concept.name, *concept.values] for concept in schema.concepts]
    digest = hashlib.sha256(json.dumps([names, schema.labels, data.texts]).encode())
    for array in (data.labels, data.concepts, data.label_votes, data.concept_votes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def token_fingerprint(*splits: Sequence[np.ndarray]) -> str:
    """sha256 over token ids and where texts end."""
    digest = hashlib.sha256()
    for ids in splits:
        digest.update(np.array([len(ids), *map(len, ids)], dtype=np.int64).tobytes())
        for row in ids:
            digest.update(row.astype(np.int64).tobytes())
    return digest.hexdigest()


def partial_folder(out: Path) -> Path:
    """Where the state of the run lies that will write a checkpoint to ``out``: beside it."""
    named = out if out.name and out.name != ".." else out.resolve()
    return named.with_name(f"{named.name}.partial")


def begun(folder: Path) -> bool:
    """Whether a folder holds the state of an unfinished run.

    Raises:
        TrainingError: there is something else.
    """
    if not folder.exists():
        return False
    if not (folder / STATE).is_file():
        raise TrainingError(
            f"{folder} is where the state of this run would be kept, but it holds something else; "
            "move it away, or name another --out."
        )
    return True


def check_start(folder: Path, finished: bool, resume: bool, restart: bool) -> bool:
    """Whether a run goes on from a state, given what the user asked for.

    Args:
        folder: for the state.
        finished: whether the checkpoint that the run will write exists.
        resume: asked to go on.
        restart: asked to begin anew.

    Raises:
        TrainingError: what was asked for would lose an unfinished run, or makes no sense; says what to do.
    """
    if resume and restart:
        raise TrainingError("Say --resume or --restart, not both.")
    if restart or not begun(folder):
        if resume and finished:
            raise TrainingError(
                f"There is no unfinished run in {folder}, and its checkpoint is finished; to train it anew, leave "
                "--resume out."
            )
        return False
    if not resume:
        facts = read_facts(folder)
        raise TrainingError(
            f"{folder} holds an unfinished run, at epoch {facts.epochs} of {facts.origin.recipe.epochs}; go on with "
            "--resume, or begin anew with --restart, which deletes it."
        )
    return True


def kept(folder: Path | None) -> str:
    """A sentence on what is left of a run that stopped, and how to go on."""
    if folder is None or not (folder / STATE).is_file():
        return "No epoch was finished, so nothing is kept."
    facts = read_facts(folder)
    return (
        f"The state after epoch {facts.epochs} of {facts.origin.recipe.epochs} is kept in {folder}; "
        "the same command with --resume goes on from there."
    )


def write(state: State, folder: Path) -> None:
    """Writes a state, replacing the one before; a crash leaves the old one or the new one."""
    sweep(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    with atomic_folder(folder) as new:
        save_file(tensors, new / TENSORS)
        (new / STATE).write_text(state.facts.model_dump_json(indent=1) + "\n", encoding="utf-8")


def remove(folder: Path) -> None:
    """Removes a state, and what a killed ``write`` left beside it."""
    sweep(folder)
    if (folder / STATE).is_file():
        shutil.rmtree(folder)


def read_facts(folder: Path) -> Facts:
    """Reads what a state says of itself.

    Raises:
        TrainingError: it can't be read, or is of another version.
    """
    path = folder / STATE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("state_version")
        if version == STATE_VERSION:
            return Facts.model_validate(content)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise TrainingError(f"{path} can't be read as a run's state ({reason}); begin anew with --restart.") from error
    raise TrainingError(
        f"{path} has state version {version!r}; this program goes on from version {STATE_VERSION}. Go on with the "
        "program that wrote it, or begin anew with --restart."
    )


def read(folder: Path, origin: Origin) -> State:
    """Reads a state that a run of the given origin may go on from.

    Raises:
        TrainingError: it can't be read, is of another version, or of a run of another origin; names what differs.
    """
    facts = read_facts(folder)
    different = differences(facts.origin, origin)
    if different:
        raise TrainingError(
            f"{folder} holds a run that differs from this one: {'; '.join(different)}. Go on with what it was begun "
            "with, or begin anew with --restart."
        )
    try:
        return State(facts, load_file(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder / TENSORS} can't be read ({error}); begin anew with --restart.") from error


def differences(then: Origin, now: Origin) -> list[str]:
    """What differs between two runs that matters to going on, each as a few words."""
    settings = [
        f"{name} was {getattr(then.recipe, name)!r} and is {getattr(now.recipe, name)!r}"
        for name in Recipe.model_fields
        if name not in FREE_SETTINGS and getattr(then.recipe, name) != getattr(now.recipe, name)
    ]
    if then.backbone != now.backbone and then.recipe.backbone == now.recipe.backbone:
        settings.append("the backbone has other sizes")
    splits = [
        f"the {name} split has other texts or labels"
        for name in ("training", "validation")
        if getattr(then, name) != getattr(now, name)
    ]
    if then.tokens != now.tokens and not settings and not splits:
        splits.append("the tokenizer makes other tokens of the texts")
    return settings + splits


def take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def named(prefix: str, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The opposite of ``take``."""
    return {f"{prefix}{name}": tensor for name, tensor in dict(tensors).items()}
