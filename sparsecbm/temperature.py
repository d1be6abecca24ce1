"""Temperatures that make probabilities mean what they say, folded into the weights (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparsecbm.calibration import fit_temperature
from sparsecbm.data import Dataset
from sparsecbm.evaluation import run
from sparsecbm.model import SparseCBM


@torch.no_grad()
def fit_temperatures(
    model: SparseCBM, data: Dataset, ids: Sequence[np.ndarray], concepts: bool = True
) -> dict[str, float]:
    """Divides the logits of every concept, and then of the label, by the temperature that suits them best.

    No concept's most probable value changes. The label hears the concepts' probabilities, so that it may change where
    it was nearly even. The label's temperature is of the model without corrections.

    Args:
        model: trained, its reach not fitted yet; changed in place.
        data: texts that training did not see.
        ids: the texts as token ids.
        concepts: whether the concepts' logits are divided too; not where the label reads these, or none was learned.

    Returns:
        The temperatures by concept, and ``label``'s; over 1 where the model was too sure.
    """
    output = run(model, ids)
    logits = output.logits.clone()
    found: dict[str, float] = {}
    if concepts:
        for at, concept in enumerate(model.concepts):
            values = len(concept.values)
            found[concept.name] = fit_temperature(logits[:, at, :values].numpy(), data.concepts[:, at])
            logits[:, at].div_(found[concept.name])
            model.logit_weight[at].div_(found[concept.name])
            model.logit_bias[at].div_(found[concept.name])
    device = model.head_bias.device
    label = model.label_logits(logits.softmax(-1).to(device), output.vectors.to(device))
    found["label"] = fit_temperature(label.cpu().numpy(), data.labels)
    model.head_weight.div_(found["label"])
    model.head_bias.div_(found["label"])
    return found
