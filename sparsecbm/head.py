"""The label head, fitted by itself on what the concepts say: the second stage of sequential training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparsecbm.evaluation import run
from sparsecbm.losses import ClassWeights, Targets, label_loss
from sparsecbm.model import Bottleneck, SparseCBM
from sparsecbm.recipe import Recipe


def fit_head(
    model: SparseCBM, ids: Sequence[np.ndarray], targets: Targets, weights: ClassWeights, recipe: Recipe
) -> None:
    """Fits the values' constant vectors and the label head, in place, to predicted concepts; all else is frozen.

    The text's part of the vectors must be zero, so that the label hears of the text only what the concepts'
    probabilities say. The concepts are predicted once.

    Args:
        model: with trained concepts.
        ids: one [length] array per text of the training split.
        targets: of those texts.
        weights: of the labels.
        recipe: epochs, batch size, learning rate of the head, corrections, seed.
    """
    torch.manual_seed(recipe.seed)
    generator = np.random.default_rng(recipe.seed)
    device = model.head_bias.device
    logits = run(model, ids).logits.to(device).clone()  # outside inference mode
    optimizer = torch.optim.AdamW(
        model.head_parameters(), lr=recipe.head_learning_rate, weight_decay=recipe.weight_decay
    )
    steps = recipe.epochs * -(-len(ids) // recipe.batch_size)
    step = 0
    for _ in range(recipe.epochs):
        order = generator.permutation(len(ids))
        for rows in np.split(order, range(recipe.batch_size, len(order), recipe.batch_size)):
            optimizer.param_groups[0]["lr"] = recipe.head_learning_rate * (steps - step) / steps
            vectors = model.value_vectors.expand(len(rows), -1, -1, -1)
            chosen = targets.rows(rows)
            output = Bottleneck(logits[torch.from_numpy(rows).to(device)], vectors)
            loss = label_loss(model, output, chosen, weights, recipe.correction_rate)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
