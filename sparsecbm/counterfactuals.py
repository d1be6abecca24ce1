"""Counterfactual pairs: reviews edited for one concept, and how well the model's explanation foretells their effect.

CEBaB (Abraham et al. 2022) has reviews in several versions, written by people who were asked to change one
concept. What the model says of two versions shows the effect that changing the concept really has on it (ICaCE,
section 4); an explanation is judged by the effect that it predicts from the first version alone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from sparsecbm.data import CEBAB, Dataset, cebab_rows
from sparsecbm.errors import DataError
from sparsecbm.evaluation import Outputs
from sparsecbm.model import SparseCBM, corrected

_COLUMNS = ("original_id", "is_original", "edit_type")
_NOTHING = 1e-8  # norm under which an effect has no direction


@dataclass(frozen=True, slots=True)
class Counterfactuals:
    """The pairs of a split.

    Attributes:
        base: [P] int64, position of the version that is explained.
        edited: [P] int64, position of the version that it is compared with.
        concept: [P] int64, the concept that was edited.
        from_original: [P] bool, whether the base is the original and not an edit of it.
        groups: [N] int64, number of the original that each text of the split is a version of.
    """

    base: np.ndarray
    edited: np.ndarray
    concept: np.ndarray
    from_original: np.ndarray
    groups: np.ndarray

    def head(self, count: int) -> Counterfactuals:
        """The pairs among the first texts of the split."""
        inside = (self.base < count) & (self.edited < count)
        return Counterfactuals(
            self.base[inside],
            self.edited[inside],
            self.concept[inside],
            self.from_original[inside],
            self.groups[:count],
        )


def load_counterfactuals(source: str, split: str, data: Dataset) -> Counterfactuals:
    """Finds a split's pairs, as the paper's published code does.

    A pair is an original and an edit of it, in either order, or two edits of one original for the same concept,
    in either order; and the annotators found different values of the concept in the two.

    Args:
        source: ``cebab`` or ``cebab:FOLDER``.
        split: one of CEBaB's.
        data: the same split as ``data.load`` gives it.

    Raises:
        DataError: the data set isn't CEBaB, lacks the columns that say what was edited, or isn't the one loaded.
    """
    if source != "cebab" and not source.startswith("cebab:"):
        raise DataError(
            f"counterfactual pairs are known of CEBaB alone (--data cebab or cebab:FOLDER), not of {source}."
        )
    rows, where = cebab_rows(source, split)
    names = [concept.name for concept in data.schema.concepts]
    versions: dict[str, list[tuple[int, str | None]]] = defaultdict(list)  # position, and concept edited
    groups: list[int] = []
    for number, row in enumerate(rows, start=1):
        absent = [column for column in _COLUMNS if column not in row]
        if absent:
            raise DataError(f"{where}, row {number}: lacks the column(s) {absent}, so its counterfactuals are unknown.")
        if str(row[CEBAB.label.column]).strip() in CEBAB.drop_labels:
            continue
        edit = None if row["is_original"] else str(row["edit_type"])
        if edit is not None and edit not in names:
            raise DataError(f"{where}, row {number}: column 'edit_type' holds {edit!r}; allowed are {names}.")
        group = versions[str(row["original_id"])]
        groups.append(list(versions).index(str(row["original_id"])) if not group else groups[group[0][0]])
        group.append((len(groups) - 1, edit))
    if len(groups) != len(data):
        raise DataError(f"{where} has {len(groups)} usable rows, but {len(data)} were loaded; it changed meanwhile.")
    pairs = []
    for group in versions.values():
        for base, base_edit in group:
            for edited, edited_edit in group:
                edit = edited_edit or base_edit
                if base == edited or edit is None or (base_edit and edited_edit and base_edit != edited_edit):
                    continue
                concept = names.index(edit)
                if data.concepts[base, concept] != data.concepts[edited, concept]:
                    pairs.append((base, edited, concept, base_edit is None))
    table = np.array(pairs, dtype=np.int64).reshape(-1, 4)
    return Counterfactuals(
        table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(bool), np.array(groups, dtype=np.int64)
    )


@torch.no_grad()
def effects(
    model: SparseCBM, output: Outputs, truth: np.ndarray, pairs: Counterfactuals, seed: int = 0
) -> dict[str, np.ndarray]:
    """Changes of the label's probabilities from a pair's base to its edited version, each [P, labels].

    Args:
        model: whose label head is used.
        output: of the N texts.
        truth: [N, concepts] int64, of the annotators.
        pairs: of these texts.
        seed: of the random baseline.

    Returns:
        ``observed``: what the model says of the edited version less what it says of the base. The predictions
        see the base alone: ``intervention``, what the model says once the concept is set to its new value, less
        what it says of the base; ``contrast``, the same less what it says once the concept is set to its old
        value; ``zero``; ``random``, the difference of two random distributions, as the paper's code draws them.
    """
    probabilities = output.logits.softmax(-1)
    label = model.label_logits(probabilities, output.vectors).softmax(-1)
    base, edited = torch.from_numpy(pairs.base), torch.from_numpy(pairs.edited)

    def with_value(values: np.ndarray) -> torch.Tensor:
        """[P, labels] of the bases, their concept set to the values [P]."""
        setting = torch.full((len(base), probabilities.shape[1]), -1)
        setting[torch.arange(len(base)), torch.from_numpy(pairs.concept)] = torch.from_numpy(values)
        mixture = corrected(probabilities[base], setting)
        return model.label_logits(mixture, output.vectors[base]).softmax(-1)

    new, old = with_value(truth[pairs.edited, pairs.concept]), with_value(truth[pairs.base, pairs.concept])
    generator = np.random.default_rng(seed)
    drawn = generator.uniform(size=(2, len(base), label.shape[1]))
    drawn /= drawn.sum(-1, keepdims=True)
    return {
        "observed": (label[edited] - label[base]).numpy(),
        "intervention": (new - label[base]).numpy(),
        "contrast": (new - old).numpy(),
        "zero": np.zeros((len(base), label.shape[1])),
        "random": drawn[0] - drawn[1],
    }


def icace_errors(observed: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """How far predicted effects are from observed ones (Abraham et al. 2022, section 4.2), each [P].

    Args:
        observed: [P, labels].
        predicted: [P, labels].

    Returns:
        ``l2``, the norm of the difference; ``cosine``, the cosine distance in [0, 2], 1 where one of the two has
        no direction and 0 where neither has; ``norm``, the absolute difference of the norms.
    """
    first, second = np.linalg.norm(observed, axis=1), np.linalg.norm(predicted, axis=1)
    still = (first < _NOTHING).astype(int) + (second < _NOTHING)
    similar = (observed * predicted).sum(1) / np.maximum(first * second, _NOTHING**2)
    return {
        "l2": np.linalg.norm(observed - predicted, axis=1),
        "cosine": np.select([still == 2, still == 1], [0.0, 1.0], 1 - similar),
        "norm": np.abs(first - second),
    }
