"""From arrays to the messages of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.bottleneck import Reading
from serving.contract import Answer, AskNext, ConceptAnswer, LabelAnswer, Subnetwork, TokenScore, UnitScore
from serving.masks import Units
from sparsecbm.bundle import Manifest

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Scores behind one text's concept values.

    Attributes:
        tokens: [concepts, length], for every token of the text, or none where not asked for.
        offsets: each token's first character and the one after its last; equal at special tokens.
        units: [concepts, units], 0 at pruned ones, or none where not asked for.
    """

    tokens: np.ndarray | None
    offsets: Offsets
    units: np.ndarray | None


class AnswerWriter:
    """Writes answers for one bundle.

    Args:
        manifest: of the bundle.
        masks: [concepts, units] bool.
        shown_units: how many units of a subnetwork an answer names.
    """

    def __init__(self, manifest: Manifest, masks: np.ndarray, shown_units: int = 10) -> None:
        self._names = [concept.name for concept in manifest.concepts]
        self._values = [concept.values for concept in manifest.concepts]
        self._labels = manifest.labels
        self._units = Units(manifest.layout)
        by_weights = manifest.granularity == "weights"  # all units are kept there
        self._densities = list(manifest.concept_density.values()) if by_weights else masks.mean(1).tolist()
        self._shown_units = shown_units

    def write(
        self,
        reading: Reading,
        row: int,
        text: str,
        truncated: bool,
        corrected: frozenset[str] = frozenset(),
        explanation: Explanation | None = None,
    ) -> Answer:
        """The answer for one text.

        Args:
            reading: of a batch.
            row: of the text in it.
            text: that offsets point into.
            truncated: whether the model read only its beginning.
            corrected: names of concepts that a human set.
            explanation: of the text, if asked for.
        """
        labels = reading.labels[row].tolist()
        best = int(reading.labels[row].argmax())
        probabilities = reading.probabilities[row].tolist()
        contributions = reading.contributions[row].tolist()
        gains = reading.gains[row].tolist()
        concepts = []
        for position, name in enumerate(self._names):
            values = self._values[position]
            chances = probabilities[position][: len(values)]
            top = max(range(len(values)), key=chances.__getitem__)
            concepts.append(
                ConceptAnswer.model_construct(
                    name=name,
                    value=values[top],
                    probability=chances[top],
                    probabilities=dict(zip(values, chances, strict=True)),
                    contributions=dict(zip(self._labels, contributions[position], strict=True)),
                    corrected=name in corrected,
                    tokens=self._tokens(explanation, position, text),
                    subnetwork=self._subnetwork(explanation, position),
                )
            )
        ask = sorted(
            (name for name in self._names if name not in corrected),
            key=lambda name: -gains[self._names.index(name)],
        )
        return Answer.model_construct(
            label=LabelAnswer.model_construct(value=self._labels[best], probability=labels[best]),
            probabilities=dict(zip(self._labels, labels, strict=True)),
            concepts=concepts,
            ask_next=[AskNext.model_construct(concept=name, gain=gains[self._names.index(name)]) for name in ask],
            truncated=truncated,
        )

    def _tokens(self, explanation: Explanation | None, concept: int, text: str) -> list[TokenScore] | None:
        if explanation is None or explanation.tokens is None:
            return None
        scores = explanation.tokens[concept].tolist()
        return [
            TokenScore.model_construct(text=text[start:end], start=start, end=end, score=score)
            for (start, end), score in zip(explanation.offsets, scores, strict=True)
            if end > start
        ]

    def _subnetwork(self, explanation: Explanation | None, concept: int) -> Subnetwork | None:
        if explanation is None or explanation.units is None:
            return None
        carrying = np.flatnonzero(explanation.units[concept])
        scores = explanation.units[concept][carrying]
        strongest = np.argsort(-np.abs(scores))[: self._shown_units]
        units = []
        for unit, score in zip(carrying[strongest].tolist(), scores[strongest].tolist(), strict=True):
            layer, kind, index = self._units.place(unit)
            units.append(UnitScore.model_construct(layer=layer, kind=kind, index=index, score=score))
        return Subnetwork.model_construct(density=self._densities[concept], units=units)
