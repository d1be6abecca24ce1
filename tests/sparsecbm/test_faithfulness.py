"""Which tokens are removed, and a model whose tokens are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsecbm.evaluation import run
from sparsecbm.faithfulness import METHODS, SERVED, SHARES, Faithfulness, highest, measure
from sparsecbm.model import SparseCBM

SPECIAL = {1, 2}


def test_the_highest_share_is_rounded_up_and_leaves_out_what_cannot_be_removed() -> None:
    scores = torch.tensor([[9.0, 1, 5, 3, 4, 9], [9.0, 2, 1, 0, 0, 9]])
    removable = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()
    assert highest(scores, removable, 0.5).int().tolist() == [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
    assert highest(scores, removable, 0.1).int().tolist() == [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert torch.equal(highest(scores, removable, 1.0), removable)


def test_a_share_that_is_whole_is_not_rounded_up_by_its_float() -> None:
    removable = torch.ones(1, 30, dtype=torch.bool)
    assert int(highest(torch.rand(1, 30), removable, 0.1).sum()) == 3


def test_a_text_of_special_tokens_has_nothing_to_remove() -> None:
    assert not highest(torch.rand(1, 3), torch.zeros(1, 3, dtype=torch.bool), 0.5).any()


@pytest.fixture
def found(pruned: SparseCBM, texts: Any) -> dict[str, Faithfulness]:
    return measure(pruned, texts.ids, SPECIAL, batch=7)


def test_every_method_is_measured(found: dict[str, Faithfulness]) -> None:
    assert list(found) == list(METHODS)
    for figures in found.values():
        assert figures.comprehensiveness.shape == figures.sufficiency.shape == (48, 2, len(SHARES))


@torch.no_grad()
def test_one_tokens_fall_is_worked_out_by_hand(found: dict[str, Faithfulness], pruned: SparseCBM, texts: Any) -> None:
    """A tenth of a text of few tokens is one token; leaving one out, the best is the one with the largest fall."""
    row, ids = 0, torch.from_numpy(texts.ids[0])[None]
    logits = pruned(ids, torch.ones_like(ids)).logits[0, 0]
    value = int(logits.argmax())
    weights = torch.full((3,), -0.5)
    weights[value] = 1
    best, chance = -torch.inf, 0.0
    for position in range(1, ids.shape[1] - 1):
        mask = torch.ones_like(ids)
        mask[0, position] = 0
        without = pruned(ids, mask).logits[0, 0]
        fall = float(((logits - without) * weights).sum())
        if fall > best:
            best, chance = fall, float(without.softmax(-1)[value])
    wanted = float(logits.softmax(-1)[value]) - chance
    assert found["leave one out"].comprehensiveness[row, 0, 0] == pytest.approx(wanted, abs=1e-5)


def test_figures_do_not_depend_on_the_batch(found: dict[str, Faithfulness], pruned: SparseCBM, texts: Any) -> None:
    other = measure(pruned, texts.ids, SPECIAL, batch=48)
    for name in (SERVED, "gradient × input", "leave one out"):
        assert other[name].comprehensiveness == pytest.approx(found[name].comprehensiveness, abs=1e-4)


def test_leaving_one_out_finds_more_than_chance(found: dict[str, Faithfulness]) -> None:
    best, none = found["leave one out"], found["random"]
    assert best.comprehensiveness.mean() > none.comprehensiveness.mean()
    assert best.sufficiency.mean() < none.sufficiency.mean()


def test_the_cost_is_counted_in_passes(found: dict[str, Faithfulness], texts: Any) -> None:
    tokens = sum(map(len, texts.ids)) / 48
    assert (found[SERVED].forward, found[SERVED].backward) == (1, 2)
    assert (found["gradient × input"].forward, found["gradient × input"].backward) == (1, 2)
    assert found["leave one out"].forward == pytest.approx(1 + tokens)
    assert (found["random"].forward, found["random"].backward) == (0, 0)


def test_the_model_is_left_as_it_was(pruned: SparseCBM, texts: Any) -> None:
    before = run(pruned, texts.ids).logits
    measure(pruned, texts.ids[:8], SPECIAL)
    assert torch.equal(run(pruned, texts.ids).logits, before)
    assert all(parameter.grad is None for parameter in pruned.parameters())
