"""What corrections at concept level do to the label: which concept to ask about, and accuracy by how many are set."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsecbm.evaluation import Outputs
from sparsecbm.model import SparseCBM, corrected


@torch.no_grad()
def expected_gains(model: SparseCBM, mixture: Tensor, vectors: Tensor) -> Tensor:
    """How far the label's distribution is expected to move if a human set a concept; it ranks ``ask_next``.

    For concept k: Σ_v p(v) · TV(label with k set to v, label as it is), where TV is the total variation.

    Args:
        model: whose label head is used.
        mixture: [N, concepts, values], probabilities, or one-hot where corrected.
        vectors: [N, concepts, values, width].

    Returns:
        [N, concepts] in [0, 1].
    """
    certain = torch.einsum("bkvw,ykw->bkvy", vectors, model.head_weight)
    contributions = torch.einsum("bkw,ykw->bky", model.activations(mixture, vectors), model.head_weight)
    logits = contributions.sum(1) + model.head_bias
    others = (logits[:, None] - contributions)[:, :, None]  # [N, concepts, 1, labels]
    moved = ((others + certain).softmax(-1) - logits.softmax(-1)[:, None, None]).abs().sum(-1) / 2
    return (mixture * moved).sum(-1)


@torch.no_grad()
def correct_one_by_one(
    model: SparseCBM, output: Outputs, truth: Tensor, eligible: Tensor, priority: Tensor | None = None
) -> Tensor:
    """The label that a model gives after 0, 1, … K of a text's concepts are set to their true value.

    Args:
        model: whose label head is used.
        output: of N texts.
        truth: [N, concepts] int64.
        eligible: [N, concepts] bool, concepts that may be set; a text that has no more of them stays as it is.
        priority: [N, concepts], higher comes first; by default the expected gain, looked at again after
            every answer, as someone does who always answers the first question of ``ask_next``.

    Returns:
        [concepts + 1, N, labels], the label's logits.
    """
    probabilities = output.logits.softmax(-1)
    values = torch.full_like(truth, -1)
    steps = []
    for _ in range(truth.shape[1] + 1):
        mixture = corrected(probabilities, values)
        steps.append(model.label_logits(mixture, output.vectors))
        rank = expected_gains(model, mixture, output.vectors) if priority is None else priority
        open_ = eligible & (values < 0)
        chosen = rank.masked_fill(~open_, -torch.inf).argmax(1, keepdim=True)
        value = torch.where(open_.gather(1, chosen), truth.gather(1, chosen), values.gather(1, chosen))
        values = values.scatter(1, chosen, value)
    return torch.stack(steps)
