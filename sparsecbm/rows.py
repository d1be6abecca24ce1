"""Rows of files: CSV, TSV, JSONL, JSON and Parquet, at a path or an fsspec URL, compressed or not."""

from __future__ import annotations

import csv
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec

from sparsecbm.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# What the readers raise over damaged files; ArrowInvalid and UnicodeDecodeError are ValueErrors.
_UNREADABLE = (ValueError, csv.Error, OSError, EOFError, zlib.error, lzma.LZMAError)


def read_rows(location: str) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, TSV, JSONL, JSON or Parquet file at a path or URL, compressed or not.

    Raises:
        DataError: no such file, an unknown ending, or a file that isn't what its ending says.
    """
    suffix = _suffix(location)
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
                rows = json.load(file)
                if not isinstance(rows, list):
                    raise DataError(f"{location}: must hold a list of objects, not {type(rows).__name__}.")
                yield from rows
            elif suffix in _PARQUET:
                import pyarrow.parquet as parquet

                yield from parquet.read_table(io.BytesIO(file.read())).to_pylist()
            else:
                raise _unknown(location)
    except FileNotFoundError as error:
        raise DataError(f"There is no data file at {location}.") from error
    except _UNREADABLE as error:
        raise DataError(f"{location} can't be read as {suffix or 'data'}: {error}") from error


def write_rows(location: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Writes rows of texts in the format that a file's name asks for.

    Args:
        location: path or URL.
        columns: names of all columns, in their order.
        rows: column to text; a column that a row lacks is empty (CSV, TSV) or null.

    Raises:
        DataError: an unknown ending, or a file that can't be written.
    """
    content = _encode(location, columns, rows)
    try:
        with fsspec.open(location, "wb", compression="infer") as file:
            file.write(content)
    except OSError as error:
        raise DataError(f"{location} can't be written: {error}") from error


def _encode(location: str, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bytes:
    suffix = _suffix(location)
    if suffix in _DELIMITERS:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, delimiter=_DELIMITERS[suffix])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    whole = [{column: row.get(column) for column in columns} for row in rows]
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in whole).encode()
    if suffix == ".json":
        return json.dumps(whole, ensure_ascii=False).encode()
    if suffix in _PARQUET:
        import pyarrow
        import pyarrow.parquet as parquet

        buffer = io.BytesIO()
        schema = pyarrow.schema([(column, pyarrow.string()) for column in columns])
        parquet.write_table(pyarrow.Table.from_pylist(whole, schema), buffer)
        return buffer.getvalue()
    raise _unknown(location)


def _suffix(location: str) -> str:
    name = location.lower()
    for ending in _COMPRESSIONS:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _unknown(location: str) -> DataError:
    return DataError(f"{location}: can't tell its format; name it .csv, .tsv, .jsonl, .json or .parquet.")
