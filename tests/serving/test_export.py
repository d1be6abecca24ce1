"""Corrections leave the ledger as training data, by the program itself, and training takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.export import Exported, export
from serving.ledger import Ledger, Origin
from sparsecbm.bundle import Concept
from sparsecbm.data import Schema
from sparsecbm.errors import DataError
from sparsecbm.feedback import read_feedback
from sparsecbm.rows import read_rows
from tests.program import sparsecbm
from tests.serving.entries import ORIGIN, entry

OTHER = Origin("anonymous", "other", "0", "0")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "corrections.csv")


def test_row_has_the_text_an_empty_label_and_the_corrected_concepts(ledger: Ledger, target: str) -> None:
    ledger.record([entry("rude", service="Negative"), entry("loud", noise="Negative", food="Positive")], ORIGIN)
    assert export(ledger, None, target) == Exported(2, 2, 0)
    assert list(read_rows(target)) == [
        {"text": "rude", "label": "", "food": "", "noise": "", "service": "Negative"},
        {"text": "loud", "label": "", "food": "Positive", "noise": "Negative", "service": ""},
    ]


def test_text_corrected_again_has_one_row_with_the_newest_values(ledger: Ledger, target: str) -> None:
    ledger.record([entry("a", food="Negative", noise="Negative"), entry("a", food="Positive")], ORIGIN)
    assert export(ledger, None, target) == Exported(1, 2, 0)
    [row] = read_rows(target)
    assert (row["food"], row["noise"]) == ("Positive", "Negative")


def test_corrections_of_texts_not_kept_are_counted(ledger: Ledger, hashing: Ledger, target: str) -> None:
    ledger.record([entry("kept")], ORIGIN)
    hashing.record([entry("hashed"), entry("hashed")], ORIGIN)
    assert export(ledger, None, target) == Exported(1, 1, 2)
    assert [row["text"] for row in read_rows(target)] == ["kept"]


def test_text_kept_once_gives_its_hashes_a_text(ledger: Ledger, hashing: Ledger, target: str) -> None:
    ledger.record([entry("a", food="Negative")], ORIGIN)
    hashing.record([entry("a", noise="Negative")], ORIGIN)
    assert export(ledger, None, target) == Exported(1, 2, 0)


def test_model_is_chosen_where_there_are_several(ledger: Ledger, target: str) -> None:
    ledger.record([entry("mine")], ORIGIN)
    ledger.record([entry("theirs")], OTHER)
    with pytest.raises(DataError, match="corrections of other, tiny: choose one with --model"):
        export(ledger, None, target)
    export(ledger, "other", target)
    assert [row["text"] for row in read_rows(target)] == ["theirs"]


def test_model_that_was_never_corrected_is_named_with_those_that_were(ledger: Ledger, target: str) -> None:
    ledger.record([entry()], ORIGIN)
    with pytest.raises(DataError, match="no corrections of other; it has those of tiny"):
        export(ledger, "other", target)


def test_empty_ledger_has_nothing_to_export(ledger: Ledger, target: str) -> None:
    with pytest.raises(DataError, match="holds no corrections"):
        export(ledger, None, target)


def test_ledger_of_hashes_alone_has_nothing_to_export(hashing: Ledger, target: str) -> None:
    hashing.record([entry(), entry()], ORIGIN)
    with pytest.raises(DataError, match="None of the 2 corrections"):
        export(hashing, None, target)


@pytest.mark.parametrize("concept", ["text", "label"])
def test_concept_named_like_another_column_is_refused(ledger: Ledger, target: str, concept: str) -> None:
    given = entry("a")
    given.outcome.corrections = {concept: "Positive"}
    ledger.record([given], ORIGIN)
    with pytest.raises(DataError, match="name of another column"):
        export(ledger, None, target)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_training_takes_what_was_exported(ledger: Ledger, tmp_path: Path, ending: str) -> None:
    ledger.record([entry("Das Café 🍝,\nrude", service="Negative")], ORIGIN)
    target = str(tmp_path / f"corrections.{ending}")
    export(ledger, None, target)
    concepts = tuple(Concept(name=name, values=["Negative", "Positive"]) for name in ("food", "service"))
    data = read_feedback(target, Schema("tiny", concepts, ("1", "2")), ()).data
    assert (data.texts, data.concepts.tolist(), data.labels.tolist()) == (("Das Café 🍝,\nrude",), [[-1, 0]], [-1])


def test_program_exports_and_says_what(ledger: Ledger, hashing: Ledger, ledger_url: str, target: str) -> None:
    ledger.record([entry("kept")], ORIGIN)
    hashing.record([entry("hashed")], ORIGIN)
    ran = sparsecbm("correct", "--export", target, "--ledger", ledger_url)
    assert ran.code == 0, ran.err
    assert ran.out == f"{target}: 1 texts, of 1 corrections\n"
    assert ran.err.startswith("1 more corrections are left out: of their texts only hashes are kept")


def test_program_prints_json(ledger: Ledger, ledger_url: str, target: str) -> None:
    ledger.record([entry()], ORIGIN)
    ran = sparsecbm("correct", "--export", target, "--ledger", ledger_url, "--json")
    assert json.loads(ran.out) == {"file": target, "texts": 1, "corrections": 1, "left_out": 0}


def test_program_makes_no_ledger_where_there_is_none(tmp_path: Path, target: str) -> None:
    ran = sparsecbm("correct", "--export", target, "--state-dir", str(tmp_path / "nowhere"))
    assert ran.code == 2
    assert ran.err.startswith(f"error: There is no ledger at {tmp_path / 'nowhere/ledger.db'}")
    assert not (tmp_path / "nowhere").exists()


def test_program_says_why_a_database_can_not_be_read(target: str) -> None:
    ran = sparsecbm("correct", "--export", target, "--ledger", "postgresql://user:secret@127.0.0.1:1/ledger")
    assert ran.code == 2
    assert ran.err.startswith("error: The ledger can't be read: ") and "refused" in ran.err
    assert "secret" not in ran.err
