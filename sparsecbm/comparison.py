"""Kinds of runs side by side on the same texts, each over several seeds: means, single runs, and paired tests.

A text's figure is its mean over a kind's runs, and what the bootstrap draws again is texts (see ``significance``), so
an interval is of these runs on other texts. How much another seed changes is what the single runs show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsecbm.assessment import Curve, Subject, correction_curves
from sparsecbm.evaluation import Outputs
from sparsecbm.leakage import halves
from sparsecbm.reach import best_reach, with_reach
from sparsecbm.significance import difference, estimate


@dataclass(frozen=True, slots=True)
class Answers:
    """What one run gets right of N texts.

    Attributes:
        concept: [N], share of the concepts, or None where it learned none.
        label: [N].
        curves: by which concepts are set and in which order; none where it learned none.
    """

    concept: np.ndarray | None
    label: np.ndarray
    curves: dict[str, dict[str, Curve]]


def cross_fitted(subject: Subject) -> Outputs:
    """A run's outputs with the reach of corrections fitted on the other half of the texts than the one judged.

    The reach in a checkpoint was fitted on its validation split, which is most often what it is judged on. Outputs of
    runs whose reach isn't fitted are as they are.
    """
    output, model = subject.output, subject.model
    if model.bottleneck != "vectors" or subject.checkpoint.config.training.get("mode", "joint") != "joint":
        return output
    labels = torch.from_numpy(subject.data.labels)
    first = torch.from_numpy(halves(subject.groups, subject.seed))
    vectors = output.vectors.clone()
    for judged in (first, ~first):
        if not judged.any() or judged.all():
            continue
        fitted = Outputs(output.logits[~judged], output.vectors[~judged])
        reach = best_reach(model, fitted, subject.truth[~judged], labels[~judged])
        vectors[judged] = with_reach(model, Outputs(output.logits[judged], output.vectors[judged]), reach).vectors
    return Outputs(output.logits, vectors)


def answers(subject: Subject) -> Answers:
    """What a run gets right, as it is and after one correction after another."""
    label = subject.right.astype(np.float64)
    if not subject.checkpoint.config.knows_concepts:
        return Answers(None, label, {})
    curves = correction_curves(subject, cross_fitted(subject))
    return Answers((~subject.mistaken).double().mean(1).numpy(), label, curves)


def _figure(values: Sequence[np.ndarray], drawn: np.ndarray) -> dict[str, Any]:
    """The mean of each run's [N] values with its interval, and the single runs'."""
    return estimate(np.mean(values, 0), drawn) | {"runs": [float(one.mean()) for one in values]}


def _change(before: Sequence[np.ndarray], after: Sequence[np.ndarray], drawn: np.ndarray) -> dict[str, Any]:
    """How much more the second gets right than the first; where these are the same runs, for each of them too."""
    found: dict[str, Any] = difference(np.mean(before, 0), np.mean(after, 0), drawn)
    if len(before) == len(after):
        found["runs"] = [float((last - first).mean()) for first, last in zip(before, after, strict=True)]
    return found


def _between(curves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Means of [concepts + 1, N] figures between their ends, where all orders meet: what order matters for."""
    return [curve[1:-1].mean(0) if len(curve) > 2 else curve[-1] for curve in curves]


def _corrections(curves: Mapping[str, Sequence[np.ndarray]], drawn: np.ndarray) -> dict[str, Any]:
    """What corrections do to a figure, of each run's [concepts + 1, N] by order, and what the order does."""
    random, asked = curves["random"], curves["ask_next"]
    return {
        "curves": {order: [estimate(step, drawn) for step in np.mean(runs, 0)] for order, runs in curves.items()},
        "gain": _change([curve[0] for curve in random], [curve[-1] for curve in random], drawn),
        "ask_next_over_random": _change(_between(random), _between(asked), drawn),
    }


def _row(mine: Sequence[Answers], first: Sequence[Answers], drawn: np.ndarray) -> dict[str, Any]:
    """A kind's figures, and their differences from the first kind's."""
    row: dict[str, Any] = {
        "label": _figure([one.label for one in mine], drawn),
        "label_difference": _change([one.label for one in first], [one.label for one in mine], drawn),
    }
    concepts = [one.concept for one in mine if one.concept is not None]
    others = [one.concept for one in first if one.concept is not None]
    if len(concepts) < len(mine):
        return row
    row["concept"] = _figure(concepts, drawn)
    if len(others) == len(first):
        row["concept_difference"] = _change(others, concepts, drawn)
    for name, orders in mine[0].curves.items():
        curves = {order: [one.curves[name][order] for one in mine] for order in orders}
        accuracy, log_loss = (
            _corrections({order: [getattr(one, figure) for one in runs] for order, runs in curves.items()}, drawn)
            for figure in Curve._fields
        )
        row[f"corrected_{name}"] = accuracy | {"log_loss": log_loss}
    return row


def compare(
    kinds: Mapping[str, Sequence[Callable[[], Subject]]], advance: Callable[[float], None] = lambda done: None
) -> dict[str, Any]:
    """Sets kinds of runs side by side.

    Args:
        kinds: by name, what reads each of their runs over the same texts; one run is held at a time.
        advance: told what share of the work is done.

    Returns:
        JSON values: by kind, ``runs``, ``density`` (mean), ``label``, ``concept`` with ``value``, ``interval``
        and the single ``runs``; their ``label_difference`` and ``concept_difference`` from the first kind with
        ``p``; and ``corrected_mistaken`` and ``corrected_all``: label accuracy's ``curves`` by order, the ``gain``
        from no correction to all, and ``ask_next_over_random``, the mean gap between the ends of the two curves; the
        same of the label's ``log_loss``, where a gain is less than 0. What a kind didn't learn is left out.
    """
    read: dict[str, list[Answers]] = {}
    densities: dict[str, float] = {}
    total, done = sum(map(len, kinds.values())), 0
    drawn = np.empty(0)
    for name, runs in kinds.items():
        read[name], found = [], []
        for run in runs:
            subject = run()
            drawn = subject.drawn
            found.append(subject.model.density())
            read[name].append(answers(subject))
            done += 1
            advance(done / total)
        densities[name] = float(np.mean(found))
    first = next(iter(read.values()))
    return {
        name: {"runs": len(mine), "density": densities[name]} | _row(mine, first, drawn) for name, mine in read.items()
    }
