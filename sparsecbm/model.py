"""SparseCBM: a trunk, one masked branch per concept, concept layers, and a linear label head.

    ids ─ trunk ─┬─ branch 1 (mask 1) ─ mean over tokens ─ logits, vectors ─ activation 1 ─┐
                 ├─ …                                                                      ├─ label head
                 └─ branch K (mask K) ─ mean over tokens ─ logits, vectors ─ activation K ─┘

A concept hands over one vector per value, mixed by the values' probabilities (concept embeddings, Espinosa
Zarlenga et al. 2022). A correction makes the mixture one-hot: a human sets the value, and how strongly the
text speaks for it survives in the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecbm.backbone import Backbone, Gates, LayerWeights, attention_bias, run_layer
from sparsecbm.bundle import Concept
from sparsecbm.errors import TrainingError
from sparsecbm.masks import UnitMasks


class Bottleneck(NamedTuple):
    """What the branches give: logits [batch, concepts, values] and vectors [batch, concepts, values, width].

    Concepts with fewer values than the widest one have -inf logits in the places left over.
    """

    logits: Tensor
    vectors: Tensor


class SparseCBM(nn.Module):
    """The whole model.

    Args:
        backbone: shared by all concepts.
        concepts: with their values.
        labels: what is predicted from the concepts.
        trunk: number of lower layers that all concepts share unmasked; the rest are branches.
        width: of a concept's activation.
        dropout: on pooled branch outputs.
        vector_dropout: chance, in training, that a concept hands over its value's constant vector alone.
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
        vector_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        config = backbone.config
        if not 0 <= trunk < config.layers:
            raise TrainingError(f"trunk must be from 0 to {config.layers - 1} for this backbone, got {trunk}.")
        self.backbone = backbone
        self.concepts = list(concepts)
        self.labels = list(labels)
        self.trunk = trunk
        self.width = width
        self.dropout = dropout
        self.vector_dropout = vector_dropout
        self.masks = UnitMasks.dense(len(concepts), config.layers - trunk, config.heads, config.neurons)
        sizes = [len(concept.values) for concept in concepts]
        values = max(sizes)
        self.logit_weight = nn.Parameter(torch.randn(len(concepts), values, config.hidden) * 0.02)
        self.logit_bias = nn.Parameter(torch.zeros(len(concepts), values))
        self.vector_weight = nn.Parameter(torch.randn(len(concepts), values * width, config.hidden) * 0.02)
        self.vector_bias = nn.Parameter(torch.zeros(len(concepts), values * width))
        self.head_weight = nn.Parameter(torch.randn(len(labels), len(concepts), width) * 0.1)
        self.head_bias = nn.Parameter(torch.zeros(len(labels)))
        present = torch.arange(values)[None, :] < torch.tensor(sizes)[:, None]
        self.register_buffer("absent_values", torch.where(present, 0.0, -torch.inf), persistent=False)

    @property
    def branch_layers(self) -> int:
        return self.backbone.config.layers - self.trunk

    def branch_weights(self, concept: int) -> list[LayerWeights]:
        """The weights of the units that a concept's mask keeps, per branch layer."""
        return [
            self.backbone.layers[self.trunk + layer].weights(*self.masks.kept(concept, layer))
            for layer in range(self.branch_layers)
        ]

    def run_trunk(self, ids: Tensor, bias: Tensor) -> Tensor:
        """Embeddings and shared layers: [batch, length, hidden]."""
        hidden: Tensor = self.backbone.embeddings(ids)
        for layer in self.backbone.layers[: self.trunk]:
            hidden = run_layer(hidden, bias, layer.weights(), self.backbone.config, training=self.training)
        return hidden

    def read_concepts(self, pooled: Tensor) -> Bottleneck:
        """[batch, concepts, hidden] pooled branch outputs to logits and vectors."""
        pooled = F.dropout(pooled, self.dropout, self.training)
        logits = torch.einsum("bkd,kvd->bkv", pooled, self.logit_weight) + self.logit_bias + self.absent_values
        vectors = torch.einsum("bkd,kvd->bkv", pooled, self.vector_weight)
        if self.training and self.vector_dropout:
            heard = torch.rand(*vectors.shape[:2], 1, device=vectors.device) >= self.vector_dropout
            vectors = vectors * heard
        return Bottleneck(logits, (vectors + self.vector_bias).view(*logits.shape, self.width))

    def forward(self, ids: Tensor, mask: Tensor, gates: Sequence[Sequence[Gates]] | None = None) -> Bottleneck:
        """Every concept's logits and vectors, each from its own subnetwork.

        Args:
            ids: [batch, length] int64.
            mask: [batch, length], 1 at tokens, 0 at padding.
            gates: per concept and branch layer, multipliers on the units that the mask *keeps*.
        """
        config = self.backbone.config
        bias = attention_bias(mask)
        shared = self.run_trunk(ids, bias)
        pooled = []
        for concept in range(len(self.concepts)):
            hidden = shared
            for layer, weights in enumerate(self.branch_weights(concept)):
                gate = gates[concept][layer] if gates is not None else None
                hidden = run_layer(hidden, bias, weights, config, gate, self.training)
            pooled.append(mean_over_tokens(hidden, mask))
        return self.read_concepts(torch.stack(pooled, 1))

    def label_logits(self, mixture: Tensor, vectors: Tensor) -> Tensor:
        """Logits of the labels.

        Args:
            mixture: [batch, concepts, values], each concept's probabilities, or one-hot where corrected.
            vectors: [batch, concepts, values, width].

        Returns:
            [batch, labels].
        """
        activations = torch.einsum("bkv,bkvw->bkw", mixture, vectors)
        return torch.einsum("bkw,ykw->by", activations, self.head_weight) + self.head_bias


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
