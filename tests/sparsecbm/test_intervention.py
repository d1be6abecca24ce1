"""Edits of masks, against the server's own code where it does the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.engine import Engine, EngineSettings, Intervention, _contrast, _lead
from serving.masks import edit_units as served_edit
from sparsecbm import checkpoint as checkpoints
from sparsecbm import data as datasets
from sparsecbm.intervention import (
    Edited,
    EditSettings,
    contrast,
    edit_at_budgets,
    edit_masks,
    edit_units,
    join_units,
    lead,
    untouched_difference,
)
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import encode, tokenizer_from_text

WIDE = EditSettings(budget=0.5, step=0.1, batch=5)


@pytest.fixture
def targets(pruned: SparseCBM, texts: Any) -> np.ndarray:
    """[N], of the first concept the value that the model finds second most probable."""
    from sparsecbm.evaluation import run

    return run(pruned, texts.ids).logits[:, 0].argsort(-1)[:, 1].numpy()


@pytest.fixture
def edited(pruned: SparseCBM, texts: Any, targets: np.ndarray) -> Edited:
    return edit_masks(pruned, texts.ids, 0, targets, WIDE)


def test_a_step_flips_the_units_that_the_server_flips() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(40) < 0.5
    masks = np.where(generator.random((30, 40)) < 0.1, ~base, base)
    gradient = generator.normal(size=(30, 40))
    counts = generator.integers(1, 8, 30)
    found = edit_units(*(torch.from_numpy(array) for array in (masks, base, gradient, counts))).numpy()
    for row in range(30):
        wanted = served_edit(masks[row], base, gradient[row], int(counts[row]))
        assert np.array_equal(found[row], wanted)


def test_units_that_promise_nothing_are_left_alone() -> None:
    base = torch.tensor([True, True, False, False])
    gradient = torch.tensor([[1.0, 2.0, -1.0, -2.0]])
    assert torch.equal(edit_units(base[None], base, gradient, torch.tensor([4]))[0], base)


def test_a_count_of_none_flips_nothing() -> None:
    base = torch.tensor([True, False])
    gradient = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    found = edit_units(base.repeat(2, 1), base, gradient, torch.tensor([0, 2]))
    assert found.tolist() == [[True, False], [False, True]]


def test_the_contrast_is_the_servers() -> None:
    present = np.array([[True, True, True], [True, True, False]])
    values = np.array([2, 0])
    found = contrast(torch.from_numpy(values), torch.from_numpy(present))
    np.testing.assert_allclose(found.numpy(), _contrast(values, present), atol=1e-7)


def test_the_lead_is_over_the_strongest_rival_and_the_servers() -> None:
    logits = np.array([[5.0, 1.0, 3.0], [2.0, 1.0, -np.inf], [0.0, 1.0, 3.0]])
    values = np.array([0, 1, 2])
    wanted = [[1, 0, -1], [-1, 1, 0], [0, -1, 1]]
    assert lead(torch.from_numpy(values), torch.from_numpy(logits)).tolist() == wanted
    assert _lead(values, logits).tolist() == wanted
    assert _lead(np.array([-1, 1, 2]), logits).tolist() == [[0, 0, 0], *wanted[1:]]


def test_some_texts_reach_their_value(edited: Edited, targets: np.ndarray) -> None:
    assert edited.reached.any()
    assert torch.equal(edited.reached, edited.logits.argmax(-1) == torch.from_numpy(targets))


def test_no_text_changes_more_units_than_the_budget(edited: Edited, pruned: SparseCBM) -> None:
    kept = int(join_units(pruned.masks.heads, pruned.masks.neurons)[0].sum())
    assert 0 < int(edited.changed.max()) <= int(0.5 * kept)


def test_the_logits_are_those_of_the_model_under_the_edited_mask(edited: Edited, pruned: SparseCBM, texts: Any) -> None:
    for row in (0, 20, 47):
        layers = edited.masks[row].view(2, 16)
        pruned.masks.heads[0], pruned.masks.neurons[0] = layers[:, :4], layers[:, 4:]
        ids = torch.from_numpy(texts.ids[row])[None]
        with torch.no_grad():
            output = pruned(ids, torch.ones_like(ids))
        torch.testing.assert_close(output.logits[0, 0], edited.logits[row], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(output.vectors[0, 0], edited.vectors[row], rtol=1e-3, atol=1e-4)


def test_texts_do_not_depend_on_the_batch(pruned: SparseCBM, texts: Any, targets: np.ndarray, edited: Edited) -> None:
    alone = edit_masks(pruned, texts.ids[9:10], 0, targets[9:10], WIDE)
    assert torch.equal(alone.masks[0], edited.masks[9])


def test_the_models_own_masks_stay(pruned: SparseCBM, texts: Any, targets: np.ndarray) -> None:
    before = pruned.masks.clone()
    edit_masks(pruned, texts.ids, 0, targets, WIDE)
    assert torch.equal(pruned.masks.heads, before.heads) and torch.equal(pruned.masks.neurons, before.neurons)


def test_other_concepts_are_untouched(pruned: SparseCBM, texts: Any, edited: Edited) -> None:
    assert untouched_difference(pruned, texts.ids[:6], 0, edited.masks[:6]) < 1e-4


def test_what_is_left_out_at_a_larger_budget_is_as_if_edited_anew(
    pruned: SparseCBM, texts: Any, targets: np.ndarray
) -> None:
    budgets = (0.1, 0.3, 0.5)
    told: list[int] = []
    for budget, found in zip(
        budgets, edit_at_budgets(pruned, texts.ids, 0, targets, budgets, told.append), strict=True
    ):
        anew = edit_masks(pruned, texts.ids, 0, targets, EditSettings(budget))
        assert torch.equal(found.masks, anew.masks)
        assert torch.equal(found.reached, anew.reached)
    assert sum(told) == 3 * len(texts.ids)


def test_the_server_changes_the_same_units(bundle: Path, checkpoint: Path, reviews: Path) -> None:
    """The engine computes with int8 weights, so a few texts may go another way."""
    loaded, data = checkpoints.load(checkpoint), datasets.load(str(reviews), "dev").head(30)
    ids = encode(tokenizer_from_text(loaded.tokenizer, 64), data.texts).ids
    target = np.array([(value + 1) % 3 for value in data.concepts[:, 1]])
    found = edit_masks(loaded.model, ids, 1, target, EditSettings(0.2, 0.05))
    engine = Engine.load(bundle, EngineSettings(threads=1, edit_budget=0.2, edit_step=0.05))
    values = loaded.config.concepts[1].values
    requests = [
        Intervention(text, {"service": values[value]}, "mask")
        for text, value in zip(data.texts, target.tolist(), strict=True)
    ]
    outcomes = engine.intervene(requests)
    same = [outcome.reached == bool(reached) for outcome, reached in zip(outcomes, found.reached, strict=True)]
    assert np.mean(same) >= 0.9
    counts = [len(outcome.edits) == int(count) for outcome, count in zip(outcomes, found.changed, strict=True)]
    assert np.mean(counts) >= 0.8
