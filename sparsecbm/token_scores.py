"""Further ways to say which tokens speak for a concept's value, to judge those of ``attribution`` against.

Each takes a model in evaluation mode, ids and mask [batch, length], and weights [batch, concepts, values] of the
logit sum s that is explained, and gives [batch, concepts, length] scores: higher speaks for s.

| method | forward passes | backward passes |
| --- | --- | --- |
| ``gradient_times_input`` | 1 | one per concept |
| ``integrated_gradients`` | steps | steps per concept |
| ``leave_one_out`` | one per token, and 1 | 0 |
| ``random_scores`` | 0 | 0 |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from sparsecbm.model import SparseCBM

STEPS = 8
_ROWS = 256  # texts with a token left out that run together
_TABLE = "backbone.embeddings.token"


def weighted_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """The sums s [batch, concepts] that are explained; logits of absent values count as 0."""
    sums: Tensor = torch.where(weights != 0, logits * weights, 0.0).sum(-1)
    return sums


def _gradients(model: SparseCBM, embedded: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """[batch, concepts, length, hidden] derivatives of s by token embeddings [batch, length, hidden].

    The embedding table is replaced by one with a row for every token of the batch, so that all of the model's
    own code runs, whatever its family.
    """
    batch, length, _ = embedded.shape
    table = embedded.detach().flatten(0, 1).requires_grad_()
    rows = torch.arange(batch * length).view(batch, length)
    output = functional_call(model, {_TABLE: table}, (rows, mask))
    sums = weighted_logits(output.logits, weights).sum(0)
    by_concept: list[Tensor] = [torch.autograd.grad(part, table, retain_graph=True)[0] for part in sums]
    gradients: Tensor = torch.stack(by_concept).unflatten(1, (batch, length)).transpose(0, 1)
    return gradients


def gradient_times_input(model: SparseCBM, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Derivative of s by each token's embedding, times that embedding (Shrikumar et al. 2017)."""
    embedded = F.embedding(ids, model.backbone.embeddings.token).detach()
    return (_gradients(model, embedded, mask, weights) * embedded[:, None]).sum(-1)


def integrated_gradients(model: SparseCBM, ids: Tensor, mask: Tensor, weights: Tensor, steps: int = STEPS) -> Tensor:
    """Mean gradient on the way from embeddings of zero, times the embedding (Sundararajan et al. 2017, equation 1).

    The path integral is a sum at ``steps`` midpoints. A text's scores add up to s less what s is at the baseline,
    but for the sum's error.
    """
    embedded = F.embedding(ids, model.backbone.embeddings.token).detach()
    total = torch.zeros(len(ids), len(model.concepts), *embedded.shape[1:], dtype=embedded.dtype)
    for step in range(steps):
        total += _gradients(model, embedded * ((step + 0.5) / steps), mask, weights)
    return (total / steps * embedded[:, None]).sum(-1)


@torch.no_grad()
def leave_one_out(model: SparseCBM, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """How far s falls when a token is hidden from attention and pooling (Li et al. 2016); 0 at padding."""
    whole = weighted_logits(model(ids, mask).logits, weights)
    scores = torch.zeros(len(ids), len(model.concepts), ids.shape[1], dtype=whole.dtype)
    texts, positions = mask.nonzero(as_tuple=True)
    for start in range(0, len(texts), _ROWS):
        text, position = texts[start : start + _ROWS], positions[start : start + _ROWS]
        hidden = mask[text].clone()
        hidden[torch.arange(len(text)), position] = 0
        without = weighted_logits(model(ids[text], hidden).logits, weights[text])
        scores[text, :, position] = whole[text] - without
    return scores


def random_scores(model: SparseCBM, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Scores that say nothing, by torch's global generator."""
    return torch.rand(len(ids), len(model.concepts), ids.shape[1])
