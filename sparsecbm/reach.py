"""How far a correction should move the label: fitted on texts that training did not see.

In training, concepts are mostly right, so the label head hardly meets mistakes, and what it learned of the values may
be too much or too little for a text that says something else. A correction therefore goes only part of the way, the
``reach``, from the mixture that the model read to the value's own vector. What is predicted without corrections does
not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecbm.data import Dataset
from sparsecbm.evaluation import Outputs, run
from sparsecbm.model import SparseCBM, corrected

REACHES = tuple(step / 20 for step in range(1, 21))


@torch.no_grad()
def with_reach(model: SparseCBM, output: Outputs, reach: float) -> Outputs:
    """What a model would have put out at another reach than its own.

    Args:
        model: that gave the output, at the reach that it still has.
        output: of N texts.
        reach: in (0, 1].
    """
    own = model.value_vectors
    read = torch.einsum("bkv,kvw->bkw", output.logits.softmax(-1), own)[:, :, None]
    return Outputs(output.logits, output.vectors + (reach - model.reach) * (own - read))


@torch.no_grad()
def best_reach(model: SparseCBM, output: Outputs, truth: Tensor, labels: Tensor) -> float:
    """The reach at which the label's log loss is least once every concept has its true value.

    Args:
        model: that gave the output, at the reach that it still has.
        output: of N texts that training did not see.
        truth: [N, concepts] int64.
        labels: [N] int64.

    Returns:
        One of ``REACHES``.
    """
    mixture = corrected(output.logits.softmax(-1), truth)
    losses = [
        F.cross_entropy(model.label_logits(mixture, with_reach(model, output, reach).vectors), labels).item()
        for reach in REACHES
    ]
    return REACHES[int(np.argmin(losses))]


def fit_reach(model: SparseCBM, data: Dataset, ids: Sequence[np.ndarray]) -> float:
    """Sets a model's reach to the one at which the label's log loss is least once every concept has its true value.

    Args:
        model: trained; its reach is set in place.
        data: texts that training did not see.
        ids: the texts as token ids.

    Returns:
        The reach, one of ``REACHES``.
    """
    device, found = model.head_bias.device, run(model, ids)
    output = Outputs(found.logits.to(device), found.vectors.to(device))
    truth, labels = torch.from_numpy(data.concepts).to(device), torch.from_numpy(data.labels).to(device)
    model.reach = best_reach(model, output, truth, labels)
    return model.reach
