"""Token scores and gate gradients against finite differences of the model, some of whose parts stand still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsecbm import backbone
from sparsecbm.attribution import Attribution, attribute
from sparsecbm.backbone import Gates
from sparsecbm.model import Probe, SparseCBM

STEP = 1e-4
IDS = torch.tensor([[3, 14, 7, 21, 9, 0, 0], [5, 11, 2, 28, 17, 25, 4]])  # no token twice, so a row is a token's own
MASK = (IDS != 0).long()


@pytest.fixture
def value_weights() -> torch.Tensor:
    """[batch, concepts, values], 0 where a concept lacks the value."""
    weights = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(8))
    weights[:, 1, 2] = 0
    return weights


@pytest.fixture
def found(pruned: SparseCBM, value_weights: torch.Tensor) -> Attribution:
    return attribute(pruned.double(), IDS, MASK, value_weights)


class Constants:
    """Keeps attention weights, deviations and activations' factors as they were in the first run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._kept: list[torch.Tensor] = []
        self._next = 0
        self._recording = True
        softmax, activations = torch.Tensor.softmax, dict(backbone.ACTIVATIONS)

        def attend(scores: torch.Tensor, dim: int) -> torch.Tensor:
            return self._constant(lambda: softmax(scores, dim))

        def normalise(hidden: torch.Tensor, weight: Any, bias: Any, config: Any, linear: bool = False) -> torch.Tensor:
            centred = hidden - hidden.mean(-1, keepdim=True)
            deviation = self._constant(lambda: (centred.square().mean(-1, keepdim=True) + config.norm_epsilon).sqrt())
            normed: torch.Tensor = centred / deviation * weight + bias
            return normed

        def activate(inputs: torch.Tensor, config: Any, linear: bool = False) -> torch.Tensor:
            factor = self._constant(lambda: activations[config.activation](inputs) / inputs)
            return inputs * factor

        monkeypatch.setattr(torch.Tensor, "softmax", attend)
        monkeypatch.setattr(backbone, "normalise", normalise)
        monkeypatch.setattr(backbone, "activate", activate)

    def _constant(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self._recording:
            self._kept.append(compute())
            return self._kept[-1]
        self._next += 1
        return self._kept[self._next - 1]

    def keep(self) -> None:
        """Ends the first run, or another one."""
        self._recording, self._next = False, 0


@pytest.fixture
def constants(found: Attribution, monkeypatch: pytest.MonkeyPatch) -> Constants:
    return Constants(monkeypatch)


def weighted(logits: torch.Tensor, value_weights: torch.Tensor) -> torch.Tensor:
    """[batch, concepts], the sums that are attributed."""
    return torch.where(value_weights != 0, logits * value_weights, 0.0).sum(-1)


def test_logits_are_the_models(found: Attribution, pruned: SparseCBM) -> None:
    with torch.no_grad():
        torch.testing.assert_close(found.logits, pruned(IDS, MASK).logits)


@torch.no_grad()
def test_token_scores_are_the_derivatives_by_the_embeddings_scale(
    found: Attribution, pruned: SparseCBM, value_weights: torch.Tensor, constants: Constants
) -> None:
    table = pruned.backbone.embeddings.token
    pruned(IDS, MASK)
    for text, position in MASK.nonzero().tolist():
        row = int(IDS[text, position])
        original = table[row].clone()
        sums = []
        for scale in (1 + STEP, 1 - STEP):
            table[row] = original * scale
            constants.keep()
            sums.append(weighted(pruned(IDS, MASK).logits, value_weights)[text])
        table[row] = original
        difference = (sums[0] - sums[1]) / (2 * STEP)
        torch.testing.assert_close(found.tokens[text, :, position], difference, rtol=1e-4, atol=1e-6)


def test_padding_has_no_score(found: Attribution) -> None:
    assert found.tokens[0, :, 5:].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@torch.no_grad()
def test_gate_gradients_are_the_derivatives_by_the_gates_of_kept_and_pruned_units(
    found: Attribution, pruned: SparseCBM, value_weights: torch.Tensor, constants: Constants, kind: str
) -> None:
    masks = pruned.masks.clone()
    pruned.masks.heads[:] = True
    pruned.masks.neurons[:] = True

    def sums(concept: int, layer: int, unit: int, step: float) -> torch.Tensor:
        heads, neurons = masks.heads.double(), masks.neurons.double()
        gates = [[Gates(heads[k, at].repeat(2, 1), neurons[k, at].repeat(2, 1)) for at in range(2)] for k in range(2)]
        getattr(gates[concept][layer], kind)[:, unit] += step
        constants.keep()
        return weighted(pruned(IDS, MASK, Probe(gates)).logits, value_weights)[:, concept]

    whole = [[Gates(masks.heads[k, at].double(), masks.neurons[k, at].double()) for at in range(2)] for k in range(2)]
    pruned(IDS, MASK, Probe([[Gates(*(units.repeat(2, 1) for units in gate)) for gate in row] for row in whole]))
    gradients = getattr(found, kind)
    assert gradients.shape == (2, *getattr(masks, kind).shape)
    for concept, layer, unit in torch.ones_like(getattr(masks, kind)).nonzero().tolist():
        difference = (sums(concept, layer, unit, STEP) - sums(concept, layer, unit, -STEP)) / (2 * STEP)
        torch.testing.assert_close(gradients[:, concept, layer, unit].double(), difference, rtol=1e-4, atol=1e-6)


def test_value_weights_of_zero_give_no_score(pruned: SparseCBM) -> None:
    found = attribute(pruned, IDS, MASK, torch.zeros(2, 2, 3))
    for scores in (found.tokens, found.heads, found.neurons):
        assert scores.count_nonzero() == 0


def test_a_concepts_scores_do_not_depend_on_the_other_concepts_weights(
    pruned: SparseCBM, value_weights: torch.Tensor
) -> None:
    other = value_weights.clone()
    other[:, 1] = 0
    alone, both = attribute(pruned, IDS, MASK, other), attribute(pruned, IDS, MASK, value_weights)
    for first, second in zip(alone[1:], both[1:], strict=True):
        torch.testing.assert_close(first[:, 0], second[:, 0])


def test_the_models_own_gradients_stay_empty(pruned: SparseCBM, value_weights: torch.Tensor) -> None:
    attribute(pruned, IDS, MASK, value_weights)
    assert all(parameter.grad is None for parameter in pruned.parameters())


def test_token_scores_add_up_to_what_is_explained_where_the_model_adds_nothing_of_its_own(
    pruned: SparseCBM, value_weights: torch.Tensor
) -> None:
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            if "bias" in name or name.endswith("position"):
                parameter.zero_()
    found = attribute(pruned.double(), IDS, MASK, value_weights)
    torch.testing.assert_close(found.tokens.sum(-1), weighted(found.logits, value_weights))
