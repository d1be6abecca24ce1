"""Joint training of concepts and label, while the masks are pruned and some concepts are corrected."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecbm.data import Dataset
from sparsecbm.errors import TrainingError
from sparsecbm.evaluation import evaluate
from sparsecbm.model import Bottleneck, SparseCBM, corrected
from sparsecbm.pruning import Pruner, Schedule
from sparsecbm.tokens import batches, pad


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes:
        epochs: passes over the training split.
        batch_size: texts per step.
        learning_rate: peak, of the backbone.
        head_learning_rate: peak, of the concept layers and the label head.
        weight_decay: of AdamW, on matrices.
        warmup: share of all steps in which the learning rate rises; then it falls linearly to 0.
        density: share of branch units kept in the end.
        prune_start: epoch (from 0, may be a fraction) at which pruning starts.
        prune_end: epoch by which the final density is reached.
        prune_cuts: cuts per epoch while pruning.
        correction_rate: chance that a concept is replaced by its true value before the label head.
        label_weight: of the label's loss beside the concepts' mean loss.
        precision: ``fp32``, ``bf16``, or ``auto`` (bf16 where the processor multiplies it natively).
        seed: of everything random.
    """

    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    density: float = 0.32
    prune_start: float = 1.0
    prune_end: float = 6.0
    prune_cuts: int = 4
    correction_rate: float = 0.25
    label_weight: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0

    def check(self) -> None:
        """Raises TrainingError where a setting makes no sense."""
        if not 0 < self.density <= 1:
            raise TrainingError(f"density must be above 0 and at most 1, got {self.density}.")
        if self.epochs < 1 or self.batch_size < 1 or self.prune_cuts < 1:
            raise TrainingError("epochs, batch size and cuts per epoch must be at least 1.")
        if not 0 <= self.prune_start <= self.prune_end <= self.epochs:
            raise TrainingError(
                f"pruning must start and end within the run: 0 <= {self.prune_start} <= {self.prune_end} <= "
                f"{self.epochs} epochs doesn't hold."
            )
        if self.density < 1 and self.prune_end > self.epochs - 1:
            raise TrainingError(
                f"at least one epoch must follow pruning, or no model of the final density is trained: prune_end is "
                f"{self.prune_end}, epochs {self.epochs}."
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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


def joint_loss(
    model: SparseCBM, output: Bottleneck, concepts: Tensor, labels: Tensor, config: TrainingConfig
) -> Tensor:
    """Mean concept cross-entropy plus the label's, with a random part of the concepts corrected.

    Args:
        model: whose label head is used.
        output: of the model.
        concepts: [batch, concepts] true values.
        labels: [batch] true labels.
        config: weights and rates.
    """
    logits = output.logits.float()
    concept_loss = F.cross_entropy(logits.flatten(0, 1), concepts.flatten())
    told = torch.rand(concepts.shape) < config.correction_rate
    mixture = corrected(logits.softmax(-1), torch.where(told, concepts, -1))
    label_loss = F.cross_entropy(model.label_logits(mixture, output.vectors.float()), labels)
    return concept_loss + config.label_weight * label_loss


def _optimizer(model: SparseCBM, config: TrainingConfig) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and "bias" not in name
        groups.setdefault((name.startswith("backbone."), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.learning_rate if in_backbone else config.head_learning_rate,
                "weight_decay": config.weight_decay if decays else 0.0,
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
    config: TrainingConfig,
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
        config: settings.
        report: called after every step and every epoch.

    Returns:
        The best epoch's figures on the validation split.

    Raises:
        TrainingError: a setting makes no sense, or the loss is no longer finite.
    """
    config.check()
    seed_everything(config.seed)
    generator = np.random.default_rng(config.seed)
    per_epoch = math.ceil(len(data) / config.batch_size)
    steps = per_epoch * config.epochs
    warmup = max(1, int(config.warmup * steps))
    optimizer = _optimizer(model, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    schedule = Schedule(int(config.prune_start * per_epoch), int(config.prune_end * per_epoch), config.density)
    cut_every = max(1, per_epoch // config.prune_cuts)
    pruner = Pruner(model.masks)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and natively_bf16())
    lengths = np.array([len(row) for row in ids])
    best: dict[str, Any] | None = None
    best_state: dict[str, Any] = {}
    step = 0
    for epoch in range(config.epochs):
        model.train()
        for chosen in batches(lengths, config.batch_size, generator):
            padded, mask = pad([ids[index] for index in chosen], model.backbone.config.pad_id)
            pruning = config.density < 1 and schedule.start <= step + cut_every and step <= schedule.end
            gates = pruner.gates(len(chosen)) if pruning else None
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                output = model(torch.from_numpy(padded), torch.from_numpy(mask), gates)
            loss = joint_loss(
                model,
                output,
                torch.from_numpy(data.concepts[chosen]),
                torch.from_numpy(data.labels[chosen]),
                config,
            )
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step} of epoch {epoch}; lower the learning rate "
                    f"(now {config.learning_rate:g}) or train with --precision fp32."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            step += 1
            if pruning:
                pruner.observe()
                if (step - schedule.start) % cut_every == 0 or step == schedule.end:
                    pruner.prune(schedule.at(step))
            report(Progress(step, steps, epoch, loss.item(), model.masks.density()))
        figures = evaluate(model, validation, validation_ids)
        finished = config.density == 1 or step >= schedule.end
        better = finished and (best is None or _merit(figures) > _merit(best))
        if better:
            best = figures
            best_state = copy.deepcopy(model.state_dict())
        report(Progress(step, steps, epoch, loss.item(), model.masks.density(), figures, better))
    assert best is not None
    model.load_state_dict(best_state)
    model.eval()
    return best


def _merit(figures: dict[str, Any]) -> float:
    return float(figures["concept"]["accuracy"] + figures["label"]["accuracy"])
