"""Which tokens and units speak for a concept's value, by PyTorch's autograd: the reference for the export.

Plain gradients of a transformer say little: what a normalisation or a softmax gives hardly changes with the size of
what it gets. Derivatives here take attention weights, deviations and activations' factors for constants
(conservative propagation, Ali et al. 2022), which costs less and says far more; ``docs/method.md`` has the figures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsecbm.backbone import Gates, attention_bias, run_layer
from sparsecbm.model import SparseCBM, mean_over_tokens


class Attribution(NamedTuple):
    """Conservative derivatives of each concept's weighted logit sum s.

    Shapes: logits [batch, concepts, values]; tokens [batch, concepts, length], the derivative of s by each
    token's embedding times that embedding; heads and neurons [batch, concepts, branch layers, units], the derivative
    of s by each unit's gate.
    """

    logits: Tensor
    tokens: Tensor
    heads: Tensor
    neurons: Tensor


def attribute(model: SparseCBM, ids: Tensor, mask: Tensor, value_weights: Tensor) -> Attribution:
    """Attributes a weighted sum of every concept's logits to tokens and to all branch units, pruned ones too.

    Args:
        model: in evaluation mode.
        ids: [batch, length].
        mask: [batch, length].
        value_weights: [batch, concepts, values].
    """
    config, backbone, batch = model.backbone.config, model.backbone, len(ids)
    bias = attention_bias(mask, config.causal)
    tokens = F.embedding(ids, backbone.embeddings.token).detach().requires_grad_()
    shared: Tensor = backbone.embeddings.add_positions(tokens, linear=True)
    for weights in model.trunk_weights():
        shared = run_layer(shared, bias, weights, config, linear=True)
    gates: list[Gates] = []
    pooled = []
    for concept in range(len(model.concepts)):
        hidden = shared
        for position in range(model.branch_layers):
            kept = (model.masks.heads[concept, position], model.masks.neurons[concept, position])
            gate = Gates(*(units.float().expand(batch, -1).clone().requires_grad_() for units in kept))
            gates.append(gate)
            weights = model.full_weights(concept, position)
            hidden = run_layer(hidden, bias, weights, config, gate, linear=True)
        pooled.append(mean_over_tokens(backbone.finish(hidden, linear=True), mask))
    logits = model.read_concepts(torch.stack(pooled, 1)).logits
    by_token = []
    by_gate: list[Tensor] = []
    finite = torch.where(value_weights != 0, logits * value_weights, 0.0)
    for concept in range(len(model.concepts)):
        own = gates[concept * model.branch_layers : (concept + 1) * model.branch_layers]
        inputs = [tokens, *(units for gate in own for units in gate)]
        gradients = torch.autograd.grad(finite[:, concept].sum(), inputs, retain_graph=True)
        by_token.append((gradients[0] * tokens).sum(-1))
        by_gate.extend(gradients[1:])
    shape = (len(model.concepts), model.branch_layers)
    heads = torch.stack(by_gate[0::2], 1).unflatten(1, shape)
    neurons = torch.stack(by_gate[1::2], 1).unflatten(1, shape)
    return Attribution(logits.detach(), torch.stack(by_token, 1).detach(), heads, neurons)
