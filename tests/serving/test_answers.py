"""From arrays to answers."""

from __future__ import annotations

import numpy as np
import pytest

from serving.answers import AnswerWriter, Explanation
from serving.bottleneck import Reading
from serving.contract import AskNext, LabelAnswer, TokenScore
from serving.masks import Units
from sparsecbm.bundle import Concept, Layout, Manifest

# Two texts; the model's concepts are food, service and noise, of three values each, and its labels 1, 2 and 3.
READING = Reading(
    probabilities=np.array([np.full((3, 3), 1 / 3), [[0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.0, 0.1, 0.9]]]),
    contributions=np.arange(18.0).reshape(2, 3, 3),
    labels=np.array([[0.4, 0.3, 0.3], [0.1, 0.2, 0.7]]),
    gains=np.array([[0.0, 0.0, 0.0], [0.1, 0.3, 0.2]]),
)
NUMBERING = Units(Layout(trunk=1, branch=2, heads=4, neurons=48))
UNITS = 104
MASKS = np.zeros((3, UNITS), bool)
MASKS[0, :26] = True


@pytest.fixture
def writer(manifest: Manifest) -> AnswerWriter:
    return AnswerWriter(manifest, MASKS, shown_units=2)


def test_label_is_the_most_probable(writer: AnswerWriter) -> None:
    answer = writer.write(READING, 1, "text", False)
    assert answer.label == LabelAnswer(value="3", probability=0.7)
    assert answer.probabilities == {"1": 0.1, "2": 0.2, "3": 0.7}


def test_concepts_are_in_the_models_order(writer: AnswerWriter) -> None:
    answer = writer.write(READING, 1, "text", False)
    assert [(item.name, item.value, item.probability) for item in answer.concepts] == [
        ("food", "Positive", 0.7),
        ("service", "Negative", 0.5),
        ("noise", "unknown", 0.9),
    ]


def test_contributions_are_by_label(writer: AnswerWriter) -> None:
    answer = writer.write(READING, 1, "text", False)
    assert answer.concepts[1].contributions == {"1": 12.0, "2": 13.0, "3": 14.0}


def test_values_that_a_concept_lacks_are_left_out(manifest: Manifest) -> None:
    concepts = [Concept(name="food", values=["Negative", "Positive"]), *manifest.concepts[1:]]
    writer = AnswerWriter(manifest.model_copy(update={"concepts": concepts}), MASKS)
    answer = writer.write(READING, 1, "text", False)
    assert answer.concepts[0].probabilities == {"Negative": 0.2, "Positive": 0.7}


def test_concepts_to_ask_for_are_ranked_by_gain(writer: AnswerWriter) -> None:
    assert writer.write(READING, 1, "text", False).ask_next == [
        AskNext(concept="service", gain=0.3),
        AskNext(concept="noise", gain=0.2),
        AskNext(concept="food", gain=0.1),
    ]


def test_corrected_concepts_are_marked_and_not_asked_for(writer: AnswerWriter) -> None:
    answer = writer.write(READING, 1, "text", False, frozenset({"service"}))
    assert [item.corrected for item in answer.concepts] == [False, True, False]
    assert [item.concept for item in answer.ask_next] == ["noise", "food"]


@pytest.mark.parametrize("truncated", [False, True])
def test_says_whether_the_text_was_cut(writer: AnswerWriter, truncated: bool) -> None:
    assert writer.write(READING, 0, "text", truncated).truncated is truncated


def test_nothing_is_explained_unasked(writer: AnswerWriter) -> None:
    answer = writer.write(READING, 1, "text", False)
    assert all(item.tokens is None and item.subnetwork is None for item in answer.concepts)


def test_special_tokens_are_left_out(writer: AnswerWriter) -> None:
    scores = np.arange(12.0).reshape(3, 4)
    explanation = Explanation(scores, [(0, 0), (0, 3), (4, 8), (0, 0)], None)
    answer = writer.write(READING, 1, "the soup", False, explanation=explanation)
    assert answer.concepts[1].tokens == [
        TokenScore(text="the", start=0, end=3, score=5.0),
        TokenScore(text="soup", start=4, end=8, score=6.0),
    ]


def subnetworks(writer: AnswerWriter, scores: np.ndarray) -> list[list[tuple[int, float]]]:
    """By concept, the units shown, by their number, with their scores."""
    answer = writer.write(READING, 1, "text", False, explanation=Explanation(None, (), scores))
    numbers = {NUMBERING.place(unit): unit for unit in range(UNITS)}
    return [
        [(numbers[unit.layer, unit.kind, unit.index], unit.score) for unit in item.subnetwork.units]
        for item in answer.concepts
        if item.subnetwork is not None
    ]


def test_strongest_units_come_first_whatever_their_sign(writer: AnswerWriter) -> None:
    scores = np.zeros((3, UNITS))
    scores[0, [3, 50, 70]] = 0.5, -2.0, 1.0
    assert subnetworks(writer, scores)[0] == [(50, -2.0), (70, 1.0)]


def test_units_that_carry_nothing_are_left_out(writer: AnswerWriter) -> None:
    scores = np.zeros((3, UNITS))
    scores[1, 7] = 0.5
    assert subnetworks(writer, scores) == [[], [(7, 0.5)], []]


def test_fewer_units_than_are_shown(manifest: Manifest) -> None:
    writer = AnswerWriter(manifest, MASKS, shown_units=1000)
    assert [len(shown) for shown in subnetworks(writer, np.ones((3, UNITS)))] == [UNITS] * 3


def test_density_is_the_masks(writer: AnswerWriter) -> None:
    answer = writer.write(READING, 1, "text", False, explanation=Explanation(None, (), np.zeros((3, UNITS))))
    assert [item.subnetwork.density for item in answer.concepts if item.subnetwork] == [0.25, 0.0, 0.0]
