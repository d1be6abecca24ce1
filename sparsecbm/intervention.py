"""Mask-level interventions: the smallest edit of a concept's mask that brings it to a value, for many texts at once.

The PyTorch twin of what a served bundle does for one request, by the same conservative derivatives (see
``attribution``). Units are numbered through: branch layer by layer, in each its heads, then its neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsecbm.backbone import Gates
from sparsecbm.branches import read_branch, read_trunk
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import batches, pad


@dataclass(frozen=True, slots=True)
class EditSettings:
    """How masks are edited.

    Attributes:
        budget: most units to change, as a share of those that the concept keeps.
        step: units changed between two looks at the result, likewise.
        batch: texts edited at a time.
    """

    budget: float = 0.03
    step: float = 0.0025
    batch: int = 64


class Edited(NamedTuple):
    """M texts after the edits of one concept's mask.

    Attributes:
        logits: [M, values].
        vectors: [M, values, width].
        masks: [M, units] bool.
        changed: [M] int64, units dropped or grown.
        reached: [M] bool, whether the concept's most probable value is the one asked for.
    """

    logits: Tensor
    vectors: Tensor
    masks: Tensor
    changed: Tensor
    reached: Tensor


def join_units(heads: Tensor, neurons: Tensor) -> Tensor:
    """[.., layers, heads] and [.., layers, neurons] to [.., units]."""
    return torch.cat((heads, neurons), -1).flatten(-2)


def split_units(units: Tensor, layers: int, heads: int) -> list[Gates]:
    """[batch, units] to each layer's heads [batch, heads] and neurons [batch, neurons]."""
    by_layer = units.unflatten(-1, (layers, -1))
    return [Gates(by_layer[:, layer, :heads], by_layer[:, layer, heads:]) for layer in range(layers)]


def contrast(values: Tensor, present: Tensor) -> Tensor:
    """Weights of "this value rather than the others": 1 at it, and the others share -1.

    Args:
        values: [..] int64.
        present: [.., values] bool, whether the concept has the value.
    """
    chosen = torch.nn.functional.one_hot(values, present.shape[-1]).bool()
    others = (present & ~chosen).float()
    return chosen.float() - others / others.sum(-1, keepdim=True).clamp(min=1)


def lead(values: Tensor, logits: Tensor) -> Tensor:
    """Weights of "this value's lead over its strongest rival": 1 at it, -1 at the highest of the others.

    Args:
        values: [..] int64.
        logits: [.., values], as last looked at; -inf at values that the concept lacks.
    """
    chosen = torch.nn.functional.one_hot(values, logits.shape[-1])
    rival = logits.masked_fill(chosen.bool(), -torch.inf).argmax(-1)
    return (chosen - torch.nn.functional.one_hot(rival, logits.shape[-1])).float()


def edit_units(masks: Tensor, base: Tensor, gradient: Tensor, counts: Tensor) -> Tensor:
    """Flips the units that promise to raise each text's corrected value most.

    Dropping a kept unit is expected to change the objective by minus its gradient, growing a pruned one by
    its gradient. Units that were flipped before are left alone, and so are those that promise nothing.

    Args:
        masks: [M, units] bool, as they stand.
        base: [units] bool, before any edit.
        gradient: [M, units], of the objective by each unit's gate.
        counts: [M] int64, most units to flip.

    Returns:
        The edited masks.
    """
    promise = torch.where(masks, -gradient, gradient).masked_fill(masks != base, -torch.inf)
    most = min(int(counts.max()), promise.shape[1])
    best = promise.topk(most, dim=1)
    wanted = (torch.arange(most) < counts[:, None]) & (best.values > 0)
    return masks ^ torch.zeros_like(masks).scatter(1, best.indices, wanted)


def edit_masks(
    model: SparseCBM,
    ids: Sequence[np.ndarray],
    concept: int,
    targets: np.ndarray,
    settings: EditSettings | None = None,
    advance: Callable[[int], None] = lambda texts: None,
) -> Edited:
    """Edits one concept's mask for each of M texts until it reaches a value or the budget is spent.

    Args:
        model: in evaluation mode; not changed.
        ids: token ids of the M texts.
        concept: whose mask.
        targets: [M] int64, index of the value asked for.
        settings: of the edit.
        advance: told how many more texts are done.
    """
    settings = settings or EditSettings()
    base = join_units(model.masks.heads, model.masks.neurons)
    width = model.absent_values.shape[1]
    found = Edited(
        torch.empty(len(ids), width),
        torch.empty(len(ids), width, model.width),
        base[concept].repeat(len(ids), 1),
        torch.zeros(len(ids), dtype=torch.int64),
        torch.zeros(len(ids), dtype=torch.bool),
    )
    kept = base.sum(1).tolist()
    budgets = [max(1, int(settings.budget * count)) for count in kept]
    steps = [max(1, math.ceil(settings.step * count)) for count in kept]
    rounds = max(math.ceil(budget / step) for budget, step in zip(budgets, steps, strict=True))
    wanted = torch.from_numpy(np.asarray(targets, dtype=np.int64))
    lengths = np.array([len(row) for row in ids])
    for chosen in batches(lengths, settings.batch):
        padded, mask = (
            torch.from_numpy(array) for array in pad([ids[row] for row in chosen], model.backbone.config.pad_id)
        )
        shared = read_trunk(model, padded, mask)
        active = torch.arange(len(chosen))  # positions in this batch
        rows = torch.from_numpy(chosen)
        found.logits[rows] = _look(model, shared, mask, concept, found.masks[rows]).logits
        for turn in range(rounds + 1):
            here = rows[active]
            weights = lead(wanted[here], found.logits[here]) if turn < rounds else None
            looked = _look(model, shared[active], mask[active], concept, found.masks[here], weights)
            found.logits[here], found.vectors[here], gradient = looked
            found.reached[here] = looked.logits.argmax(-1) == wanted[here]
            open_ = ~found.reached[here]
            active, here = active[open_], here[open_]
            if gradient is None or not len(active):
                break
            spent = (found.masks[here] != base[concept]).sum(1)
            counts = (budgets[concept] - spent).clamp(0, steps[concept])
            found.masks[here] = edit_units(found.masks[here], base[concept], gradient[open_], counts)
        advance(len(chosen))
    found.changed[:] = (found.masks != base[concept]).sum(1)
    return found


def edit_at_budgets(
    model: SparseCBM,
    ids: Sequence[np.ndarray],
    concept: int,
    targets: np.ndarray,
    budgets: Sequence[float],
    advance: Callable[[int], None] = lambda texts: None,
) -> list[Edited]:
    """The edits of ``edit_masks`` at each of several budgets, in the order of the budgets, which rise.

    A text that got there without spending a budget goes the same way under every larger one, so it isn't
    edited again; ``advance`` is told of it all the same.
    """
    found: list[Edited] = []
    kept = int(model.masks.heads[concept].sum() + model.masks.neurons[concept].sum())
    again = torch.ones(len(ids), dtype=torch.bool)
    for budget in budgets:
        rows = again.nonzero()[:, 0]
        advance(len(ids) - len(rows))
        chosen = [ids[row] for row in rows.tolist()]
        edited = edit_masks(model, chosen, concept, targets[rows.numpy()], EditSettings(budget), advance)
        if found:
            edited = Edited(*(old.index_copy(0, rows, new) for old, new in zip(found[-1], edited, strict=True)))
        found.append(edited)
        again = ~(edited.reached & (edited.changed < max(1, int(budget * kept))))
    return found


class _Looked(NamedTuple):
    """What a branch says of M texts, and [M, units] how its weighted logits change with every unit's gate."""

    logits: Tensor
    vectors: Tensor
    gradient: Tensor | None


def _look(
    model: SparseCBM, shared: Tensor, mask: Tensor, concept: int, masks: Tensor, weights: Tensor | None = None
) -> _Looked:
    """Runs a branch under masks [M, units]; with weights [M, values] of the logits, looks for the gradient too."""
    units = masks.float().requires_grad_(weights is not None)
    gates = split_units(units, model.branch_layers, model.backbone.config.heads)
    with torch.set_grad_enabled(weights is not None):
        reading = read_branch(model, shared, mask, concept, gates, linear=True)
        if weights is None:
            return _Looked(*reading, None)
        objective = torch.where(weights != 0, reading.logits * weights, 0.0).sum()
        (gradient,) = torch.autograd.grad(objective, units)
    return _Looked(reading.logits.detach(), reading.vectors.detach(), gradient)


@torch.no_grad()
def untouched_difference(model: SparseCBM, ids: Sequence[np.ndarray], concept: int, masks: Tensor) -> float:
    """Largest change of the *other* concepts' logits when whole models run with one concept's edited masks.

    Every branch is run with gates over all units, as a served explanation graph does; the edited masks are
    given to their concept alone. It is 0 but for rounding, since branches share nothing above the trunk.

    Args:
        model: in evaluation mode.
        ids: token ids of M texts.
        concept: whose masks were edited.
        masks: [M, units] bool.
    """
    largest = 0.0
    own = join_units(model.masks.heads, model.masks.neurons).float()
    for row, text in enumerate(ids):
        padded = torch.from_numpy(text)[None]
        mask = torch.ones_like(padded)
        before = model(padded, mask).logits[0]
        shared = read_trunk(model, padded, mask)
        for other in range(len(model.concepts)):
            units = masks[row].float() if other == concept else own[other]
            gates = split_units(units[None], model.branch_layers, model.backbone.config.heads)
            after = read_branch(model, shared, mask, other, gates).logits[0]
            if other != concept:
                present = model.absent_values[other] == 0
                largest = max(largest, float((after - before[other])[present].abs().max()))
    return largest
