"""Training of concepts and label, while the masks are pruned and some concepts are corrected."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsecbm import state as states
from sparsecbm.averaging import RunningMean
from sparsecbm.data import Dataset
from sparsecbm.device import autocast, defaults, move
from sparsecbm.errors import DataError, TrainingError
from sparsecbm.evaluation import evaluate
from sparsecbm.head import fit_head
from sparsecbm.losses import ClassWeights, Targets, concept_loss, label_loss
from sparsecbm.model import Bottleneck, SparseCBM
from sparsecbm.pruning import Pruner
from sparsecbm.reach import fit_reach
from sparsecbm.recipe import Recipe
from sparsecbm.schedules import Schedule
from sparsecbm.temperature import fit_temperatures
from sparsecbm.tokens import batches, pad

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run reports: after every step, and with ``figures`` after every epoch.

    Attributes:
        step: steps taken.
        steps: of the whole run.
        epoch: the present one, from 0.
        loss: of the last step, or the epoch's mean.
        density: of the branches' masks.
        learning_rate: of the backbone in the last step.
        figures: on the validation split.
        best: whether the epoch is the best so far.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    density: float
    learning_rate: float
    figures: dict[str, Any] | None = None
    best: bool = False


class Trained(NamedTuple):
    """What a run gives beside the model.

    Attributes:
        figures: of the model as it is left: the best epoch's weights, and what was fitted after them.
        history: a row per epoch.
        seconds: that the run took.
        temperatures: by concept, and ``label``'s, that were folded into the weights; see ``temperature``.
    """

    figures: dict[str, Any]
    history: list[dict[str, Any]]
    seconds: float
    temperatures: dict[str, float]


def seed_everything(seed: int) -> None:
    """Seeds every generator that training draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _optimizer(model: SparseCBM, recipe: Recipe) -> torch.optim.AdamW:
    head = {id(parameter) for parameter in model.head_parameters()}
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        peak = recipe.learning_rate if name.startswith("backbone.") else recipe.concept_learning_rate
        peak = recipe.head_learning_rate if id(parameter) in head else peak
        decays = parameter.ndim > 1 and "bias" not in name
        groups.setdefault((peak, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": peak,
                "weight_decay": recipe.weight_decay if decays else 0.0,
            }
            for (peak, decays), parameters in groups.items()
        ],
        fused=True,
    )


def _clipped_together(model: SparseCBM, recipe: Recipe) -> list[list[torch.nn.Parameter]]:
    """Parameters by the norm that limits them; where the label head is independent, the concepts have their own."""
    if recipe.mode != "independent":
        return [list(model.parameters())]
    head = model.head_parameters()
    return [[one for one in model.parameters() if all(one is not other for other in head)], head]


class _Pruning:
    """When masks are watched and cut.

    Args:
        model: whose masks are cut in place.
        recipe: settings.
        per_epoch: steps in an epoch.
    """

    def __init__(self, model: SparseCBM, recipe: Recipe, per_epoch: int) -> None:
        self._schedule, self._trunk_schedule = (
            Schedule(int(recipe.prune_start * per_epoch), int(recipe.prune_end * per_epoch), density, recipe.schedule)
            for density in (recipe.density, recipe.trunk_density)
        )
        self._prunes = recipe.prunes
        self._cut_every = max(1, per_epoch // recipe.prune_cuts)
        self.pruner = Pruner(
            model,
            recipe.importance,
            recipe.threshold,
            recipe.fisher_block,
            samples=self._cut_every * recipe.accumulate,
            memory=recipe.fisher_memory,
            branch=recipe.density < 1,
            trunk=recipe.trunk_density < 1,
        )

    def watches(self, step: int) -> bool:
        """Whether the step after ``step`` steps is one whose gradients count."""
        return self._prunes and self._schedule.start <= step + self._cut_every and step <= self._schedule.end

    def cut(self, step: int) -> None:
        """Cuts after a watched step, where it is time."""
        if (step - self._schedule.start) % self._cut_every == 0 or step >= self._schedule.end:
            self.pruner.prune(self._schedule.at(step), self._trunk_schedule.at(step))

    def done(self, step: int) -> bool:
        """Whether the final density is reached."""
        return not self._prunes or step >= self._schedule.end


class Run:
    """A run: the model in training, and all else that changes from step to step.

    Args:
        model: dense, with a pretrained backbone; trained in place.
        data: training split.
        ids: its token ids.
        recipe: settings.
        device: where the model is.
    """

    def __init__(
        self, model: SparseCBM, data: Dataset, ids: Sequence[np.ndarray], recipe: Recipe, device: torch.device
    ) -> None:
        per_epoch = math.ceil(len(data) / recipe.batch_size)
        self.model, self.recipe, self.device, self.ids = model, recipe, device, ids
        if recipe.mode != "joint":  # the label hears of the text only what the concepts' probabilities say
            model.strength_weight.requires_grad_(False).zero_()
        self.lengths = np.array([len(row) for row in ids])
        self.targets = Targets.of(data, recipe.vote_weight).to(device)
        balanced = recipe.class_weights == "balanced"
        self.weights = ClassWeights.balanced(self.targets) if balanced else ClassWeights.even(self.targets)
        self.total = per_epoch * recipe.epochs
        self.warmup = max(1, int(recipe.warmup * self.total))
        self.optimizer = _optimizer(model, recipe)
        self.clipped = _clipped_together(model, recipe)
        self.pruning = _Pruning(model, recipe, per_epoch)
        self.generator = np.random.default_rng(recipe.seed)
        self.mean: RunningMean | None = None
        self.best: dict[str, Any] | None = None
        self.best_epoch = 0  # from 1
        self.best_weights: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self.step = 0
        self.epoch = 0  # finished

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or so many in a row were no better that patience is."""
        patience, best = self.recipe.patience, self.best_epoch
        return self.epoch == self.recipe.epochs or bool(patience and best and self.epoch - best >= patience)

    def learning_rate(self) -> float:
        """Share of the peak in the next step: it rises linearly, then falls linearly to 0."""
        falling = (self.total - self.step) / max(1, self.total - self.warmup)
        return min((self.step + 1) / self.warmup, falling)

    def run_epoch(
        self, validation: Dataset, validation_ids: Sequence[np.ndarray], report: Callable[[Progress], None]
    ) -> None:
        """Trains for one epoch, judges it on the validation split, and keeps it if it is the best."""
        self.model.train()
        density, total = self.model.density(), 0.0
        for chosen in batches(self.lengths, self.recipe.batch_size, self.generator):
            rate, watched = self.learning_rate() * self.recipe.learning_rate, self.pruning.watches(self.step)
            loss = self.take_step(chosen)
            total += loss * len(chosen)
            density = self.model.density() if watched else density
            report(Progress(self.step, self.total, self.epoch, loss, density, rate))
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._broken("a weight is not finite")
        figures, best = self.judge(validation, validation_ids)
        loss = total / len(self.ids)
        self.history.append(
            {"epoch": self.epoch + 1, "step": self.step, "loss": loss, "density": density, "best": best} | figures
        )
        report(Progress(self.step, self.total, self.epoch, loss, density, rate, figures, best))
        self.epoch += 1

    def take_step(self, chosen: np.ndarray) -> float:
        """Takes one step over the texts of a batch, in as many passes as the recipe asks for; gives the mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.learning_rate()
        watched = self.pruning.watches(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = [part for part in np.array_split(chosen, self.recipe.accumulate) if len(part)]
        loss = math.fsum(self._pass(part, len(part) / len(chosen), watched) for part in parts)
        for parameters in self.clipped:
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if not torch.isfinite(norm):
                raise self._broken(f"the gradient is {norm.item()}")
        self.optimizer.step()
        self.step += 1
        if watched:
            self.pruning.cut(self.step)
        if self.recipe.average and self.pruning.done(self.step):
            self.mean = self.mean or RunningMean(self.model.state_dict(), self.recipe.average)
            self.mean.update(self.model.state_dict())
        return loss

    def _pass(self, rows: np.ndarray, share: float, watched: bool) -> float:
        """Adds the gradients of a batch's part; gives that part of the batch's mean loss."""
        padded, mask = pad([self.ids[index] for index in rows], self.model.backbone.config.pad_id)
        probe = self.pruning.pruner.probe(len(rows), share) if watched else None
        with autocast(self.recipe.precision, self.device):
            output = self.model(torch.from_numpy(padded).to(self.device), torch.from_numpy(mask).to(self.device), probe)
        loss = self.loss(output, self.targets.rows(rows)) * share
        value = loss.item()
        if not math.isfinite(value):
            raise self._broken(f"the loss is {value}")
        loss.backward()
        if watched:
            self.pruning.pruner.observe()
        return value

    def loss(self, output: Bottleneck, targets: Targets) -> Tensor:
        """The concepts' mean loss and, unless it is trained afterwards, the label's, as the mode has it."""
        loss = self.recipe.concept_weight * concept_loss(output, targets, self.weights)
        if self.recipe.mode == "sequential":
            return loss
        rate = 1.0 if self.recipe.mode == "independent" else self.recipe.correction_rate
        return loss + self.recipe.label_weight * label_loss(self.model, output, targets, self.weights, rate)

    def _broken(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what} at step {self.step + 1}, in epoch {self.epoch + 1}; go on with --precision fp32 if it was "
            f"another, or begin anew with a lower learning rate (now {self.recipe.learning_rate:g})."
        )

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Has the model at its running mean, where there is one."""
        if self.mean is None:
            yield
            return
        trained = _copy(self.model.state_dict())
        self.model.load_state_dict(self.mean.weights())
        yield
        self.model.load_state_dict(trained)

    def judge(self, validation: Dataset, ids: Sequence[np.ndarray]) -> tuple[dict[str, Any], bool]:
        """Figures on the validation split, and whether they are the best at the final density."""
        with self._averaged():
            figures = evaluate(self.model, validation, ids)
            if self.recipe.mode == "sequential":  # the label head isn't trained yet
                figures = {name: value for name, value in figures.items() if not name.startswith("label")}
            best = self.pruning.done(self.step)
            best = best and (self.best is None or self._merit(figures) > self._merit(self.best))
            if best:
                self.best, self.best_epoch = figures, self.epoch + 1
                self.best_weights = _copy(self.model.state_dict())
        return figures, best

    def _merit(self, figures: dict[str, Any]) -> float:
        learned = ("concept", "label") if self.recipe.concept_weight else ("label",)
        return float(sum(figures[name]["accuracy"] for name in learned if name in figures))

    def state(self, origin: states.Origin, seconds: float) -> states.State:
        """All that the run needs to go on after this epoch."""
        tensors = states.named("model.", self.model.state_dict()) | states.named("masks.", self.model.mask_tensors())
        for name, parameter in self.model.named_parameters():
            tensors |= states.named(f"optimizer.{name}.", self.optimizer.state[parameter])
        if self.mean is not None:
            tensors |= states.named("mean.", self.mean.sums)
        tensors |= states.named("best.", self.best_weights) | states.named("pruner.", self.pruning.pruner.state())
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        facts = states.Facts(
            origin=origin,
            epochs=self.epoch,
            steps=self.step,
            averaged=self.mean.steps if self.mean is not None else 0,
            generator=dict(self.generator.bit_generator.state),
            best=self.best,
            best_epoch=self.best_epoch,
            history=self.history,
            seconds=seconds,
        )
        return states.State(facts, tensors)

    def restore(self, state: states.State) -> None:
        """Goes on from a state.

        Raises:
            TrainingError: a tensor is missing or doesn't fit.
        """
        facts, tensors = state.facts, state.tensors
        try:
            self.model.load_state_dict(states.take(tensors, "model."))
            self.model.load_masks(states.take(tensors, "masks."))
            for name, parameter in self.model.named_parameters():
                moments = states.take(tensors, f"optimizer.{name}.")
                if moments:
                    self.optimizer.state[parameter] = {
                        key: tensor.to(parameter.device, copy=True) for key, tensor in moments.items()
                    }
            if facts.averaged:
                self.mean = RunningMean(self.model.state_dict(), self.recipe.average)
                self.mean.steps = facts.averaged
                for name, total in self.mean.sums.items():
                    total.copy_(tensors[f"mean.{name}"])
            self.best_weights = {
                name: tensor.to(self.device, copy=True) for name, tensor in states.take(tensors, "best.").items()
            }
            self.pruning.pruner.load_state(states.take(tensors, "pruner."))
            torch.set_rng_state(tensors["random.cpu"])
            if self.device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
            self.generator.bit_generator.state = facts.generator
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise TrainingError(f"The run's state doesn't fit ({error}); begin anew with --restart.") from error
        self.best, self.best_epoch, self.history = facts.best, facts.best_epoch, list(facts.history)
        self.step, self.epoch = facts.steps, facts.epochs


def train(
    model: SparseCBM,
    data: Dataset,
    ids: Sequence[np.ndarray],
    validation: Dataset,
    validation_ids: Sequence[np.ndarray],
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda progress: None,
    partial: Path | None = None,
    device: torch.device = CPU,
) -> Trained:
    """Trains and prunes a model in place; it ends on the processor, with its best epoch's weights.

    The best epoch is the one at the final density with the highest sum of concept and label accuracy on the
    validation split; where the label head is trained afterwards, with the highest concept accuracy; where the
    concepts aren't learned, with the highest label accuracy.

    Args:
        model: dense, with a pretrained backbone.
        data: training split, with ``ids`` its token ids.
        ids: one [length] array per text.
        validation: split that chooses the epoch.
        validation_ids: its token ids.
        recipe: settings.
        report: called after every step and every epoch.
        partial: folder for the run's state after every epoch. Where it holds one, the run goes on from there, and
            ends as it would have ended unbroken (on the same processor, precision and threads).
        device: where to compute.

    Raises:
        TrainingError: the loss is no longer finite; or the state in ``partial`` is of another run.
        DataError: a split is empty.
    """
    started = time.monotonic()
    for name, split in (("training", data), ("validation", validation)):
        if not len(split):
            raise DataError(f"The {name} split is empty; there is nothing to learn from or to judge by.")
    seed_everything(recipe.seed)
    move(model, device)
    with defaults(device):
        run = Run(model, data, ids, recipe, device)
        before = 0.0
        if partial is not None:
            origin = states.Origin(
                recipe=recipe,
                backbone=model.backbone.config,
                training=states.fingerprint(data),
                validation=states.fingerprint(validation),
                tokens=states.token_fingerprint(ids, validation_ids),
            )
            if states.begun(partial):
                state = states.read(partial, origin)
                run.restore(state)
                before = state.facts.seconds
        while not run.over:
            try:
                run.run_epoch(validation, validation_ids, report)
            except TrainingError as error:
                raise TrainingError(f"{error.message} {states.kept(partial)}") from error
            if partial is not None:
                states.write(run.state(origin, before + time.monotonic() - started), partial)
        assert run.best is not None
        model.load_state_dict(run.best_weights)
        figures = run.best
        if recipe.mode == "sequential":
            fit_head(model, ids, run.targets, run.weights, recipe)
        corrections_move = recipe.bottleneck == "vectors" and bool(recipe.concept_weight)
        temperatures: dict[str, float] = {}
        if recipe.temperature:
            temperatures = fit_temperatures(model, validation, validation_ids, corrections_move)
        if recipe.mode == "joint" and corrections_move:
            fit_reach(model, validation, validation_ids)
        if recipe.mode == "sequential" or temperatures or model.reach < 1:  # what was fitted since is in no epoch's
            figures = evaluate(model, validation, validation_ids)
    model.strength_weight.requires_grad_(True)
    move(model, CPU)
    model.eval()
    return Trained(figures, run.history, before + time.monotonic() - started, temperatures)


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}
