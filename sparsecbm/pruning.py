"""Gradual pruning: watches gradients during training, and cuts what matters least.

Each concept's mask is cut by its own gradients. Over units they are those of gates, which are 1 while a unit is
kept; over weights, those by the shared weight as the concept sees it, w · mask. What each unit or weight is worth
is in ``importance.py``, how the density falls in ``schedules.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparsecbm.backbone import Gates, LayerWeights
from sparsecbm.errors import TrainingError
from sparsecbm.importance import BlockFisher, FirstOrder, Magnitude, Measure, WoodburyFisher
from sparsecbm.masks import UnitMasks, WeightMasks
from sparsecbm.model import Probe, SparseCBM, matrices
from sparsecbm.recipe import Importance, Threshold

UNIT_BLOCK, WEIGHT_BLOCK = 64, 4
_KINDS = ("heads", "neurons")


def lowest(scores: Tensor, count: int) -> Tensor:
    """[size] bool, true at the ``count`` lowest scores; of equal ones, at the first."""
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    bound = scores.kthvalue(count).values
    chosen = scores < bound
    tied = (scores == bound).nonzero()[:, 0]
    chosen[tied[: count - int(chosen.count_nonzero())]] = True
    return chosen


def cut(masks: Sequence[Tensor], scores: Sequence[Tensor], density: float) -> None:
    """Cuts masks that are ranked together, in place, to a share of all their places.

    Exactly ⌊density · places⌋ stay, but at least the best of each mask; a mask never grows.

    Args:
        masks: one-dimensional, bool.
        scores: of each mask's places; those of places that are cut already aren't read.
        density: share of places to keep.
    """
    keep = max(len(masks), int(density * sum(len(mask) for mask in masks) + 1e-6))
    ranked = []
    for mask, score in zip(masks, scores, strict=True):
        safe = score.masked_fill(~mask, torch.inf)
        safe[score.masked_fill(~mask, -torch.inf).argmax()] = torch.inf
        ranked.append(safe)
    surplus = sum(int(mask.count_nonzero()) for mask in masks) - keep
    removed = lowest(torch.cat(ranked), surplus)
    for mask, gone in zip(masks, removed.split([len(mask) for mask in masks]), strict=True):
        mask[gone] = False


def unit_norms(weights: LayerWeights) -> dict[str, Tensor]:
    """Norm over all of a unit's weights: ``heads`` [heads], ``neurons`` [neurons]."""
    parts = matrices(weights)
    heads = parts.pop("qkv").square().sum((0, 2, 3)) + parts.pop("out").square().sum((1, 2))
    neurons = torch.stack([part.square().flatten(1).sum(1) for part in parts.values()]).sum(0)
    return {"heads": heads.sqrt(), "neurons": neurons.sqrt()}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a mask lies: a layer's heads, its neurons, or one of its matrices."""

    room: str  # "branch" or "trunk"
    concept: int
    layer: int
    kind: str

    def __str__(self) -> str:
        return f"{self.room}.{self.concept}.{self.layer}.{self.kind}"


@dataclass(slots=True)
class _Group:
    """A mask, flat, with what is known of its places."""

    mask: Tensor
    values: Callable[[], Tensor]  # [places]
    measure: Measure
    watched: Tensor | None = None  # indices of the places that the measure is over; all where None

    def scores(self) -> Tensor:
        values = self.values()
        if self.watched is None:
            return self.measure.scores(values)
        scores = torch.zeros(len(self.mask))
        scores[self.watched] = self.measure.scores(values[self.watched])
        return scores


class Pruner:
    """Watches gradients during training and lowers the masks' density step by step.

    Use: pass ``probe(batch)`` to the model's forward, call ``observe`` after backward, and ``prune`` to cut.

    With the threshold "layer", each layer of a concept keeps the density: of its heads, of its neurons, or of all
    its weights, whatever matrix they are in. With "global", only a concept's layers together keep it, again heads
    among heads and neurons among neurons, since a head costs as much as many neurons; no layer loses its last
    head, its last neuron, or a matrix's last weight. The trunk's one mask is cut in the same way.

    Args:
        model: whose masks are edited in place.
        importance: "obs", "first_order" or "magnitude".
        threshold: "layer" or "global".
        block: size of a Fisher block; 0 for 64 over units, 4 over weights.
        samples: batches that will be observed between two cuts (see ``WoodburyFisher``).
        memory: most GB that all measures may take.
        branch: whether the concepts' masks are cut.
        trunk: whether the trunk's is.

    Raises:
        TrainingError: the measures would take more memory; says how much.
    """

    def __init__(
        self,
        model: SparseCBM,
        importance: Importance = "obs",
        threshold: Threshold = "layer",
        block: int = 0,
        samples: int = 16,
        memory: float = 4.0,
        branch: bool = True,
        trunk: bool = False,
    ) -> None:
        self.model = model
        self.importance = importance
        self.threshold = threshold
        self.unit_block = block or UNIT_BLOCK
        self.weight_block = block or WEIGHT_BLOCK
        self.samples = samples
        self._branch = branch
        self._trunk = trunk
        self._gates: dict[_Place, Tensor] = {}
        self._share = 1.0
        self._check_memory(memory)
        self._reset()

    def _check_memory(self, limit: float) -> None:
        weights = self.model.weight_masks
        if weights is None or not self._branch or self.importance == "magnitude":
            return
        block = self.weight_block if self.importance == "obs" else 1
        count = sum(mask.numel() for mask in weights.matrices.values())
        needed = count * block * 4 / 1e9
        if needed > limit:
            raise TrainingError(
                f"Scoring {count:,} weights of all concepts by {self.importance} with Fisher blocks of {block} takes "
                f"{needed:.3g} GB, over fisher_memory of {limit:g} GB: lower fisher_block, raise fisher_memory, "
                "or prune by magnitude."
            )

    def _unit_groups(self, room: str, masks: UnitMasks, first: int) -> Iterator[tuple[_Place, _Group]]:
        """The groups of unit masks over the backbone's layers from ``first`` on."""
        for concept in range(masks.heads.shape[0]):
            for layer in range(masks.heads.shape[1]):
                for kind, kept in zip(_KINDS, masks.kept(concept, layer), strict=True):
                    mask: Tensor = getattr(masks, kind)[concept, layer]
                    if self.importance == "magnitude":
                        group = _Group(mask, partial(self._norms, first + layer, kind), Magnitude(len(mask)))
                    else:
                        measure = self._measure(len(kept), single=False)
                        group = _Group(mask, partial(torch.ones, len(mask)), measure, kept)
                    yield _Place(room, concept, layer, kind), group

    def _weight_groups(self, masks: WeightMasks) -> Iterator[tuple[_Place, _Group]]:
        """The groups of masks over single weights of the branches."""
        for concept in range(len(self.model.concepts)):
            for layer in range(self.model.branch_layers):
                for name, mask in masks.of(concept, layer).items():
                    flat = mask.view(-1)
                    group = _Group(flat, partial(self._weights, layer, name), self._measure(len(flat), single=True))
                    yield _Place("branch", concept, layer, name), group

    def _measure(self, size: int, single: bool) -> Measure:
        if self.importance == "magnitude":
            return Magnitude(size)
        if self.importance == "first_order":
            return FirstOrder(size)
        return WoodburyFisher(size, self.weight_block, self.samples) if single else BlockFisher(size, self.unit_block)

    def _norms(self, layer: int, kind: str) -> Tensor:
        return unit_norms(self.model.backbone.layers[layer].weights())[kind].detach()

    def _weights(self, layer: int, name: str) -> Tensor:
        weights = self.model.backbone.layers[self.model.trunk + layer].weights()
        return matrices(weights)[name].detach().flatten()

    def _reset(self) -> None:
        """Starts to measure anew, over what is kept now."""
        groups: dict[_Place, _Group] = {}
        if self._branch and self.model.weight_masks is not None:
            groups |= self._weight_groups(self.model.weight_masks)
        elif self._branch:
            groups |= self._unit_groups("branch", self.model.masks, self.model.trunk)
        if self._trunk:
            groups |= self._unit_groups("trunk", self.model.trunk_masks, 0)
        self._groups = groups

    def _pools(self) -> list[tuple[str, list[_Group]]]:
        """Groups that are ranked together, with the room that they are in."""
        pools: dict[tuple[object, ...], list[_Group]] = {}
        for place, group in self._groups.items():
            layer = place.layer if self.threshold == "layer" else None
            kind = place.kind if place.kind in _KINDS else None  # matrices of a layer are ranked together
            pools.setdefault((place.room, place.concept, layer, kind), []).append(group)
        return [(str(key[0]), groups) for key, groups in pools.items()]

    def _gates_of(self, room: str, concept: int, layers: int, batch: int) -> list[Gates]:
        """Fresh gates of a concept's layers, remembered for ``observe``."""
        made = []
        for layer in range(layers):
            row = []
            for kind in _KINDS:
                place = _Place(room, concept, layer, kind)
                watched = self._groups[place].watched
                assert watched is not None
                self._gates[place] = torch.ones(batch, len(watched), requires_grad=True)
                row.append(self._gates[place])
            made.append(Gates(*row))
        return made

    def _see(self, concept: int, layer: int, name: str, gradient: Tensor) -> None:
        """Takes in the gradient by a concept's matrix; pruned weights, fixed at zero, have no part in it."""
        group = self._groups[_Place("branch", concept, layer, name)]
        kept = torch.where(group.mask, gradient.detach().flatten(), 0.0)
        group.measure.add(kept[None] / self._share)

    def probe(self, batch: int, share: float = 1.0) -> Probe:
        """What to pass to the model's next forward pass.

        Over units, it has fresh gates of 1 for every kept unit and text, whose gradients ``observe`` reads; over
        weights, it takes in their gradients during the backward pass.

        Args:
            batch: texts in the pass.
            share: what the mean loss over the batch will be multiplied by, where several passes make one step.
        """
        self._gates, self._share = {}, share
        if self.importance == "magnitude":
            return Probe()
        model, single = self.model, self.model.weight_masks is not None
        branch = trunk = None
        if self._branch and not single:
            branch = [
                self._gates_of("branch", concept, model.branch_layers, batch) for concept in range(len(model.concepts))
            ]
        if self._trunk:
            trunk = self._gates_of("trunk", 0, model.trunk, batch)
        return Probe(branch, trunk, self._see if self._branch and single else None)

    def observe(self) -> None:
        """Takes in the last backward pass's gate gradients, scaled back to those of single texts' losses."""
        for place, gate in self._gates.items():
            assert gate.grad is not None
            self._groups[place].measure.add(gate.grad * (len(gate) / self._share))
        self._gates = {}

    def prune(self, density: float, trunk_density: float = 1.0) -> None:
        """Cuts the masks, where anything was observed, to shares of their units or weights; see ``cut``.

        Args:
            density: of every concept's mask.
            trunk_density: of the trunk's.
        """
        for room, groups in self._pools():
            if all(group.measure.seen for group in groups):
                masks = [group.mask for group in groups]
                cut(masks, [group.scores() for group in groups], density if room == "branch" else trunk_density)
        self._reset()

    def state(self) -> dict[str, Tensor]:
        """What was observed since the last cut, as plain tensors; the masks are the model's."""
        return {
            f"{place}.{name}": tensor.clone()
            for place, group in self._groups.items()
            for name, tensor in group.measure.state().items()
            if group.measure.seen
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from ``state``; the model must have its weights and masks of that moment already.

        Raises:
            TrainingError: the state is of another model, or of other settings.
        """
        self._reset()
        left = set(state)
        for place, group in self._groups.items():
            names = {name: f"{place}.{name}" for name in group.measure.state()}
            if left.isdisjoint(names.values()):
                continue  # nothing was observed there
            try:
                group.measure.load_state({name: state[key] for name, key in names.items()})
            except (KeyError, RuntimeError) as error:  # RuntimeError: of another shape
                raise TrainingError(f"The pruning state doesn't fit the model's masks at {place}: {error}.") from error
            left -= set(names.values())
        if left:
            raise TrainingError(
                f"The pruning state has {len(left)} parts that this model and these pruning settings lack, first "
                f"{min(left)!r}."
            )
