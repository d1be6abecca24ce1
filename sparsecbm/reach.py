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
from torch.nn import functional as F

from sparsecbm.data import Dataset
from sparsecbm.evaluation import run
from sparsecbm.model import SparseCBM, corrected

REACHES = tuple(step / 20 for step in range(1, 21))


@torch.inference_mode()
def fit_reach(model: SparseCBM, data: Dataset, ids: Sequence[np.ndarray]) -> float:
    """Sets a model's reach to the one at which the label's log loss is least once every concept has its true value.

    Args:
        model: trained; its reach is set in place.
        data: texts that training did not see.
        ids: the texts as token ids.

    Returns:
        The reach, one of ``REACHES``.
    """
    truth, labels = torch.from_numpy(data.concepts), torch.from_numpy(data.labels)
    losses = []
    model.reach = 1.0
    whole = run(model, ids)
    probabilities = whole.logits.softmax(-1)
    read = torch.einsum("bkv,bkvw->bkw", probabilities, whole.vectors)[:, :, None]
    for reach in REACHES:
        vectors = reach * whole.vectors + (1 - reach) * read
        losses.append(F.cross_entropy(model.label_logits(corrected(probabilities, truth), vectors), labels).item())
    model.reach = REACHES[int(np.argmin(losses))]
    return model.reach
