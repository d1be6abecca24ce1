"""The full evaluation of a checkpoint as JSON values, section by section; ``report`` makes a page of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsecbm.calibration import fit_temperature, reliability, scale
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.corrections import correct_one_by_one
from sparsecbm.counterfactuals import Counterfactuals, effects, icace_errors
from sparsecbm.data import Dataset
from sparsecbm.evaluation import Outputs, calibration_error, judge, run, scores_of
from sparsecbm.faithfulness import SHARES, measure
from sparsecbm.intervention import EditSettings, edit_at_budgets, untouched_difference
from sparsecbm.leakage import halves, probe, representations
from sparsecbm.model import SparseCBM, corrected
from sparsecbm.significance import (
    LEVEL,
    RESAMPLES,
    difference,
    draws,
    estimate,
    interval,
    mcnemar,
)
from sparsecbm.tokens import encode, tokenizer_from_text

REPORT_VERSION = 1
BUDGETS = (0.01, 0.03, 0.1)
ORDERS = 5  # random orders that a correction curve is the mean of
CHECKED = 16  # edits of each concept whose effect on other concepts is looked at
FAITHFULNESS_TEXTS = 200  # texts that attributions are judged on, which is what takes longest

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Subject:
    """A checkpoint, the texts that it is judged on, and what it says of them.

    Attributes:
        checkpoint: to judge.
        data: one split.
        ids: its texts as token ids.
        special: ids of the tokeniser's special tokens.
        truncated: texts that are longer than the model reads.
        output: what the model says.
        groups: [N] int64, texts of one group are drawn together.
        seed: of everything random.
    """

    checkpoint: Checkpoint
    data: Dataset
    ids: Sequence[np.ndarray]
    special: Collection[int]
    truncated: int
    output: Outputs
    groups: np.ndarray
    seed: int

    @property
    def model(self) -> SparseCBM:
        return self.checkpoint.model

    @cached_property
    def truth(self) -> Tensor:
        return torch.from_numpy(self.data.concepts)

    @cached_property
    def probabilities(self) -> Tensor:
        return self.output.logits.softmax(-1)

    @cached_property
    def mistaken(self) -> Tensor:
        """[N, concepts] bool."""
        return self.probabilities.argmax(-1) != self.truth

    @cached_property
    def label_logits(self) -> np.ndarray:
        """[N, labels]."""
        with torch.no_grad():
            found: np.ndarray = self.model.label_logits(self.probabilities, self.output.vectors).numpy()
        return found

    @cached_property
    def right(self) -> np.ndarray:
        """[N] bool, whether the label is right."""
        return np.asarray(self.label_logits.argmax(1) == self.data.labels)

    @cached_property
    def drawn(self) -> np.ndarray:
        """[resamples, N]."""
        return draws(self.groups, seed=self.seed)


def read(
    checkpoint: Checkpoint,
    data: Dataset,
    groups: np.ndarray | None = None,
    seed: int = 0,
    advance: Advance = lambda share: None,
) -> Subject:
    """Runs a checkpoint over a split.

    Args:
        checkpoint: of the same concepts and labels as the data.
        data: one split.
        groups: [N] int64, texts that belong together; each by itself by default.
        seed: of everything random.
        advance: told what share of the work is done.
    """
    tokenizer = tokenizer_from_text(checkpoint.tokenizer, checkpoint.config.max_tokens)
    encoded = encode(tokenizer, data.texts)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    special |= {int(row[at]) for row in encode(tokenizer, ["a"]).ids for at in (0, -1) if len(row) > 2}
    output = run(checkpoint.model, encoded.ids)
    advance(1.0)
    alone = np.arange(len(data))
    return Subject(
        checkpoint,
        data,
        encoded.ids,
        special,
        sum(encoded.truncated),
        output,
        alone if groups is None else groups,
        seed,
    )


def _resampled_scores(truth: np.ndarray, said: np.ndarray, classes: int, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Each of ``scores`` under each resample, [resamples]."""
    cells = np.eye(classes * classes)[truth * classes + said]
    return scores_of((drawn @ cells).reshape(-1, classes, classes))


def accuracy(subject: Subject) -> dict[str, Any]:
    """Accuracies and F1 scores of ``judge`` with their intervals."""
    figures = judge(subject.model, subject.data, subject.output)
    data, drawn = subject.data, subject.drawn
    with torch.no_grad():
        fixed = subject.model.label_logits(
            corrected(subject.probabilities, torch.where(subject.mistaken, subject.truth, -1)), subject.output.vectors
        )
    labels = len(data.schema.labels)
    said = subject.probabilities.argmax(-1).numpy()
    resampled = {
        "label": _resampled_scores(data.labels, subject.label_logits.argmax(1), labels, drawn),
        "label_corrected": _resampled_scores(data.labels, fixed.argmax(-1).numpy(), labels, drawn),
    }
    concepts = {
        concept.name: _resampled_scores(data.concepts[:, at], said[:, at], len(concept.values), drawn)
        for at, concept in enumerate(data.schema.concepts)
    }
    means = {key: np.mean([found[key] for found in concepts.values()], 0) for key in resampled["label"]}

    def joined(found: dict[str, float], samples: dict[str, np.ndarray]) -> dict[str, Any]:
        return {key: {"value": found[key], "interval": interval(sample)} for key, sample in samples.items()}

    return {
        "label": joined(figures["label"], resampled["label"]),
        "label_corrected": joined(figures["label_corrected"], resampled["label_corrected"]),
        "concept": joined(figures["concept"], means),
        "concepts": {name: joined(figures["concepts"][name], samples) for name, samples in concepts.items()},
        "mistaken_share": float(subject.mistaken.double().mean()),
    }


def calibration(subject: Subject) -> dict[str, Any]:
    """Calibration of the label and every concept, and what a temperature would make of it.

    The temperature is fitted on one half of the texts and judged on the other, and the other way round.
    """
    data = subject.data
    first = halves(subject.groups, subject.seed)

    def one(logits: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        chances = scale(logits, 1.0)
        cooled, temperatures = np.empty_like(chances), []
        for judged in (first, ~first):
            if not judged.any() or judged.all():
                cooled[judged] = chances[judged]
                continue
            temperatures.append(fit_temperature(logits[~judged], truth[~judged]))
            cooled[judged] = scale(logits[judged], temperatures[-1])
        chosen = np.arange(len(truth)), truth
        return {
            "calibration_error": calibration_error(chances, truth),
            "log_loss": float(-np.log(np.maximum(chances[chosen], 1e-12)).mean()),
            "bins": reliability(chances, truth),
            "temperatures": temperatures,
            "with_temperature": {
                "calibration_error": calibration_error(cooled, truth),
                "log_loss": float(-np.log(np.maximum(cooled[chosen], 1e-12)).mean()),
            },
        }

    concepts = {
        concept.name: one(subject.output.logits[:, at, : len(concept.values)].numpy(), data.concepts[:, at])
        for at, concept in enumerate(data.schema.concepts)
    }
    return {"label": one(subject.label_logits, data.labels), "concepts": concepts}


class Curve(NamedTuple):
    """What is said of the label after 0, 1, … K of a text's concepts are set to their true value.

    Attributes:
        right: [concepts + 1, N], whether the most probable label is the true one.
        log_loss: [concepts + 1, N], of the true label, in nats.
    """

    right: np.ndarray
    log_loss: np.ndarray


def correction_curves(subject: Subject, output: Outputs) -> dict[str, dict[str, Curve]]:
    """How well the label is told, by how many concepts are set to their true value.

    Args:
        subject: whose model and texts.
        output: of the model on the texts; the subject's own, or one with another reach of corrections.

    Returns:
        By which concepts are set (``mistaken``, ``all``) and in which order (``random``, the mean of several orders,
        and ``ask_next``); all orders begin and end alike.
    """
    generator = torch.Generator().manual_seed(subject.seed)
    labels = torch.from_numpy(subject.data.labels)
    random = [torch.rand(subject.truth.shape, generator=generator) for _ in range(ORDERS)]
    found: dict[str, dict[str, Curve]] = {}
    for name, eligible in (("mistaken", subject.mistaken), ("all", torch.ones_like(subject.mistaken))):
        found[name] = {}
        for order, priorities in (("random", random), ("ask_next", [None])):
            steps = torch.stack(
                [
                    correct_one_by_one(subject.model, output, subject.truth, eligible, priority)
                    for priority in priorities
                ]
            )
            truth = labels.expand(steps.shape[:-1])[..., None]
            right = (steps.argmax(-1) == labels).double().mean(0)
            log_loss = -steps.double().log_softmax(-1).gather(-1, truth)[..., 0].mean(0)
            found[name][order] = Curve(right.numpy(), log_loss.numpy())
    return found


def corrections(subject: Subject) -> dict[str, Any]:
    """Label accuracy by how many concepts are set to their true value, in random order and in that of ``ask_next``."""
    found: dict[str, Any] = {}
    for name, curves in correction_curves(subject, subject.output).items():
        ends, losses = curves["ask_next"].right[[0, -1]] > 0, curves["ask_next"].log_loss[[0, -1]]
        found[name] = {
            "curves": {
                order: [estimate(step, subject.drawn) for step in curve.right] for order, curve in curves.items()
            },
            "none_to_all": {
                "difference": difference(ends[0], ends[1], subject.drawn),
                "log_loss": difference(losses[0], losses[1], subject.drawn),
                "mcnemar": mcnemar(ends[0], ends[1]),
            },
        }
    return found


def mask_edits(subject: Subject, advance: Advance = lambda share: None) -> dict[str, Any]:
    """What mask-level interventions on the mistaken concepts do, by budget."""
    model, data = subject.model, subject.data
    total = int(subject.mistaken.sum())
    affected = subject.mistaken.any(1).numpy()
    done, largest = 0, 0.0

    def progress(texts: int) -> None:
        nonlocal done
        done += texts
        advance(done / total / len(BUDGETS))

    outputs = [(subject.output.logits.clone(), subject.output.vectors.clone()) for _ in BUDGETS]
    by_budget: list[dict[str, dict[str, Any]]] = [{} for _ in BUDGETS]
    for at, concept in enumerate(model.concepts):
        rows = subject.mistaken[:, at].nonzero()[:, 0].numpy()
        if not len(rows):
            continue
        kept = int(model.masks.heads[at].sum() + model.masks.neurons[at].sum())
        ids = [subject.ids[row] for row in rows.tolist()]
        edits = edit_at_budgets(model, ids, at, data.concepts[rows, at], BUDGETS, progress)
        largest = max(largest, untouched_difference(model, ids[:CHECKED], at, edits[-1].masks[:CHECKED]))
        for (logits, vectors), found, edit in zip(outputs, by_budget, edits, strict=True):
            logits[rows, at], vectors[rows, at] = edit.logits, edit.vectors
            changed, reached = edit.changed.double().numpy(), edit.reached.numpy()
            found[concept.name] = {
                "mistaken": len(rows),
                "reached": float(reached.mean()),
                "changed": float(changed.mean() / kept),
                "changed_where_reached": float(changed[reached].mean() / kept) if reached.any() else None,
                "units_kept": kept,
            }

    def one(budget: float, output: tuple[Tensor, Tensor], concepts: dict[str, dict[str, Any]]) -> dict[str, Any]:
        with torch.no_grad():
            label = model.label_logits(output[0].softmax(-1), output[1]).argmax(-1).numpy()
        after = label == data.labels

        def mean(key: str) -> float | None:
            return sum(part[key] * part["mistaken"] for part in concepts.values()) / total if total else None

        return {
            "budget": budget,
            "mistaken": total,
            "reached": mean("reached"),
            "changed": mean("changed"),
            "concepts": concepts,
            "label_before": estimate(subject.right, subject.drawn),
            "label_after": estimate(after, subject.drawn),
            "difference": difference(subject.right, after, subject.drawn),
            "mcnemar": mcnemar(subject.right, after),
            "affected": {
                "texts": int(affected.sum()),
                "label_before": float(subject.right[affected].mean()) if affected.any() else None,
                "label_after": float(after[affected].mean()) if affected.any() else None,
            },
        }

    return {
        "step": EditSettings().step,
        "budgets": [one(*parts) for parts in zip(BUDGETS, outputs, by_budget, strict=True)],
        "largest_change_of_other_logits": largest,
    }


def faithfulness(subject: Subject, advance: Advance = lambda share: None) -> dict[str, Any]:
    """Comprehensiveness and sufficiency of token attributions, on a sample of the texts."""
    count = min(FAITHFULNESS_TEXTS, len(subject.ids))
    rows = np.sort(np.random.default_rng(subject.seed).permutation(len(subject.ids))[:count])
    done = 0

    def progress(texts: int) -> None:
        nonlocal done
        done += texts
        advance(done / count)

    found = measure(
        subject.model, [subject.ids[row] for row in rows.tolist()], subject.special, seed=subject.seed, advance=progress
    )
    drawn = draws(subject.groups[rows], seed=subject.seed)
    methods: dict[str, Any] = {}
    for name, figures in found.items():
        row: dict[str, Any] = {"forward_passes": figures.forward, "backward_passes": figures.backward}
        for measured in ("comprehensiveness", "sufficiency"):
            values: np.ndarray = getattr(figures, measured)
            row[measured] = {
                "mean": estimate(values.mean((1, 2)), drawn),
                "shares": [estimate(values[:, :, at].mean(1), drawn) for at in range(len(SHARES))],
                "concepts": {
                    concept.name: float(values[:, at].mean()) for at, concept in enumerate(subject.model.concepts)
                },
            }
        methods[name] = row
    return {"texts": count, "shares": list(SHARES), "methods": methods}


def leakage(subject: Subject, advance: Advance = lambda share: None) -> dict[str, Any]:
    """What the label can be predicted by from each concept's value and from its activation, by linear probes."""
    data = subject.data
    first = halves(subject.groups, subject.seed)
    if not first.any() or first.all():
        return {"note": "there are too few texts to fit a probe on one half and to judge it on the other."}
    inputs = representations(subject.model, subject.output, data.concepts)
    names = [concept.name for concept in data.schema.concepts]
    classes = len(data.schema.labels)
    rows: dict[str, Any] = {}
    for number, name in enumerate(["all concepts", *names]):
        probed = {}
        for kind, values in inputs.items():
            features = values.reshape(len(values), -1) if not number else values[:, number - 1]
            probed[kind] = probe(features, data.labels, classes, first)
        row: dict[str, Any] = {
            kind: {"accuracy": estimate(found.right, subject.drawn), "bits": float(found.bits.mean())}
            for kind, found in probed.items()
        }
        for gap, (low, high) in {
            "leaked": ("predicted value", "activation"),
            "leaked_when_corrected": ("true value", "corrected activation"),
        }.items():
            row[gap] = {
                "accuracy": difference(probed[low].right, probed[high].right, subject.drawn),
                "bits": difference(-probed[low].bits, -probed[high].bits, subject.drawn),
            }
        rows[name] = row
        advance((number + 1) / (len(names) + 1))
    return {"all": rows.pop("all concepts"), "concepts": rows}


def counterfactual_effects(subject: Subject, pairs: Counterfactuals) -> dict[str, Any]:
    """ICaCE errors of concept-level explanations, and of explanations that know nothing."""
    if not len(pairs.base):
        return {"note": "these texts hold no counterfactual pair."}
    found = effects(subject.model, subject.output, subject.data.concepts, pairs, subject.seed)
    observed = found.pop("observed")
    drawn = subject.drawn[:, pairs.base]
    drawn = drawn[drawn.sum(1) > 0]
    explanations: dict[str, Any] = {}
    for name, predicted in found.items():
        errors = icace_errors(observed, predicted)
        explanations[name] = {key: estimate(values, drawn) for key, values in errors.items()}
        explanations[name]["from_original"] = {
            key: float(values[pairs.from_original].mean()) if pairs.from_original.any() else None
            for key, values in errors.items()
        }
        explanations[name]["concepts"] = {
            concept.name: {
                key: float(values[pairs.concept == at].mean()) if (pairs.concept == at).any() else None
                for key, values in errors.items()
            }
            for at, concept in enumerate(subject.model.concepts)
        }
    return {
        "pairs": len(pairs.base),
        "pairs_from_original": int(pairs.from_original.sum()),
        "observed_norm": float(np.linalg.norm(observed, axis=1).mean()),
        "explanations": explanations,
    }


def masks(subject: Subject) -> dict[str, Any]:
    """Density by concept and layer, and overlap between concepts."""
    model = subject.model
    units = torch.cat((model.masks.heads, model.masks.neurons), -1).double()
    layers = [model.trunk + at for at in range(model.branch_layers)]
    by_layer = units.mean(-1)
    if model.weight_masks is not None:
        weights = model.weight_masks.matrices.values()
        kept = torch.stack([mask.flatten(2).double().sum(-1) for mask in weights]).sum(0)
        by_layer = kept / sum(mask[0, 0].numel() for mask in weights)
    return {
        "granularity": model.granularity,
        "density": model.density(),
        "sparsity": 1 - model.density(),
        "trunk": model.trunk,
        "trunk_density": model.trunk_masks.density(),
        "layers": layers,
        "concepts": {
            concept.name: {
                "density": float(by_layer[at].mean()),
                "by_layer": by_layer[at].tolist(),
                "heads": model.masks.heads[at].sum(-1).tolist(),
                "neurons": model.masks.neurons[at].sum(-1).tolist(),
            }
            for at, concept in enumerate(model.concepts)
        },
        "overlap": model.overlap().double().tolist(),
    }


def summary(name: str, subject: Subject, against: Subject) -> dict[str, Any]:
    """One row of a comparison: density, accuracies with intervals, and their paired difference from another model's."""
    figures = judge(subject.model, subject.data, subject.output)
    row = {
        "name": name,
        "backbone": subject.checkpoint.config.backbone.name,
        "density": subject.model.density(),
        "sparsity": 1 - subject.model.density(),
        "label": estimate(subject.right, subject.drawn),
        "label_macro_f1": figures["label"]["macro_f1"],
        "label_difference": difference(against.right, subject.right, subject.drawn),
        "label_mcnemar": mcnemar(against.right, subject.right),
    }
    if not subject.checkpoint.config.knows_concepts:
        return row
    concepts, others = ((~one.mistaken).double().mean(1).numpy() for one in (subject, against))
    return row | {
        "concept": estimate(concepts, subject.drawn),
        "concept_macro_f1": figures["concept"]["macro_f1"],
        "concept_difference": difference(others, concepts, subject.drawn),
    }


# What share of the time each section takes, roughly, so that the time left can be told.
_WORK = {"reading": 0.05, "corrections": 0.02, "mask edits": 0.35, "faithfulness": 0.5, "leakage": 0.08}


def assess(
    checkpoint: Checkpoint,
    data: Dataset,
    split: str,
    pairs: Counterfactuals | str,
    compare: Sequence[tuple[str, Checkpoint]] = (),
    name: str = "",
    seed: int = 0,
    advance: Callable[[str, float], None] = lambda section, done: None,
) -> dict[str, Any]:
    """Everything that the report says of a checkpoint, as JSON values.

    Args:
        checkpoint: to judge.
        data: the texts, with the same concepts and labels.
        split: what they are called.
        pairs: the texts' counterfactual pairs, or why there are none.
        compare: further checkpoints of the same concepts and labels, with what to call them.
        name: what to call the checkpoint beside them.
        seed: of everything random.
        advance: told which section is at work and what share of the whole is done.
    """
    work = _WORK | {"reading": _WORK["reading"] * (1 + len(compare))}
    whole, before = sum(work.values()), 0.0  # of the work, and how much is done

    def section(title: str) -> Advance:
        start = before / whole
        advance(title, start)
        return lambda done: advance(title, min(start + work[title] * done / whole, 1.0))

    def finish(title: str) -> None:
        nonlocal before
        before += work[title]

    groups = None if isinstance(pairs, str) else pairs.groups
    told = section("reading")
    subject = read(checkpoint, data, groups, seed)
    told(1 / (1 + len(compare)))
    rows = [summary(name, subject, subject)]
    for number, (title, other) in enumerate(compare, start=2):
        rows.append(summary(title, read(other, data, groups, seed), subject))
        told(number / (1 + len(compare)))
    finish("reading")
    section("corrections")
    config = checkpoint.config
    found: dict[str, Any] = {
        "report_version": REPORT_VERSION,
        "model": {
            "name": config.name,
            "backbone": config.backbone.name,
            "max_tokens": config.max_tokens,
            "concepts": {concept.name: list(concept.values) for concept in config.concepts},
            "labels": config.labels,
        },
        "data": {
            "name": data.schema.name,
            "split": split,
            "texts": len(data),
            "truncated": subject.truncated,
            "groups": len(np.unique(subject.groups)),
        },
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed},
        "accuracy": accuracy(subject),
        "calibration": calibration(subject),
        "corrections": corrections(subject),
    }
    finish("corrections")
    found["mask_edits"] = mask_edits(subject, section("mask edits"))
    finish("mask edits")
    found["faithfulness"] = faithfulness(subject, section("faithfulness"))
    finish("faithfulness")
    found["leakage"] = leakage(subject, section("leakage"))
    found["counterfactuals"] = {"note": pairs} if isinstance(pairs, str) else counterfactual_effects(subject, pairs)
    found["masks"] = masks(subject)
    found["comparison"] = rows if compare else []
    advance("done", 1.0)
    return found
