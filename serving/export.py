"""Corrections as training data: by text, what humans said of its concepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.ledger import Correction, Ledger
from sparsecbm.errors import DataError
from sparsecbm.rows import write_rows

TEXT, LABEL = "text", "label"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        texts: rows of the file.
        corrections: interventions that they come from.
        left_out: interventions that could not be written, since of their texts only the hashes are kept.
    """

    texts: int
    corrections: int
    left_out: int


@dataclass(slots=True)
class _Said:
    """All that was said of one text; the newest value of each concept counts."""

    text: str | None = None
    concepts: dict[str, str] = field(default_factory=dict)
    corrections: int = 0


def export(ledger: Ledger, model: str | None, location: str) -> Exported:
    """Writes a row for every corrected text: the text, an empty label, and a column for every corrected concept.

    A correction says nothing of the label, nor of the concepts that it does not name: those cells are empty.

    Args:
        ledger: with the corrections.
        model: name of the model that was corrected; None where the ledger knows one alone.
        location: path or URL of a CSV, TSV, JSONL, JSON or Parquet file.

    Raises:
        DataError: there is nothing to write, or the file can't be written.
        UnavailableError: the ledger can't be read.
    """
    said = _by_text(ledger.corrections(_chosen(model, ledger.models())))
    kept = [one for one in said if one.text is not None]
    left_out = sum(one.corrections for one in said if one.text is None)
    if not kept:
        raise DataError(
            f"None of the {left_out} corrections can be exported: of their texts only hashes are kept. Serve with "
            "--store-texts to keep the next ones."
        )
    concepts = sorted({concept for one in kept for concept in one.concepts})
    if {TEXT, LABEL} & set(concepts):
        raise DataError(f"A concept is named {TEXT!r} or {LABEL!r}, which is the name of another column of the export.")
    rows = [{TEXT: str(one.text), **one.concepts} for one in kept]
    write_rows(location, [TEXT, LABEL, *concepts], rows)
    return Exported(len(kept), sum(one.corrections for one in kept), left_out)


def _chosen(model: str | None, models: list[str]) -> str:
    if not models:
        raise DataError("The ledger holds no corrections.")
    if model is None and len(models) > 1:
        raise DataError(f"The ledger holds corrections of {', '.join(models)}: choose one with --model.")
    if model is not None and model not in models:
        raise DataError(f"The ledger holds no corrections of {model}; it has those of {', '.join(models)}.")
    return model or models[0]


def _by_text(corrections: Iterable[Correction]) -> list[_Said]:
    said: dict[str, _Said] = {}
    for correction in corrections:
        one = said.setdefault(correction.text_sha256, _Said())
        one.text = correction.text if correction.text is not None else one.text
        one.concepts.update(correction.concepts)
        one.corrections += 1
    return list(said.values())
