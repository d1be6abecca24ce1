"""Whether the tokens that an attribution names are those that a concept goes by (ERASER, DeYoung et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsecbm.attribution import attribute
from sparsecbm.branches import read_branch, read_trunk
from sparsecbm.intervention import contrast
from sparsecbm.model import SparseCBM
from sparsecbm.token_scores import (
    STEPS,
    gradient_times_input,
    integrated_gradients,
    leave_one_out,
    random_scores,
)
from sparsecbm.tokens import batches, pad

Method = Callable[[SparseCBM, Tensor, Tensor, Tensor], Tensor]

SERVED = "conservative propagation"


def conservative(model: SparseCBM, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """The scores that are exported and served, [batch, concepts, length]; see ``attribution``."""
    return attribute(model, ids, mask, weights).tokens


METHODS: dict[str, Method] = {
    SERVED: conservative,
    "gradient × input": gradient_times_input,
    "integrated gradients": integrated_gradients,
    "leave one out": leave_one_out,
    "random": random_scores,
}
SHARES = (0.1, 0.2, 0.5)
_ROWS = 256  # texts with tokens hidden that run together


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What one method's tokens are worth.

    Attributes:
        comprehensiveness: [N, concepts, shares], by how much the probability of the predicted value falls
            without the highest tokens; more is better.
        sufficiency: [N, concepts, shares], by how much it falls with these alone; less is better.
        forward: passes per text.
        backward: passes per text.
    """

    comprehensiveness: np.ndarray
    sufficiency: np.ndarray
    forward: float
    backward: float


def highest(scores: Tensor, removable: Tensor, share: float) -> Tensor:
    """[rows, length] bool, each row's highest share of its removable tokens, at least one where there is any.

    Args:
        scores: [rows, length].
        removable: [rows, length] bool.
        share: of the removable tokens, in (0, 1]; rounded up.
    """
    counts = torch.tensor([math.ceil(share * int(count) - 1e-9) for count in removable.sum(1)])
    order = scores.masked_fill(~removable, -torch.inf).argsort(stable=True, dim=1, descending=True)
    rank = order.argsort(1)
    chosen: Tensor = removable & (rank < counts[:, None])
    return chosen


@torch.no_grad()
def _probability(model: SparseCBM, ids: Tensor, masks: Tensor, concept: int, values: Tensor) -> Tensor:
    """[variants, batch] probability of a value per text under masks [variants, batch, length]."""
    rows = ids.repeat(len(masks), 1)
    flat = masks.flatten(0, 1)
    wanted = values.repeat(len(masks))
    found = []
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        shared = read_trunk(model, rows[part], flat[part])
        chances = read_branch(model, shared, flat[part], concept).logits.softmax(-1)
        found.append(chances.gather(1, wanted[part, None])[:, 0])
    return torch.cat(found).view(len(masks), -1)


def measure(
    model: SparseCBM,
    ids: Sequence[np.ndarray],
    special: Collection[int],
    batch: int = 16,
    seed: int = 0,
    advance: Callable[[int], None] = lambda texts: None,
) -> dict[str, Faithfulness]:
    """Comprehensiveness and sufficiency of every method, for each concept's predicted value.

    A removed token is hidden from attention and from pooling, and the others keep their positions; special
    tokens always stay. What is explained is the value's logit less the mean of the others', as served.

    Args:
        model: in evaluation mode.
        ids: token ids of N texts.
        special: ids of the tokeniser's special tokens.
        batch: texts at a time.
        seed: of the random scores.
        advance: told how many more texts are done.
    """
    torch.manual_seed(seed)
    concepts, count = len(model.concepts), len(ids)
    comprehensiveness = {name: np.zeros((count, concepts, len(SHARES))) for name in METHODS}
    sufficiency = {name: np.zeros((count, concepts, len(SHARES))) for name in METHODS}
    specials = torch.tensor(sorted(special), dtype=torch.int64)
    lengths = np.array([len(row) for row in ids])
    for chosen in batches(lengths, batch):
        padded, mask = (
            torch.from_numpy(array) for array in pad([ids[row] for row in chosen], model.backbone.config.pad_id)
        )
        removable = (mask == 1) & ~torch.isin(padded, specials)
        with torch.no_grad():
            logits = model(padded, mask).logits
        values = logits.argmax(-1)
        weights = contrast(values, torch.isfinite(logits))
        scores = {name: method(model, padded, mask, weights) for name, method in METHODS.items()}
        for concept in range(concepts):
            variants = [mask]
            for by_concept in scores.values():
                for share in SHARES:
                    top = highest(by_concept[:, concept], removable, share)
                    variants += [mask * ~top, mask * (top | ~removable)]
            chances = _probability(model, padded, torch.stack(variants), concept, values[:, concept]).numpy()
            falls = (chances[0] - chances[1:]).reshape(len(METHODS), len(SHARES), 2, -1)
            for name, fall in zip(METHODS, falls, strict=True):
                comprehensiveness[name][chosen, concept] = fall[:, 0].T
                sufficiency[name][chosen, concept] = fall[:, 1].T
        advance(len(chosen))
    tokens = float(lengths.mean())
    cost = {
        SERVED: (1.0, float(concepts)),
        "gradient × input": (1.0, float(concepts)),
        "integrated gradients": (float(STEPS), float(STEPS * concepts)),
        "leave one out": (1 + tokens, 0.0),
        "random": (0.0, 0.0),
    }
    return {name: Faithfulness(comprehensiveness[name], sufficiency[name], *cost[name]) for name in METHODS}
