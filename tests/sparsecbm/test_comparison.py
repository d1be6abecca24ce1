"""Kinds of runs side by side: figures worked out by hand, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsecbm import checkpoint as checkpoints
from sparsecbm import data as datasets
from sparsecbm.assessment import Subject, read
from sparsecbm.comparison import answers, compare, cross_fitted
from sparsecbm.leakage import halves
from sparsecbm.model import corrected
from sparsecbm.reach import best_reach
from tests.program import sparsecbm


@pytest.fixture(scope="module")
def subject(checkpoint: Path, reviews: Path) -> Subject:
    return read(checkpoints.load(checkpoint), datasets.load(str(reviews), "dev"))


@pytest.fixture(scope="module")
def found(subject: Subject) -> dict[str, Any]:
    """The trained model twice, and a run of another kind that is right where the first is wrong."""
    contrary = dataclasses.replace(subject, data=dataclasses.replace(subject.data, labels=_wrong_labels(subject)))
    return compare({"ours": [lambda: subject, lambda: subject], "contrary": [lambda: contrary]})


def _wrong_labels(subject: Subject) -> np.ndarray:
    return np.asarray((subject.label_logits.argmax(1) + 1) % len(subject.data.schema.labels))


def test_figures_are_means_over_runs(subject: Subject, found: dict[str, Any]) -> None:
    right = float(subject.right.mean())
    assert found["ours"]["label"]["runs"] == [right, right]
    assert found["ours"]["label"]["value"] == pytest.approx(right)
    assert found["ours"]["concept"]["value"] == pytest.approx(1 - float(subject.mistaken.double().mean()))
    assert (found["ours"]["runs"], found["ours"]["density"]) == (2, subject.model.density())


def test_differences_are_from_the_first_kind(subject: Subject, found: dict[str, Any]) -> None:
    assert found["ours"]["label_difference"]["value"] == 0
    assert found["contrary"]["label_difference"]["value"] == pytest.approx(-float(subject.right.mean()))
    assert found["contrary"]["label_difference"]["p"] < 0.01
    assert found["contrary"]["concept_difference"]["value"] == 0


def test_curves_begin_with_the_label_and_end_alike(found: dict[str, Any]) -> None:
    for which in ("mistaken", "all"):
        part = found["ours"][f"corrected_{which}"]
        random, asked = part["curves"]["random"], part["curves"]["ask_next"]
        assert len(random) == len(asked) == 4
        assert random[0]["value"] == asked[0]["value"] == pytest.approx(found["ours"]["label"]["value"])
        assert random[-1]["value"] == pytest.approx(asked[-1]["value"])
        assert part["gain"]["value"] == pytest.approx(random[-1]["value"] - random[0]["value"])
        gap = np.mean([step["value"] for step in asked[1:-1]]) - np.mean([step["value"] for step in random[1:-1]])
        assert part["ask_next_over_random"]["value"] == pytest.approx(gap)


def test_log_loss_is_that_of_the_true_label(subject: Subject, found: dict[str, Any]) -> None:
    fitted = cross_fitted(subject)
    labels = torch.from_numpy(subject.data.labels)
    for which, eligible in (("mistaken", subject.mistaken), ("all", torch.ones_like(subject.mistaken))):
        values = torch.where(eligible, subject.truth, -1)
        part = found["ours"][f"corrected_{which}"]["log_loss"]
        for step, mixture in ((0, subject.probabilities), (-1, corrected(subject.probabilities, values))):
            wanted = torch.nn.functional.cross_entropy(subject.model.label_logits(mixture, fitted.vectors), labels)
            assert part["curves"]["random"][step]["value"] == pytest.approx(wanted.item(), abs=1e-5)
            assert part["curves"]["ask_next"][step]["value"] == pytest.approx(wanted.item(), abs=1e-5)


def test_each_half_has_the_reach_that_is_best_on_the_other(subject: Subject) -> None:
    fitted, model = cross_fitted(subject), subject.model
    first = torch.from_numpy(halves(subject.groups, subject.seed))
    labels, own = torch.from_numpy(subject.data.labels), model.reach
    for judged in (first, ~first):
        other = dataclasses.replace(subject.output, logits=subject.output.logits[~judged])
        other = dataclasses.replace(other, vectors=subject.output.vectors[~judged])
        reach = best_reach(model, other, subject.truth[~judged], labels[~judged])
        mixture = corrected(subject.probabilities[judged], subject.truth[judged])
        before = model.label_logits(subject.probabilities[judged], subject.output.vectors[judged])
        moved = model.label_logits(mixture, fitted.vectors[judged]) - before
        served = model.label_logits(mixture, subject.output.vectors[judged]) - before
        torch.testing.assert_close(moved, served * (reach / own), atol=1e-4, rtol=1e-4)


def trained_as(subject: Subject, **training: Any) -> Subject:
    """The same run, told to have been trained otherwise."""
    config = subject.checkpoint.config
    config = config.model_copy(update={"training": config.training | training})
    return dataclasses.replace(subject, checkpoint=dataclasses.replace(subject.checkpoint, config=config))


def test_a_reach_that_was_not_fitted_is_left_alone(subject: Subject) -> None:
    assert cross_fitted(trained_as(subject, mode="independent")) is subject.output


def test_of_a_classifier_the_label_alone_is_told(subject: Subject) -> None:
    classifier = trained_as(subject, concept_weight=0.0)
    assert answers(classifier).concept is None
    found = compare({"classifier": [lambda: classifier], "ours": [lambda: subject]})
    assert found["classifier"].keys() == {"runs", "density", "label", "label_difference"}
    assert "concept_difference" not in found["ours"] and "concept" in found["ours"]


def test_the_command_prints_what_it_found(checkpoint: Path, reviews: Path, subject: Subject) -> None:
    ran = sparsecbm("compare", f"ours={checkpoint},{checkpoint}", "--data", str(reviews), "--json")
    assert ran.code == 0, ran.err
    printed = json.loads(ran.out)["dev"]["ours"]
    assert printed["label"]["value"] == pytest.approx(float(subject.right.mean()), abs=0.02)
    tables = sparsecbm("compare", f"ours={checkpoint}", f"others={checkpoint}", "--data", str(reviews))
    assert tables.code == 0, tables.err
    assert "label's accuracy after so many corrections of mistaken concepts" in tables.out
    assert "ask_next over random" in tables.out


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["runs/a"], "'runs/a' must name a kind and its checkpoints, such as 'ours=runs/a,runs/b'."),
        (["ours="], "'ours=' must name a kind and its checkpoints"),
        (["a=x", "a=y"], "The kind 'a' is given twice; list its checkpoints in one, with commas."),
        (["a=nowhere"], "nowhere is not a checkpoint"),
    ],
)
def test_the_command_answers_a_mistake_with_one_sentence(reviews: Path, kinds: list[str], message: str) -> None:
    ran = sparsecbm("compare", *kinds, "--data", str(reviews))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ") and message in ran.err
    assert len(ran.err.splitlines()) == 1
