"""Corrections are learned from as far as they say something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsecbm.data import Schema
from sparsecbm.errors import DataError
from sparsecbm.feedback import Feedback, read_feedback
from sparsecbm.rows import write_rows
from tests.sparsecbm.conftest import CONCEPTS, LABELS

SCHEMA = Schema("tiny", CONCEPTS, LABELS)


def read(folder: Path, *rows: dict[str, str], columns: str = "text label food noise", held_out: str = "") -> Feedback:
    location = str(folder / "corrections.csv")
    write_rows(location, columns.split(), rows)
    return read_feedback(location, SCHEMA, {held_out})


def test_corrected_concept_is_known_and_all_else_is_not(tmp_path: Path) -> None:
    data = read(tmp_path, {"text": "a", "noise": "yes"}).data
    assert data.texts == ("a",)
    assert data.concepts.tolist() == [[-1, 1]] and data.labels.tolist() == [-1]
    assert data.concept_votes.tolist() == [[[0, 0, 0], [0, 1, 0]]] and data.label_votes.tolist() == [[0, 0, 0]]


def test_label_that_somebody_filled_in_is_known(tmp_path: Path) -> None:
    data = read(tmp_path, {"text": "a", "label": "3"}).data
    assert data.labels.tolist() == [2] and data.label_votes.tolist() == [[0, 0, 1]]


def test_file_needs_neither_a_label_nor_every_concept(tmp_path: Path) -> None:
    data = read(tmp_path, {"text": "a", "food": "unknown"}, columns="text food").data
    assert data.concepts.tolist() == [[2, -1]]


def test_text_that_is_held_out_is_left_out_and_counted(tmp_path: Path) -> None:
    found = read(tmp_path, {"text": "a", "food": "unknown"}, {"text": "b", "food": "unknown"}, held_out="a")
    assert (found.data.texts, found.held_out) == (("b",), 1)


def test_text_of_which_nothing_is_said_is_left_out_and_counted(tmp_path: Path) -> None:
    found = read(tmp_path, {"text": "a"}, {"text": "b", "food": "unknown"})
    assert (found.data.texts, found.silent) == (("b",), 1)


def test_file_that_says_nothing_gives_an_empty_split(tmp_path: Path) -> None:
    data = read(tmp_path, {"text": "a"}).data
    assert len(data) == 0
    assert data.concepts.shape == (0, 2) and data.concept_votes.shape == (0, 2, 3) and data.label_votes.shape == (0, 3)


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"text": "a", "food": "sour"}, "text food", "row 1: column 'food' holds 'sour'; allowed are .*'Positive'"),
        ({"text": "a", "label": "9", "food": ""}, "text label food", "column 'label' holds '9'"),
        ({"text": " ", "food": "unknown"}, "text food", "must hold a text that isn't empty"),
        ({"text": "a", "taste": "sour"}, "text taste", r"at least one of the concepts' \['food', 'noise'\]"),
        ({"review": "a", "food": "unknown"}, "review food", "needs a column 'text'"),
    ],
)
def test_mistake_is_named_with_its_row(tmp_path: Path, row: dict[str, str], columns: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, row, columns=columns)


def test_row_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corrections.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="row 1: must be an object"):
        read_feedback(str(tmp_path / "corrections.jsonl"), SCHEMA, ())


def test_split_is_extended_by_them(tmp_path: Path) -> None:
    first = read(tmp_path, {"text": "a", "noise": "yes"}).data
    whole = first.extended(read(tmp_path, {"text": "b", "food": "Positive", "label": "1"}).data)
    assert whole.texts == ("a", "b")
    assert whole.concepts.tolist() == [[-1, 1], [1, -1]] and whole.labels.tolist() == [-1, 0]
    assert whole.label_votes.dtype == whole.concept_votes.dtype == np.float32
