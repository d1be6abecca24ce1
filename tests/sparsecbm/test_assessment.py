"""The sections of a report on a tiny checkpoint."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsecbm import checkpoint as checkpoints
from sparsecbm import data as datasets
from sparsecbm.assessment import Subject, accuracy, assess, calibration, leakage, mask_edits, masks, read
from sparsecbm.counterfactuals import Counterfactuals
from sparsecbm.evaluation import judge


@pytest.fixture(scope="module")
def subject(checkpoint: Path, reviews: Path) -> Subject:
    return read(checkpoints.load(checkpoint), datasets.load(str(reviews), "dev"))


def test_special_tokens_are_known(subject: Subject) -> None:
    assert {int(row[at]) for row in subject.ids for at in (0, -1)} <= set(subject.special)


def test_words_are_not_special(subject: Subject) -> None:
    assert len(set(subject.special)) <= 4


def test_accuracy_holds_the_plain_figures(subject: Subject) -> None:
    plain, found = judge(subject.model, subject.data, subject.output), accuracy(subject)
    for name, figures in found["concepts"].items():
        for key in ("accuracy", "macro_f1", "one_vs_rest_f1"):
            assert figures[key]["value"] == plain["concepts"][name][key]
    assert found["mistaken_share"] == pytest.approx(1 - plain["concept"]["accuracy"])


def test_calibration_holds_the_plain_error(subject: Subject) -> None:
    plain, found = judge(subject.model, subject.data, subject.output), calibration(subject)
    assert found["label"]["calibration_error"] == pytest.approx(plain["label"]["calibration_error"], abs=1e-5)
    assert len(found["label"]["temperatures"]) == 2


def test_mask_edits_count_every_mistake(subject: Subject) -> None:
    found = mask_edits(subject)
    assert [row["mistaken"] for row in found["budgets"]] == [int(subject.mistaken.sum())] * 3
    assert found["largest_change_of_other_logits"] < 1e-4


def test_masks_say_what_is_kept(subject: Subject) -> None:
    found = masks(subject)
    units = found["concepts"]["food"]
    assert sum(units["heads"]) + sum(units["neurons"]) == pytest.approx(units["density"] * 2 * (4 + 48))
    assert [found["overlap"][at][at] for at in range(3)] == [1, 1, 1]
    assert found["layers"] == [1, 2]


def test_two_texts_are_too_few_for_a_probe_on_one_group(subject: Subject) -> None:
    one = read(subject.checkpoint, subject.data.head(2), np.zeros(2, dtype=np.int64))
    assert "too few texts" in leakage(one)["note"]


@pytest.fixture(scope="module")
def assessed(subject: Subject) -> tuple[dict[str, Any], list[tuple[str, float]]]:
    told: list[tuple[str, float]] = []
    one = np.array([0, 1])
    pairs = Counterfactuals(one, one[::-1].copy(), one * 0, one == 0, np.arange(24) // 2)
    found = assess(
        subject.checkpoint,
        subject.data.head(24),
        "dev",
        pairs,
        advance=lambda section, done: told.append((section, done)),
    )
    return found, told


def test_progress_goes_from_nothing_to_all(assessed: tuple[dict[str, Any], list[tuple[str, float]]]) -> None:
    done = [share for _, share in assessed[1]]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(done))
    assert done[0] == 0 and done[-1] == 1
    assert assessed[1][0][0] == "reading"


def test_texts_are_drawn_by_the_pairs_groups(assessed: tuple[dict[str, Any], list[tuple[str, float]]]) -> None:
    assert assessed[0]["data"]["groups"] == 12


def test_counterfactuals_are_judged(assessed: tuple[dict[str, Any], list[tuple[str, float]]]) -> None:
    found = assessed[0]["counterfactuals"]
    assert (found["pairs"], found["pairs_from_original"]) == (2, 1)
    assert found["explanations"]["zero"]["l2"]["value"] == pytest.approx(found["observed_norm"])


def test_a_seed_gives_the_same_report(subject: Subject) -> None:
    data = subject.data.head(16)
    first, second = (assess(subject.checkpoint, data, "dev", "none") for _ in range(2))
    assert first == second
    assert first["counterfactuals"] == {"note": "none"}
