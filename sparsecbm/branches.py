"""One concept's branch by itself: the trunk runs once, and what is asked of one concept costs one branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsecbm.backbone import Gates, attention_bias, run_layer
from sparsecbm.model import SparseCBM, mean_over_tokens


class ConceptReading(NamedTuple):
    """What one branch gives: logits [batch, values] and vectors [batch, values, width]."""

    logits: Tensor
    vectors: Tensor


@torch.no_grad()
def read_trunk(model: SparseCBM, ids: Tensor, mask: Tensor) -> Tensor:
    """What all branches start from, [batch, length, hidden], of ids and mask [batch, length]."""
    return model.run_trunk(ids, attention_bias(mask, model.backbone.config.causal))


def read_branch(
    model: SparseCBM,
    shared: Tensor,
    mask: Tensor,
    concept: int,
    gates: Sequence[Gates] | None = None,
    linear: bool = False,
) -> ConceptReading:
    """Runs a concept's branch.

    Args:
        model: in evaluation mode.
        shared: [batch, length, hidden], of ``read_trunk``.
        mask: [batch, length], 1 at tokens.
        concept: which one.
        gates: per branch layer, multipliers on *all* its units, in place of the concept's own mask.
        linear: whether derivatives are the conservative ones, as in ``attribution``.
    """
    config = model.backbone.config
    bias = attention_bias(mask, config.causal)
    hidden = shared
    if gates is None:
        for weights in model.branch_weights(concept):
            hidden = run_layer(hidden, bias, weights, config, linear=linear)
    else:
        for position, gate in enumerate(gates):
            hidden = run_layer(hidden, bias, model.full_weights(concept, position), config, gate, linear=linear)
    pooled = mean_over_tokens(model.backbone.finish(hidden, linear), mask)[:, None].expand(-1, len(model.concepts), -1)
    logits, vectors = model.read_concepts(pooled)
    return ConceptReading(logits[:, concept], vectors[:, concept])
