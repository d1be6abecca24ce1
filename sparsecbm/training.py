"""Joint training of concepts and label, while the masks are pruned and some concepts are corrected."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecbm.data import Dataset
from sparsecbm.errors import TrainingError
from sparsecbm.evaluation import evaluate
from sparsecbm.model import Bottleneck, SparseCBM, corrected
from sparsecbm.pruning import Pruner, Schedule
from sparsecbm.recipe import Recipe
from sparsecbm.tokens import batches, pad


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run reports: after every step, and with ``figures`` after every epoch."""

    step: int
    steps: int
    epoch: int
    loss: float
    density: float
    figures: dict[str, Any] | None = None
    best: bool = False


def natively_bf16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def seed_everything(seed: int) -> None:
    """Seeds every generator that training draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def joint_loss(model: SparseCBM, output: Bottleneck, batch: Targets, recipe: Recipe) -> Tensor:
    """Mean concept cross-entropy plus the label's, with a random part of the concepts corrected.

    Args:
        model: whose label head is used.
        output: of the model.
        batch: what it should have said.
        recipe: weights and rates.
    """
    logits = output.logits.float()
    log_chances = logits.log_softmax(-1).clamp(min=-1e4)  # -inf at values that a concept lacks
    concept_loss = -(batch.concept_shares * log_chances).sum(-1).mean()
    told = torch.rand(batch.concepts.shape) < recipe.correction_rate
    mixture = corrected(logits.softmax(-1), torch.where(told, batch.concepts, -1))
    label_loss = F.cross_entropy(model.label_logits(mixture, output.vectors.float()), batch.label_shares)
    return concept_loss + recipe.label_weight * label_loss


class Targets(NamedTuple):
    """What a batch should be answered with.

    Shapes: concepts [batch, concepts] int64; concept_shares [batch, concepts, values] and label_shares
    [batch, labels], target distributions.
    """

    concepts: Tensor
    concept_shares: Tensor
    label_shares: Tensor

    @classmethod
    def of(cls, data: Dataset, rows: np.ndarray, vote_weight: float) -> Targets:
        """The targets of some rows, between the majority's choice and the annotators' votes."""

        def mix(choices: np.ndarray, votes: np.ndarray) -> Tensor:
            chosen = np.eye(votes.shape[-1], dtype=np.float32)[choices]
            return torch.from_numpy(chosen + np.float32(vote_weight) * (votes - chosen))

        return cls(
            torch.from_numpy(data.concepts[rows]),
            mix(data.concepts[rows], data.concept_votes[rows]),
            mix(data.labels[rows], data.label_votes[rows]),
        )


class RunningMean:
    """Exponential running mean of a model's weights (Polyak & Juditsky 1992), its bias towards the start removed."""

    def __init__(self, model: SparseCBM, decay: float) -> None:
        self._decay = decay
        self._steps = 0
        self._means = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}

    def update(self, model: SparseCBM) -> None:
        """Takes in the weights of one more step."""
        self._steps += 1
        names, means = list(self._means), list(self._means.values())
        state = model.state_dict()
        torch._foreach_lerp_(means, [state[name] for name in names], 1 - self._decay)

    def weights(self) -> dict[str, Tensor]:
        """The mean, as a state of the model."""
        correction = 1 - self._decay**self._steps
        return {name: mean / correction for name, mean in self._means.items()}


def _optimizer(model: SparseCBM, recipe: Recipe) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and "bias" not in name
        groups.setdefault((name.startswith("backbone."), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": recipe.learning_rate if in_backbone else recipe.head_learning_rate,
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
            for (in_backbone, decays), parameters in groups.items()
        ],
        fused=True,
    )


def train(
    model: SparseCBM,
    data: Dataset,
    ids: Sequence[np.ndarray],
    validation: Dataset,
    validation_ids: Sequence[np.ndarray],
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Trains and prunes a model in place; it ends with the weights of its best epoch at the final density.

    The best epoch is the one with the highest sum of concept and label accuracy on the validation split.

    Args:
        model: dense, with a pretrained backbone.
        data: training split, with ``ids`` its token ids.
        ids: one [length] array per text.
        validation: split that chooses the epoch.
        validation_ids: its token ids.
        recipe: settings.
        report: called after every step and every epoch.

    Returns:
        The best epoch's figures on the validation split.

    Raises:
        TrainingError: the loss is no longer finite.
    """
    seed_everything(recipe.seed)
    generator = np.random.default_rng(recipe.seed)
    per_epoch = math.ceil(len(data) / recipe.batch_size)
    steps = per_epoch * recipe.epochs
    warmup = max(1, int(recipe.warmup * steps))
    optimizer = _optimizer(model, recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    schedule = Schedule(int(recipe.prune_start * per_epoch), int(recipe.prune_end * per_epoch), recipe.density)
    cut_every = max(1, per_epoch // recipe.prune_cuts)
    pruner = Pruner(model.masks)
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and natively_bf16())
    lengths = np.array([len(row) for row in ids])
    mean: RunningMean | None = None
    best: dict[str, Any] | None = None
    best_state: dict[str, Any] = {}
    step = 0
    for epoch in range(recipe.epochs):
        model.train()
        for chosen in batches(lengths, recipe.batch_size, generator):
            padded, mask = pad([ids[index] for index in chosen], model.backbone.config.pad_id)
            pruning = recipe.density < 1 and schedule.start <= step + cut_every and step <= schedule.end
            gates = pruner.gates(len(chosen)) if pruning else None
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                output = model(torch.from_numpy(padded), torch.from_numpy(mask), gates)
            loss = joint_loss(model, output, Targets.of(data, chosen, recipe.vote_weight), recipe)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step} of epoch {epoch}; lower the learning rate "
                    f"(now {recipe.learning_rate:g}) or train with --precision fp32."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"the gradient is not finite at step {step} of epoch {epoch}; lower the learning rate "
                    f"(now {recipe.learning_rate:g}) or train with --precision fp32."
                )
            optimizer.step()
            scheduler.step()
            step += 1
            if pruning:
                pruner.observe()
                if (step - schedule.start) % cut_every == 0 or step >= schedule.end:
                    pruner.prune(schedule.at(step))
            if recipe.average and (recipe.density == 1 or step >= schedule.end):
                mean = mean or RunningMean(model, recipe.average)
                mean.update(model)
            report(Progress(step, steps, epoch, loss.item(), model.masks.density()))
        finished = recipe.density == 1 or step >= schedule.end
        trained = model.state_dict() if mean is None else copy.deepcopy(model.state_dict())
        if mean is not None:
            model.load_state_dict(mean.weights())
        figures = evaluate(model, validation, validation_ids)
        better = finished and (best is None or _merit(figures) > _merit(best))
        if better:
            best = figures
            best_state = copy.deepcopy(model.state_dict())
        if mean is not None:
            model.load_state_dict(trained)
        report(Progress(step, steps, epoch, loss.item(), model.masks.density(), figures, better))
    assert best is not None
    model.load_state_dict(best_state)
    model.eval()
    return best


def _merit(figures: dict[str, Any]) -> float:
    return float(figures["concept"]["accuracy"] + figures["label"]["accuracy"])
