"""Labelled texts: CEBaB as published, or any CSV, JSONL or Parquet with a YAML that names its columns."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsecbm.bundle import Concept
from sparsecbm.errors import DataError

CEBAB_HUB = "CEBaB/CEBaB"
_NO_MAJORITY = "no majority"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

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
        labels: [N] int64, index into ``schema.labels``.
        concepts: [N, concepts] int64, index into each concept's values.
    """

    schema: Schema
    texts: tuple[str, ...]
    labels: np.ndarray
    concepts: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


class ColumnSpec(BaseModel):
    """One column: where it is, which values it may take, and what other spellings mean."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    column: str
    values: list[str] = Field(min_length=2)
    aliases: dict[str, str] = {}
    missing: str | None = Field(default=None, description="Value that an empty cell means.")

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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {error}") from error
    try:
        return TableSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise DataError(f"{path}, at {where}: {first['msg']}. docs/training.md shows the format.") from error


def read_rows(location: str) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, TSV, JSONL, JSON or Parquet file at a path or URL, compressed or not.

    Raises:
        DataError: no such file, an unknown ending, or a file that isn't what its ending says.
    """
    name = location.lower()
    for ending in _COMPRESSIONS:
        name = name.removesuffix(ending)
    suffix = Path(name).suffix
    try:
        with fsspec.open(location, "rb", compression="infer") as file:
            if suffix in _DELIMITERS:
                text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
                yield from csv.DictReader(text, delimiter=_DELIMITERS[suffix], strict=True)
            elif suffix == ".jsonl":
                for line in file:
                    if line.strip():
                        yield json.loads(line)
            elif suffix == ".json":
                yield from json.load(file)
            elif suffix in (".parquet", ".pq"):
                import pyarrow.parquet as parquet

                yield from parquet.read_table(io.BytesIO(file.read())).to_pylist()
            else:
                raise DataError(f"{location}: can't tell its format; name it .csv, .tsv, .jsonl, .json or .parquet.")
    except FileNotFoundError as error:
        raise DataError(f"There is no data file at {location}.") from error
    except (ValueError, csv.Error, OSError, EOFError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{location} can't be read as {suffix or 'data'}: {error}") from error


def build(spec: TableSpec, rows: Iterable[Row], source: str) -> Dataset:
    """Turns rows into a data set.

    Raises:
        DataError: a column is missing, a text is empty, a value isn't declared, or no row is left.
    """
    columns = [spec.text, spec.label.column, *(concept.column for concept in spec.concepts.values())]
    texts: list[str] = []
    labels: list[int] = []
    concepts: list[list[int]] = []
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
    if not texts:
        raise DataError(f"{source} has no usable row.")
    return Dataset(spec.as_schema(), tuple(texts), np.array(labels, dtype=np.int64), np.array(concepts, dtype=np.int64))


# CEBaB's columns (Abraham et al. 2022); every way of saying nothing about a concept is *unknown*.
CEBAB = TableSpec(
    name="restaurant-reviews",
    text="description",
    label=ColumnSpec(column="review_majority", values=["1", "2", "3", "4", "5"]),
    drop_labels=[_NO_MAJORITY],
    concepts={
        name: ColumnSpec(
            column=f"{name}_aspect_majority",
            values=["Negative", "Positive", "unknown"],
            aliases={_NO_MAJORITY: "unknown"},
            missing="unknown",
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


def load(source: str, split: str) -> Dataset:
    """Loads one split of a data set.

    Args:
        source: ``cebab`` (from the Hugging Face hub), ``cebab:FOLDER`` (its JSON files, plain or gzip),
            or the path of a YAML that describes a data set of one's own.
        split: ``train_exclusive``, ``train_inclusive``, ``dev``, ``test``, or a name under ``files`` in the YAML.

    Raises:
        DataError: says what is wrong with the data and where.
    """
    if source == "cebab":
        return build(CEBAB, _cebab_hub(split), f"{CEBAB_HUB} {split}")
    if source.startswith("cebab:"):
        path = _cebab_file(Path(source.removeprefix("cebab:")).expanduser(), split)
        return build(CEBAB, read_rows(str(path)), str(path))
    path = Path(source).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise DataError(f"--data must be 'cebab', 'cebab:FOLDER' or a .yaml that describes the data, not {source!r}.")
    spec = read_spec(path)
    if split not in spec.files:
        raise DataError(f"{path} names no file for split {split!r}; it has {sorted(spec.files)}.")
    file = spec.files[split]
    location = file if "://" in file or Path(file).is_absolute() else str(path.parent / file)
    return build(spec, read_rows(location), location)


def value_counts(data: Dataset) -> dict[str, Counter[str]]:
    """How often each value of each concept occurs."""
    return {
        concept.name: Counter(concept.values[index] for index in data.concepts[:, position])
        for position, concept in enumerate(data.schema.concepts)
    }
