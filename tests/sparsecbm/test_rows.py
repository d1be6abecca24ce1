"""Rows come back from every format as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecbm.errors import DataError
from sparsecbm.rows import read_rows, write_rows

ROWS = [{"text": 'Das "Café" 🍝,\r\n\twas; rude', "food": "Positive"}, {"text": " \\ ", "noise": "no"}]
ENDINGS = ("csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "jsonl.xz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_written_rows_are_read_back(tmp_path: Path, ending: str) -> None:
    location = str(tmp_path / f"rows.{ending}")
    write_rows(location, ["text", "food", "noise"], ROWS)
    read = [{name: cell for name, cell in row.items() if cell} for row in read_rows(location)]
    assert read == ROWS


@pytest.mark.parametrize("ending", ENDINGS)
def test_column_that_no_row_has_is_written(tmp_path: Path, ending: str) -> None:
    location = str(tmp_path / f"rows.{ending}")
    write_rows(location, ["text", "label"], [{"text": "a"}])
    [row] = read_rows(location)
    assert list(row) == ["text", "label"] and not row["label"]


def test_unknown_ending_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"name it \.csv"):
        write_rows(str(tmp_path / "rows.txt"), ["text"], [])
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(DataError, match="can't be written"):
        write_rows(str(tmp_path / "rows.csv"), ["text"], [])
