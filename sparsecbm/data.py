"""Labelled texts: CEBaB as published, or any CSV, JSONL or Parquet with a YAML that names its columns."""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsecbm.bundle import Concept
from sparsecbm.errors import DataError
from sparsecbm.rows import read_rows

SILENT = -1
"""Index of a label or a concept's value where nothing is said of it."""

CEBAB_HUB = "CEBaB/CEBaB"
_NO_MAJORITY = "no majority"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Schema:
    """What a data set asks for: its concepts with their values, and its labels."""

    name: str
    concepts: tuple[Concept, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One split.

    Attributes:
        schema: concepts and labels that the indices below point into.
        texts: the N texts.
        labels: [N] int64, index into ``schema.labels``; `SILENT` where a correction says nothing of it.
        concepts: [N, concepts] int64, index into each concept's values; `SILENT` likewise.
        label_votes: [N, labels] float32, share of the annotators that chose each label; one-hot where unknown, and
            all 0 where nothing is said.
        concept_votes: [N, concepts, values] float32, likewise, 0 at values that a concept lacks.
    """

    schema: Schema
    texts: tuple[str, ...]
    labels: np.ndarray
    concepts: np.ndarray
    label_votes: np.ndarray
    concept_votes: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def head(self, count: int) -> Dataset:
        """The first texts of the split."""
        return Dataset(
            self.schema,
            self.texts[:count],
            self.labels[:count],
            self.concepts[:count],
            self.label_votes[:count],
            self.concept_votes[:count],
        )

    def extended(self, other: Dataset) -> Dataset:
        """The split with the texts of another one of the same schema after its own."""
        return Dataset(
            self.schema,
            self.texts + other.texts,
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.concepts, other.concepts]),
            np.concatenate([self.label_votes, other.label_votes]),
            np.concatenate([self.concept_votes, other.concept_votes]),
        )


class ColumnSpec(BaseModel):
    """One column: where it is, which values it may take, and what other spellings mean."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    column: str
    values: list[str] = Field(min_length=2)
    aliases: dict[str, str] = {}
    missing: str | None = Field(default=None, description="Value that an empty cell means.")
    votes: str | None = Field(default=None, description="Column with a JSON object: how many annotators chose what.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"values must differ, got {self.values}")
        if self.missing is not None and self.missing not in self.values:
            raise ValueError(f"missing must be one of the values {self.values}, got {self.missing!r}")
        strange = sorted(set(self.aliases.values()) - set(self.values))
        if strange:
            raise ValueError(f"aliases must be of values {self.values}, got {strange}")
        return self

    def index(self, cell: Any, where: str) -> int:
        """Position of a cell's value in ``values``.

        Raises:
            DataError: the value isn't one of the declared ones.
        """
        text = "" if cell is None else str(cell).strip()
        text = self.aliases.get(text, text)
        if not text and self.missing is not None:
            text = self.missing
        if text not in self.values:
            raise DataError(
                f"{where}: column {self.column!r} holds {text!r}; allowed are {self.values}. Correct the file, "
                "declare the value, or give an alias for it."
            )
        return self.values.index(text)

    def shares(self, row: Row, index: int, where: str) -> np.ndarray:
        """[values] float32, each value's share of a row's votes.

        One-hot at ``index``, the cell's own value, where there are no votes or they elect another value.

        Raises:
            DataError: the votes are no JSON object of counts.
        """
        votes = row.get(self.votes) if self.votes is not None else None
        try:
            votes = _read_object(votes) if isinstance(votes, str) else votes or {}
            counts = [
                (self.aliases.get(value, value) or self.missing, float(count or 0))  # Parquet has nulls for no votes
                for value, count in votes.items()
            ]
            if not all(0 <= count < math.inf for _, count in counts):
                raise ValueError("a count is negative or not finite")
        except (AttributeError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise DataError(
                f'{where}: column {self.votes!r} must hold a JSON object of counts, such as {{"{self.values[0]}": 3}}.'
            ) from error
        shares = np.zeros(len(self.values), dtype=np.float32)
        for value, count in counts:
            if value in self.values:
                shares[self.values.index(value)] += count
        if shares[index] < max(shares.max(), 1e-6):
            shares[:] = 0
            shares[index] = 1
        return np.asarray(shares / shares.sum())


def _read_object(text: str) -> Any:
    """A JSON object, or a Python dictionary as Python prints it; nothing is an empty one."""
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text)


class TableSpec(BaseModel):
    """The YAML that describes a data set of one's own: its columns, and a file for every split."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    text: str
    label: ColumnSpec
    concepts: dict[str, ColumnSpec] = Field(min_length=1)
    drop_labels: list[str] = Field(default=[], description="Rows with these labels are left out.")
    files: dict[str, str] = Field(min_length=1)

    def as_schema(self) -> Schema:
        """The data set's schema."""
        concepts = tuple(Concept(name=name, values=spec.values) for name, spec in self.concepts.items())
        return Schema(self.name, concepts, tuple(self.label.values))


def read_spec(path: Path) -> TableSpec:
    """Reads a data set's YAML.

    Raises:
        DataError: the file is missing, isn't YAML, or breaks the format; says where.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no data description at {path}.") from error
    except OSError as error:
        raise DataError(f"{path} can't be read as a data description: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {error}") from error
    try:
        return TableSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise DataError(f"{path}, at {where}: {first['msg']}. docs/training.md shows the format.") from error


def build(spec: TableSpec, rows: Iterable[Row], source: str) -> Dataset:
    """Turns rows into a data set.

    Raises:
        DataError: a column is missing, a text is empty, a value isn't declared, or no row is left.
    """
    columns = [spec.text, spec.label.column, *(concept.column for concept in spec.concepts.values())]
    texts: list[str] = []
    labels: list[int] = []
    concepts: list[list[int]] = []
    label_votes: list[np.ndarray] = []
    concept_votes: list[list[np.ndarray]] = []
    width = max(len(concept.values) for concept in spec.concepts.values())
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: must be an object with columns, not {type(row).__name__}.")
        absent = [column for column in columns if column not in row]
        if absent:
            raise DataError(f"{where}: lacks the column(s) {absent}; it has {sorted(map(str, row))}.")
        if str(row[spec.label.column]).strip() in spec.drop_labels:
            continue
        text = row[spec.text]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: column {spec.text!r} must hold a text that isn't empty.")
        texts.append(text)
        labels.append(spec.label.index(row[spec.label.column], where))
        concepts.append([concept.index(row[concept.column], where) for concept in spec.concepts.values()])
        label_votes.append(spec.label.shares(row, labels[-1], where))
        shares = [
            concept.shares(row, at, where) for concept, at in zip(spec.concepts.values(), concepts[-1], strict=True)
        ]
        concept_votes.append([np.pad(share, (0, width - len(share))) for share in shares])
    if not texts:
        raise DataError(f"{source} has no usable row.")
    return Dataset(
        spec.as_schema(),
        tuple(texts),
        np.array(labels, dtype=np.int64),
        np.array(concepts, dtype=np.int64),
        np.stack(label_votes),
        np.array(concept_votes, dtype=np.float32),
    )


# CEBaB's columns (Abraham et al. 2022); every way of saying nothing about a concept is *unknown*.
CEBAB = TableSpec(
    name="restaurant-reviews",
    text="description",
    label=ColumnSpec(column="review_majority", values=["1", "2", "3", "4", "5"], votes="review_label_distribution"),
    drop_labels=[_NO_MAJORITY],
    concepts={
        name: ColumnSpec(
            column=f"{name}_aspect_majority",
            values=["Negative", "Positive", "unknown"],
            aliases={_NO_MAJORITY: "unknown"},
            missing="unknown",
            votes=f"{name}_aspect_label_distribution",
        )
        for name in ("food", "ambiance", "service", "noise")
    },
    files={split: f"{split}.json" for split in ("train_exclusive", "train_inclusive", "dev", "test")},
)


def _cebab_file(folder: Path, split: str) -> Path:
    for ending in ("", ".gz"):
        path = folder / f"{split}.json{ending}"
        if path.is_file():
            return path
    found = sorted(path.name for path in folder.glob("*.json*")) if folder.is_dir() else []
    raise DataError(f"{folder} has no {split}.json or {split}.json.gz; it has {found or 'no JSON file'}.")


def _cebab_hub(split: str) -> Iterator[Row]:
    from datasets import load_dataset

    name = "validation" if split == "dev" else split
    try:
        rows = load_dataset(CEBAB_HUB, split=name)
    except ValueError as error:
        raise DataError(f"{CEBAB_HUB} has no split {split!r}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{CEBAB_HUB} can't be read from the Hugging Face hub ({type(error).__name__}). "
            "With the files on disk, say --data cebab:FOLDER."
        ) from error
    yield from rows


def cebab_rows(source: str, split: str) -> tuple[Iterable[Row], str]:
    """Rows of a split of CEBaB with all their columns, and where they are from.

    Args:
        source: ``cebab`` or ``cebab:FOLDER``.
        split: one of CEBaB's.

    Raises:
        DataError: the source isn't CEBaB, or can't be read.
    """
    if source == "cebab":
        return _cebab_hub(split), f"{CEBAB_HUB} {split}"
    if not source.startswith("cebab:"):
        raise DataError(f"{source!r} is not CEBaB; 'cebab' or 'cebab:FOLDER' are.")
    path = str(_cebab_file(Path(source.removeprefix("cebab:")).expanduser(), split))
    return read_rows(path), path


def load(source: str, split: str) -> Dataset:
    """Loads one split of a data set.

    Args:
        source: ``cebab`` (from the Hugging Face hub), ``cebab:FOLDER`` (its JSON files, plain or gzip),
            or the path of a YAML that describes a data set of one's own.
        split: ``train_exclusive``, ``train_inclusive``, ``dev``, ``test``, or a name under ``files`` in the YAML.

    Raises:
        DataError: says what is wrong with the data and where.
    """
    if source == "cebab" or source.startswith("cebab:"):
        return build(CEBAB, *cebab_rows(source, split))
    path = Path(source).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise DataError(f"--data must be 'cebab', 'cebab:FOLDER' or a .yaml that describes the data, not {source!r}.")
    spec = read_spec(path)
    if split not in spec.files:
        raise DataError(f"{path} names no file for split {split!r}; it has {sorted(spec.files)}.")
    file = spec.files[split]
    location = file if "://" in file or Path(file).is_absolute() else str(path.parent / file)
    return build(spec, read_rows(location), location)


def check_varied(data: Dataset, split: str) -> list[str]:
    """What a training split can't teach.

    Returns:
        A sentence for every concept, and the label, of which some but not all values occur.

    Raises:
        DataError: a concept, or the label, has the same value everywhere; names all such.
    """
    columns = [(f"concept {concept.name}", concept.values) for concept in data.schema.concepts]
    columns.append(("the label", list(data.schema.labels)))
    constant, gaps = [], []
    for (name, values), indices in zip(columns, [*data.concepts.T, data.labels], strict=True):
        occurring = set(indices.tolist()) - {SILENT}
        if len(occurring) == 1:
            constant.append(f"{name} is always {values[occurring.pop()]!r}")
        elif len(occurring) < len(values):
            absent = [value for index, value in enumerate(values) if index not in occurring]
            gaps.append(f"In split {split!r}, {name} is never {' or '.join(map(repr, absent))}.")
    if constant:
        raise DataError(
            f"Nothing can be learned in split {split!r} where {', '.join(constant)}: give texts with other values, or "
            "leave the concept out of the description of the data."
        )
    return gaps


def value_counts(data: Dataset) -> dict[str, Counter[str]]:
    """How often each value of each concept occurs."""
    return {
        concept.name: Counter(concept.values[index] for index in data.concepts[:, position])
        for position, concept in enumerate(data.schema.concepts)
    }
