"""SparseCBM: a trunk, one masked branch per concept, concept layers, and a linear label head.

    ids ─ trunk ─┬─ branch 1 (mask 1) ─ mean over tokens ─ logits, vectors ─ activation 1 ─┐
                 ├─ …                                                                      ├─ label head
                 └─ branch K (mask K) ─ mean over tokens ─ logits, vectors ─ activation K ─┘

A concept hands over one vector per value, mixed by the values' probabilities (concept embeddings, Espinosa
Zarlenga et al. 2022). Here a vector is the sum of one learned for the value and one read from the text, its
strength, which all values of the concept share. So a correction, which makes the mixture one-hot, moves each
label's logit by an amount that depends on the values alone, and how strongly the text speaks survives it. In
training the label hears no strengths of some texts, or it would learn to do without the values. After training,
a correction goes only part of the way, the ``reach``, from the mixture that was read to the value's own vector.

The bottleneck "logits" is the plain joint concept bottleneck (Koh et al. 2020), to compare with: the label reads the
values' log-probabilities, and a correction puts a certain value's in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecbm.backbone import Backbone, Gates, LayerWeights, attention_bias, run_layer
from sparsecbm.bundle import Concept, Granularity
from sparsecbm.errors import TrainingError
from sparsecbm.masks import UnitMasks, WeightMasks, pack_bits, unpack_bits
from sparsecbm.recipe import BottleneckKind

RULED_OUT = 1e-3  # probability that a correction leaves to other values, where the label reads log-probabilities


class Bottleneck(NamedTuple):
    """What the branches give: logits [batch, concepts, values] and vectors [batch, concepts, values, width].

    Concepts with fewer values than the widest one have -inf logits in the places left over.
    """

    logits: Tensor
    vectors: Tensor


class Probe(NamedTuple):
    """What a forward pass lets somebody see or change.

    Attributes:
        branch: per concept and branch layer, multipliers on the units that the mask *keeps*.
        trunk: per trunk layer, multipliers on the units that the trunk's mask keeps.
        weights: called in the backward pass with a concept, a branch layer, a matrix's name, and the gradient by
            that matrix as the concept sees it, pruned weights included.
    """

    branch: Sequence[Sequence[Gates]] | None = None
    trunk: Sequence[Gates] | None = None
    weights: Callable[[int, int, str, Tensor], None] | None = None


def matrices(weights: LayerWeights) -> dict[str, Tensor]:
    """A layer's weight matrices by name, which masks over single weights are over; not its biases and norms."""
    return {
        name: tensor
        for name, tensor in weights._asdict().items()
        if isinstance(tensor, Tensor) and tensor.ndim > 1 and not name.endswith("bias")
    }


class SparseCBM(nn.Module):
    """The whole model.

    Masks are no parameters: ``masks`` are over each concept's branch units, ``trunk_masks`` (of one "concept") over
    the units that all share, and ``weight_masks`` over each concept's branch weights, where the granularity is
    "weights"; the units of the branches are then all kept.

    Args:
        backbone: shared by all concepts.
        concepts: with their values.
        labels: what is predicted from the concepts.
        trunk: number of lower layers that all concepts share; the rest are branches.
        width: of a concept's activation.
        dropout: on pooled branch outputs.
        strength_dropout: chance, in training, that the label hears of a text the concepts' values alone.
        granularity: what a concept's mask is over.
        bottleneck: what concepts hand to the label; for "logits" the width is the number of values.

    Raises:
        TrainingError: the trunk leaves no branch.
    """

    absent_values: Tensor  # [concepts, values], 0 at values that the concept has, -inf elsewhere

    def __init__(
        self,
        backbone: Backbone,
        concepts: Sequence[Concept],
        labels: Sequence[str],
        trunk: int,
        width: int = 8,
        dropout: float = 0.1,
        strength_dropout: float = 0.0,
        granularity: Granularity = "units",
        bottleneck: BottleneckKind = "vectors",
    ) -> None:
        super().__init__()
        config = backbone.config
        if not 0 <= trunk < config.layers:
            raise TrainingError(f"trunk must be from 0 to {config.layers - 1} for this backbone, got {trunk}.")
        self.backbone = backbone
        self.concepts = list(concepts)
        self.labels = list(labels)
        self.trunk = trunk
        self.bottleneck = bottleneck
        self.dropout = dropout
        self.strength_dropout = strength_dropout
        self.reach = 1.0  # in (0, 1]; see sparsecbm.reach
        self.masks = UnitMasks.dense(len(concepts), config.layers - trunk, config.heads, config.neurons)
        self.trunk_masks = UnitMasks.dense(1, trunk, config.heads, config.neurons)
        self.weight_masks: WeightMasks | None = None
        if granularity == "weights":
            shapes = {name: tensor.shape for name, tensor in matrices(backbone.layers[trunk].weights()).items()}
            self.weight_masks = WeightMasks.dense(len(concepts), config.layers - trunk, shapes)
        sizes = [len(concept.values) for concept in concepts]
        values = max(sizes)
        plain = bottleneck == "logits"
        self.width = width = values if plain else width
        read = 0 if plain else width  # how much of an activation is read from the text
        self.logit_weight = nn.Parameter(torch.randn(len(concepts), values, config.hidden) * 0.02)
        self.logit_bias = nn.Parameter(torch.zeros(len(concepts), values))
        self.strength_weight = nn.Parameter(torch.randn(len(concepts), read, config.hidden) * 0.02)
        self.value_vectors = nn.Parameter(torch.randn(len(concepts), values, read) * 0.1)
        self.head_weight = nn.Parameter(torch.randn(len(labels), len(concepts), width) * 0.1)
        self.head_bias = nn.Parameter(torch.zeros(len(labels)))
        present = torch.arange(values)[None, :] < torch.tensor(sizes)[:, None]
        self.register_buffer("absent_values", torch.where(present, 0.0, -torch.inf), persistent=False)

    @property
    def branch_layers(self) -> int:
        return self.backbone.config.layers - self.trunk

    @property
    def granularity(self) -> Granularity:
        return "units" if self.weight_masks is None else "weights"

    def density(self) -> float:
        """Share of branch units, or weights, that the concepts' masks keep."""
        return (self.weight_masks or self.masks).density()

    def densities(self) -> list[float]:
        """The same share of each concept's mask."""
        return (self.weight_masks or self.masks).densities()

    def overlap(self) -> Tensor:
        """[concepts, concepts] Jaccard index of the units, or weights, that two concepts' masks keep."""
        return (self.weight_masks or self.masks).overlap()

    def head_parameters(self) -> list[nn.Parameter]:
        """What stands between the concepts' values and the label."""
        return [self.value_vectors, self.head_weight, self.head_bias]

    def mask_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of ``mask_tensors`` by name; those of the trunk may be left out where it is dense."""
        shapes = {"heads": self.masks.heads.shape, "neurons": self.masks.neurons.shape}
        shapes |= {"trunk_heads": self.trunk_masks.heads.shape, "trunk_neurons": self.trunk_masks.neurons.shape}
        packed: dict[str, tuple[int, ...]] = {}
        if self.weight_masks is not None:
            for name, mask in self.weight_masks.matrices.items():
                packed[f"weights.{name}"] = (*mask.shape[:2], -(-mask.shape[2:].numel() // 8))
        return {name: tuple(shape) for name, shape in shapes.items()} | packed

    def mask_tensors(self) -> dict[str, Tensor]:
        """All masks as uint8 by name.

        ``heads`` and ``neurons`` [concepts, branch layers, units], ``trunk_heads`` and ``trunk_neurons``
        [1, trunk layers, units] where the trunk is pruned, and, packed, ``weights.NAME`` [concepts, branch layers,
        ⌈weights / 8⌉] for every matrix where the granularity is "weights".
        """
        tensors = {"heads": self.masks.heads, "neurons": self.masks.neurons}
        if self.trunk_masks.density() < 1:
            tensors |= {"trunk_heads": self.trunk_masks.heads, "trunk_neurons": self.trunk_masks.neurons}
        found = {name: mask.to(torch.uint8) for name, mask in tensors.items()}
        if self.weight_masks is not None:
            for name, mask in self.weight_masks.matrices.items():
                found[f"weights.{name}"] = pack_bits(mask, mask.ndim - 2)
        return found

    def load_masks(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what ``mask_tensors`` of a model of the same shapes gave, in place."""
        self.masks.heads.copy_(tensors["heads"])
        self.masks.neurons.copy_(tensors["neurons"])
        for name, mask in (("trunk_heads", self.trunk_masks.heads), ("trunk_neurons", self.trunk_masks.neurons)):
            mask.copy_(tensors[name]) if name in tensors else mask.fill_(True)
        if self.weight_masks is not None:
            for name, mask in self.weight_masks.matrices.items():
                mask.copy_(unpack_bits(tensors[f"weights.{name}"], mask.shape))

    def trunk_weights(self) -> list[LayerWeights]:
        """The weights of the units that the trunk's mask keeps, per trunk layer."""
        layers = self.backbone.layers[: self.trunk]
        return [layer.weights(*self.trunk_masks.kept(0, index)) for index, layer in enumerate(layers)]

    def full_weights(self, concept: int, layer: int, probe: Probe | None = None) -> LayerWeights:
        """The weights of all units of a branch layer as a concept sees them: where it prunes weights, with zeros."""
        weights = self.backbone.layers[self.trunk + layer].weights()
        if self.weight_masks is None:
            return weights
        masked: dict[str, Tensor] = {}
        for name, mask in self.weight_masks.of(concept, layer).items():
            masked[name] = getattr(weights, name) * mask
            if probe is not None and probe.weights is not None:
                masked[name].requires_grad_()  # where the backbone is frozen
                masked[name].register_hook(partial(probe.weights, concept, layer, name))
        return weights._replace(**masked)

    def branch_weights(self, concept: int, probe: Probe | None = None) -> list[LayerWeights]:
        """The weights that a concept's mask keeps, per branch layer: of its units alone, or with zeros."""
        if self.weight_masks is not None:
            return [self.full_weights(concept, layer, probe) for layer in range(self.branch_layers)]
        return [
            self.backbone.layers[self.trunk + layer].weights(*self.masks.kept(concept, layer))
            for layer in range(self.branch_layers)
        ]

    def run_trunk(self, ids: Tensor, bias: Tensor, gates: Sequence[Gates] | None = None) -> Tensor:
        """Embeddings and shared layers: [batch, length, hidden]."""
        hidden: Tensor = self.backbone.embeddings(ids)
        for index, weights in enumerate(self.trunk_weights()):
            gate = gates[index] if gates is not None else None
            hidden = run_layer(hidden, bias, weights, self.backbone.config, gate, self.training)
        return hidden

    def read_concepts(self, pooled: Tensor) -> Bottleneck:
        """[batch, concepts, hidden] pooled branch outputs to logits and vectors."""
        pooled = F.dropout(pooled, self.dropout, self.training)
        logits = torch.einsum("bkd,kvd->bkv", pooled, self.logit_weight) + self.logit_bias + self.absent_values
        if self.bottleneck == "logits":
            certain = torch.eye(self.width, device=logits.device).clamp(min=RULED_OUT).log()
            return Bottleneck(logits, certain.expand(*logits.shape, -1))
        strengths = torch.einsum("bkd,kwd->bkw", pooled, self.strength_weight)
        if self.training and self.strength_dropout:
            strengths = strengths * (torch.rand(len(pooled), 1, 1, device=pooled.device) >= self.strength_dropout)
        values: Tensor = self.value_vectors
        if self.reach < 1:
            read = torch.einsum("bkv,kvw->bkw", logits.softmax(-1), values)
            values = self.reach * values + (1 - self.reach) * read[:, :, None]
        return Bottleneck(logits, strengths[:, :, None] + values)

    def forward(self, ids: Tensor, mask: Tensor, probe: Probe | None = None) -> Bottleneck:
        """Every concept's logits and vectors, each from its own subnetwork.

        Args:
            ids: [batch, length] int64.
            mask: [batch, length], 1 at tokens, 0 at padding.
            probe: gates on the units, and eyes on the weights' gradients, if any.
        """
        config = self.backbone.config
        bias = attention_bias(mask, config.causal)
        gates = probe.branch if probe is not None else None
        shared = self.run_trunk(ids, bias, probe.trunk if probe is not None else None)
        pooled = []
        for concept in range(len(self.concepts)):
            hidden = shared
            for layer, weights in enumerate(self.branch_weights(concept, probe)):
                gate = gates[concept][layer] if gates is not None else None
                hidden = run_layer(hidden, bias, weights, config, gate, self.training)
            pooled.append(mean_over_tokens(self.backbone.finish(hidden), mask))
        return self.read_concepts(torch.stack(pooled, 1))

    def activations(self, mixture: Tensor, vectors: Tensor) -> Tensor:
        """What the concepts hand to the label head.

        Args:
            mixture: [batch, concepts, values], each concept's probabilities, or one-hot where corrected.
            vectors: [batch, concepts, values, width].

        Returns:
            [batch, concepts, width].
        """
        if self.bottleneck == "logits":
            return torch.where(mixture > 0, mixture.clamp(min=1e-30).log(), math.log(RULED_OUT))
        return torch.einsum("bkv,bkvw->bkw", mixture, vectors)

    def label_logits(self, mixture: Tensor, vectors: Tensor) -> Tensor:
        """Logits of the labels.

        Args:
            mixture: [batch, concepts, values], each concept's probabilities, or one-hot where corrected.
            vectors: [batch, concepts, values, width].

        Returns:
            [batch, labels].
        """
        return torch.einsum("bkw,ykw->by", self.activations(mixture, vectors), self.head_weight) + self.head_bias


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """[batch, length, hidden] to [batch, hidden], padding left out."""
    weights = mask.to(hidden.dtype)
    return torch.einsum("bld,bl->bd", hidden, weights) / weights.sum(1, keepdim=True)


def corrected(probabilities: Tensor, values: Tensor) -> Tensor:
    """Replaces probabilities by one-hot vectors where a value is given.

    Args:
        probabilities: [batch, concepts, values].
        values: [batch, concepts] int64, the corrected value's index, or -1 for none.
    """
    one_hot = F.one_hot(values.clamp(min=0), probabilities.shape[-1]).to(probabilities.dtype)
    return torch.where((values >= 0)[..., None], one_hot, probabilities)
