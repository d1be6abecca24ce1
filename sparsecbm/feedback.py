"""Corrections of a running model as training data: texts of which some concepts are known, and most often no label.

The file is one that ``sparsecbm correct --export`` writes: a column with the text, one by the name of each corrected
concept, and one for the label, where somebody knows it. An empty cell says nothing, and adds nothing to the loss.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsecbm.data import SILENT, Dataset, Schema
from sparsecbm.errors import DataError
from sparsecbm.rows import read_rows

TEXT, LABEL = "text", "label"


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a file of corrections gives to learn from.

    Attributes:
        data: the texts, with `SILENT` where nothing is said.
        held_out: how many were left out, since their texts are held out of training.
        silent: how many were left out, since they say nothing of these concepts and labels.
    """

    data: Dataset
    held_out: int
    silent: int


def read_feedback(location: str, schema: Schema, held_out: Collection[str]) -> Feedback:
    """Reads corrections.

    Args:
        location: CSV, TSV, JSONL, JSON or Parquet file.
        schema: of the data that they are learned with.
        held_out: texts that must not be learned from, such as the validation split's.

    Raises:
        DataError: the file can't be read, has no column of any of the concepts, an empty text, or another value than a
            concept's.
    """
    columns = [(concept.name, concept.values) for concept in schema.concepts] + [(LABEL, schema.labels)]
    texts: list[str] = []
    said: list[list[int]] = []
    left_out = silent = 0
    apart = frozenset(held_out)
    for number, row in enumerate(read_rows(location), start=1):
        where = f"{location}, row {number}"
        _check_columns(row, schema, where)
        text = row[TEXT]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: column {TEXT!r} must hold a text that isn't empty.")
        indices = [_index(row.get(name), name, values, where) for name, values in columns]
        if text in apart:
            left_out += 1
        elif all(index == SILENT for index in indices):
            silent += 1
        else:
            texts.append(text)
            said.append(indices)
    found = np.array(said, dtype=np.int64).reshape(len(said), len(columns))
    concepts, labels = found[:, :-1], found[:, -1]
    width = max(len(concept.values) for concept in schema.concepts)
    data = Dataset(
        schema, tuple(texts), labels, concepts, _one_hot(labels, len(schema.labels)), _one_hot(concepts, width)
    )
    return Feedback(data, left_out, silent)


def _check_columns(row: Any, schema: Schema, where: str) -> None:
    names = [concept.name for concept in schema.concepts]
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object with columns, not {type(row).__name__}.")
    if TEXT not in row or not any(name in row for name in names):
        raise DataError(
            f"{where}: needs a column {TEXT!r} and at least one of the concepts' {names}; it has "
            f"{sorted(map(str, row))}. 'sparsecbm correct --export' writes such files."
        )


def _index(cell: Any, column: str, values: Sequence[str], where: str) -> int:
    said = "" if cell is None else str(cell).strip()
    if not said:
        return SILENT
    if said not in values:
        raise DataError(
            f"{where}: column {column!r} holds {said!r}; allowed are {list(values)}, or nothing where nothing is known."
        )
    return list(values).index(said)


def _one_hot(indices: np.ndarray, values: int) -> np.ndarray:
    """[.., values] float32; all 0 where nothing is said."""
    return np.asarray(np.eye(values, dtype=np.float32)[indices] * (indices != SILENT)[..., None])
