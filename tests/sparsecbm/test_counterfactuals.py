"""Pairs of rows made up in CEBaB's form, and errors worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsecbm import data as datasets
from sparsecbm.counterfactuals import Counterfactuals, effects, icace_errors, load_counterfactuals
from sparsecbm.errors import DataError
from sparsecbm.evaluation import Outputs
from sparsecbm.model import SparseCBM


def row(original: str, edit: str | None, food: str, noise: str = "", review: str = "3") -> dict[str, Any]:
    return {
        "original_id": original,
        "is_original": edit is None,
        "edit_type": edit,
        "description": "text",
        "review_majority": review,
        "food_aspect_majority": food,
        "ambiance_aspect_majority": "",
        "service_aspect_majority": "unknown",
        "noise_aspect_majority": noise,
    }


ROWS = [
    row("a", None, "Negative"),
    row("b", None, "Positive", review="no majority"),  # left out, so that positions aren't row numbers
    row("a", "food", "Positive"),
    row("a", "food", "unknown"),
    row("a", "noise", "Negative", "Positive"),
    row("a", "food", "Negative"),  # an edit that changed nothing
    row("b", "food", "Negative"),
    row("b", "food", "Positive"),
]


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "dev.json").write_text(json.dumps(rows))
    return f"cebab:{folder}"


@pytest.fixture
def pairs(tmp_path: Path) -> Counterfactuals:
    source = write(tmp_path, ROWS)
    return load_counterfactuals(source, "dev", datasets.load(source, "dev"))


def test_pairs_are_versions_that_differ_in_the_edited_concept(pairs: Counterfactuals) -> None:
    food, noise = 0, 3
    found = set(zip(pairs.base.tolist(), pairs.edited.tolist(), pairs.concept.tolist(), strict=True))
    one_way = {(0, 1, food), (0, 2, food), (0, 3, noise), (1, 2, food), (1, 4, food), (2, 4, food), (5, 6, food)}
    assert found == one_way | {(edited, base, concept) for base, edited, concept in one_way}


def test_pairs_know_whether_they_start_at_the_original(pairs: Counterfactuals) -> None:
    assert set(pairs.base[pairs.from_original].tolist()) == {0}
    assert pairs.from_original.sum() == 3


def test_versions_of_one_original_are_one_group(pairs: Counterfactuals) -> None:
    assert pairs.groups[:5].tolist() == [pairs.groups[0]] * 5
    assert pairs.groups[5] == pairs.groups[6] != pairs.groups[0]


def test_the_first_texts_have_the_pairs_among_them(pairs: Counterfactuals) -> None:
    first = pairs.head(2)
    assert sorted(zip(first.base.tolist(), first.edited.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert len(first.groups) == 2


def test_other_data_has_no_pairs(tmp_path: Path) -> None:
    data = datasets.load(write(tmp_path, ROWS), "dev")
    with pytest.raises(DataError, match=r"known of CEBaB alone .*, not of reviews\.yaml"):
        load_counterfactuals("reviews.yaml", "dev", data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original_id": None}, "row 3: lacks the column\\(s\\) \\['original_id'\\]"),
        ({"edit_type": "price"}, "row 3: column 'edit_type' holds 'price'; allowed are \\['food'"),
    ],
)
def test_rows_without_their_history_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [dict(one) for one in ROWS]
    rows[2] |= change
    rows[2] = {key: value for key, value in rows[2].items() if value is not None}
    source = write(tmp_path, rows)
    with pytest.raises(DataError, match=message):
        load_counterfactuals(source, "dev", datasets.load(source, "dev"))


def test_rows_that_are_not_those_loaded_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path, ROWS)
    data = datasets.load(source, "dev")
    write(tmp_path, ROWS[:4])
    with pytest.raises(DataError, match="has 3 usable rows, but 7 were loaded"):
        load_counterfactuals(source, "dev", data)


def test_errors_are_worked_out_by_hand() -> None:
    observed = np.array([[0.3, -0.3], [0.0, 0.0], [0.4, 0.0], [0.0, 0.0]])
    predicted = np.array([[-0.3, 0.3], [0.0, 0.0], [0.0, 0.0], [0.0, 0.5]])
    found = icace_errors(observed, predicted)
    assert found["l2"] == pytest.approx([0.6 * 2**0.5, 0, 0.4, 0.5])
    assert found["cosine"] == pytest.approx([2, 0, 1, 1])
    assert found["norm"] == pytest.approx([0, 0, 0.4, 0.5])


def test_effects_are_what_setting_the_concept_does(model: SparseCBM) -> None:
    """The label is the first concept's value, of which the model is sure."""
    with torch.no_grad():
        model.head_weight.zero_()
        model.head_bias.zero_()
        model.head_weight[:, 0, :3] = torch.eye(3)
    values = torch.tensor([[0, 0], [2, 0]])
    logits = torch.where(torch.eye(3)[values] > 0, 0.0, -torch.inf)
    vectors = torch.zeros(2, 2, 3, 5)
    vectors[..., :3] = 50 * torch.eye(3)
    one = np.array([0])
    pairs = Counterfactuals(one, one + 1, one, one == 0, np.zeros(2, dtype=np.int64))
    found = effects(model, Outputs(logits, vectors), np.array([[1, 0], [2, 0]]), pairs)
    assert np.round(found["observed"], 6).tolist() == [[-1, 0, 1]]
    assert np.round(found["intervention"], 6).tolist() == [[-1, 0, 1]]
    assert np.round(found["contrast"], 6).tolist() == [[0, -1, 1]]  # the annotators' old value, not the model's
    assert found["zero"].tolist() == [[0, 0, 0]]
    assert abs(found["random"].sum()) < 1e-9 and np.abs(found["random"]).max() <= 1


def test_the_published_data_has_pairs() -> None:
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("SPARSECBM_DATA") or root / "../shared/data") / "cebab"
    if not list(folder.glob("*.json*")):
        pytest.skip("no published CEBaB: neither SPARSECBM_DATA nor ../shared/data has cebab/*.json")
    cebab = f"cebab:{folder}"
    pairs = load_counterfactuals(cebab, "dev", datasets.load(cebab, "dev"))
    assert len(pairs.groups) == 1673 and pairs.groups.max() == 271
    assert pairs.from_original.sum() == 1299
