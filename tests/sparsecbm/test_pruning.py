"""Pruning: the schedule, the optimal-brain-surgeon score, and the cuts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparsecbm.masks import UnitMasks
from sparsecbm.model import SparseCBM
from sparsecbm.pruning import BlockFisher, Pruner, Schedule

Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize(("step", "density"), [(0, 1), (10, 1), (20, 0.3 + 0.7 / 8), (30, 0.3), (99, 0.3)])
def test_the_schedule_is_cubic_between_start_and_end(step: int, density: float) -> None:
    assert Schedule(10, 30, 0.3).at(step) == pytest.approx(density)


def test_the_density_never_rises() -> None:
    densities = [Schedule(3, 17, 0.25).at(step) for step in range(25)]
    assert densities == sorted(densities, reverse=True)


@pytest.mark.parametrize("step", [0, 5])
def test_a_schedule_that_starts_where_it_ends_has_the_density_there(step: int) -> None:
    assert Schedule(step, step, 0.3).at(step) == 0.3


def surgeon(gradients: torch.Tensor, damping: float, share: float) -> torch.Tensor:
    """The dense formula, unit by unit: half of 1 over the inverse's diagonal."""
    fisher = gradients.T @ gradients / len(gradients)
    damped = fisher + damping * share * torch.eye(len(fisher))
    return torch.tensor([0.5 / torch.linalg.inv(damped)[unit, unit] for unit in range(len(fisher))])


@pytest.fixture
def gradients() -> torch.Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1, 0.1, 2, 0.5, 1])


@pytest.mark.parametrize("block", [6, 64])
def test_importance_in_one_block_is_the_dense_formula(gradients: torch.Tensor, block: int) -> None:
    fisher = BlockFisher(6, block)
    fisher.add(gradients)
    wanted = surgeon(gradients, 0.1, float(gradients.square().mean()))
    torch.testing.assert_close(fisher.importance(), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("block", [2, 3, 4])
def test_importance_in_blocks_is_the_dense_formula_of_each(gradients: torch.Tensor, block: int) -> None:
    fisher = BlockFisher(6, block)
    fisher.add(gradients)
    share = float(gradients.square().mean())
    wanted = torch.cat([surgeon(part, 0.1, share) for part in gradients.split(block, 1)])
    torch.testing.assert_close(fisher.importance(), wanted, rtol=1e-4, atol=0)


def test_importance_of_two_units_worked_out_by_hand() -> None:
    fisher = BlockFisher(2, 2)
    fisher.add(torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, 0.0], [2.0, 0.0]]))
    # F = diag(10/4, 2/4), damped by 0.5 times its mean diagonal of 1.5
    torch.testing.assert_close(fisher.importance(damping=0.5), torch.tensor([3.25 / 2, 1.25 / 2]))


def test_gradients_may_come_in_parts(gradients: torch.Tensor) -> None:
    whole, parts = BlockFisher(6, 4), BlockFisher(6, 4)
    whole.add(gradients)
    parts.add(gradients[:7])
    parts.add(gradients[7:])
    torch.testing.assert_close(parts.importance(), whole.importance())


def test_importance_without_any_gradient_is_finite() -> None:
    fisher = BlockFisher(3, 2)
    fisher.add(torch.zeros(4, 3))
    assert fisher.importance().isfinite().all()


def test_of_two_units_that_do_the_same_each_counts_less_than_one_alone() -> None:
    signal = torch.randn(30, 1, generator=torch.Generator().manual_seed(0))
    twins, alone = BlockFisher(2, 2), BlockFisher(1, 1)
    twins.add(signal.expand(-1, 2))
    alone.add(signal)
    assert (twins.importance() < alone.importance() / 2).all()


def loss(model: SparseCBM, batch: Batch, pruner: Pruner) -> torch.Tensor:
    logits, vectors = model(*batch, pruner.gates(len(batch[0])))
    return torch.as_tensor(vectors.square().mean() + logits[:, 0].square().mean())


def cut(model: SparseCBM, batch: Batch, *densities: float) -> UnitMasks:
    pruner = Pruner(model.masks, block=5)
    for density in densities:
        loss(model, batch, pruner).backward()
        pruner.observe()
        pruner.prune(density)
    return model.masks


@pytest.mark.parametrize(("density", "heads", "neurons"), [(0.75, 3, 9), (0.5, 2, 6), (0.32, 1, 3), (0.25, 1, 3)])
def test_every_layer_of_every_concept_reaches_the_density(
    model: SparseCBM, batch: Batch, density: float, heads: int, neurons: int
) -> None:
    masks = cut(model, batch, 0.9, density)
    assert masks.heads.sum(-1).flatten().tolist() == [heads] * 4
    assert masks.neurons.sum(-1).flatten().tolist() == [neurons] * 4


def test_the_last_unit_is_never_lost(model: SparseCBM, batch: Batch) -> None:
    masks = cut(model, batch, 0.01, 0.001)
    assert masks.heads.sum(-1).flatten().tolist() == [1] * 4
    assert masks.neurons.sum(-1).flatten().tolist() == [1] * 4


def test_a_density_of_one_cuts_nothing(model: SparseCBM, batch: Batch) -> None:
    assert cut(model, batch, 1.0).density() == 1


def test_cut_units_stay_cut(model: SparseCBM, batch: Batch) -> None:
    earlier = cut(model, batch, 0.5).clone()
    later = cut(model, batch, 0.9, 0.25)
    assert not (later.flat() & ~earlier.flat()).any()


def test_the_same_gradients_cut_the_same_units(make_model: Callable[..., SparseCBM], batch: Batch) -> None:
    first, second = (cut(make_model(), batch, 0.7, 0.4).flat() for _ in range(2))
    assert torch.equal(first, second)


def test_the_least_important_units_are_cut(model: SparseCBM, batch: Batch) -> None:
    pruner = Pruner(model.masks)
    loss(model, batch, pruner).backward()
    pruner.observe()
    importance = pruner._fisher[0][0][1].importance()
    pruner.prune(0.5)
    kept = model.masks.neurons[0, 0]
    assert importance[kept].min() >= importance[~kept].max()


def test_nothing_is_cut_before_anything_is_observed(model: SparseCBM) -> None:
    Pruner(model.masks).prune(0.5)
    assert model.masks.density() == 1


def test_observed_gradients_are_those_of_single_texts(model: SparseCBM, batch: Batch) -> None:
    """A mean over a batch gives each text's gate gradient divided by the batch's size."""

    def fisher(ids: torch.Tensor, mask: torch.Tensor, pruner: Pruner) -> None:
        output = model(ids, mask, pruner.gates(len(ids)))
        output.vectors.square().mean().backward()
        pruner.observe()

    together, alone = Pruner(model.masks), Pruner(model.masks)
    fisher(*batch, together)
    for text in range(3):
        fisher(batch[0][text : text + 1], batch[1][text : text + 1], alone)
    for concept in range(2):
        for kind in range(2):
            found, wanted = together._fisher[concept][1][kind], alone._fisher[concept][1][kind]
            torch.testing.assert_close(found.blocks, wanted.blocks, rtol=1e-3, atol=1e-6)
