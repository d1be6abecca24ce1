"""Importance: every score against the dense formula, or worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparsecbm.importance import BlockFisher, FirstOrder, Magnitude, Measure, WoodburyFisher


def surgeon(gradients: torch.Tensor, values: torch.Tensor, ridge: float) -> torch.Tensor:
    """The dense formula, value by value, in double precision."""
    wide = gradients.double()
    inverse = torch.linalg.inv(wide.T @ wide / len(wide) + ridge * torch.eye(wide.shape[1], dtype=torch.float64))
    return torch.as_tensor(values.double().square() / (2 * inverse.diagonal())).float()


@pytest.fixture
def gradients() -> torch.Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1, 0.1, 2, 0.5, 1])


@pytest.fixture
def values() -> torch.Tensor:
    return torch.tensor([0.5, -2.0, 3.0, 0.1, -1.0, 0.0])


@pytest.mark.parametrize("block", [1, 2, 3, 4, 6, 64])
def test_scores_from_products_are_the_dense_formula_of_each_block(
    gradients: torch.Tensor, values: torch.Tensor, block: int
) -> None:
    fisher = BlockFisher(6, block)
    fisher.add(gradients)
    ridge = 0.1 * float(gradients.square().mean())
    parts = zip(gradients.split(block, 1), values.split(block), strict=True)
    wanted = torch.cat([surgeon(part, value, ridge) for part, value in parts])
    torch.testing.assert_close(fisher.scores(values), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 6, 64])
def test_rank_one_updates_of_the_inverse_give_the_dense_formula_of_each_block(
    gradients: torch.Tensor, values: torch.Tensor, block: int
) -> None:
    fisher = WoodburyFisher(6, block, samples=20)
    fisher.add(gradients)
    ridge = 0.1 * float(gradients[0].square().mean())
    parts = zip(gradients.split(block, 1), values.split(block), strict=True)
    wanted = torch.cat([surgeon(part, value, ridge) for part, value in parts])
    torch.testing.assert_close(fisher.scores(values), wanted, rtol=1e-4, atol=0)


def test_the_updated_inverse_is_the_inverse_of_the_fisher_matrix(gradients: torch.Tensor) -> None:
    fisher = WoodburyFisher(6, 6, samples=20)
    fisher.add(gradients)
    dense = gradients.T @ gradients / 20 + fisher.ridge * torch.eye(6)
    torch.testing.assert_close(fisher.inverse[0] @ dense, torch.eye(6), rtol=0, atol=1e-4)


def test_scores_of_two_values_worked_out_by_hand() -> None:
    fisher = BlockFisher(2, 2, damping=0.5)
    fisher.add(torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, 0.0], [2.0, 0.0]]))
    # F = diag(10/4, 2/4), damped by 0.5 times its mean diagonal of 1.5
    torch.testing.assert_close(fisher.scores(torch.tensor([1.0, 2.0])), torch.tensor([3.25 / 2, 4 * 1.25 / 2]))


def test_one_rank_one_update_worked_out_by_hand() -> None:
    fisher = WoodburyFisher(2, 2, samples=2, damping=0.4)
    fisher.add(torch.tensor([[1.0, 2.0]]))
    # λ = 0.4 · 5/2 = 1, F = [[1.5, 1], [1, 3]], its inverse's diagonal (3, 1.5) / 3.5
    torch.testing.assert_close(fisher.scores(torch.tensor([1.0, 3.0])), torch.tensor([3.5 / 6, 9 * 3.5 / 3]))


def test_the_first_order_score_is_the_value_times_the_mean_size_of_its_gradient() -> None:
    measure = FirstOrder(3)
    measure.add(torch.tensor([[1.0, -2.0, 0.0], [-3.0, 0.0, 0.5]]))
    torch.testing.assert_close(measure.scores(torch.tensor([-1.0, 2.0, 4.0])), torch.tensor([2.0, 2.0, 1.0]))


def test_the_magnitude_needs_no_gradient() -> None:
    measure = Magnitude(3)
    assert measure.seen and measure.scores(torch.tensor([-1.0, 2.0, 0.0])).tolist() == [1, 2, 0]


MEASURES: list[Callable[[], Measure]] = [
    lambda: BlockFisher(6, 4),
    lambda: WoodburyFisher(6, 4, 20),
    lambda: WoodburyFisher(6, 1, 20),
    lambda: FirstOrder(6),
]
EACH = pytest.mark.parametrize("make", MEASURES, ids=["products", "woodbury", "diagonal", "first order"])


@EACH
def test_gradients_may_come_in_parts(
    gradients: torch.Tensor, values: torch.Tensor, make: Callable[[], Measure]
) -> None:
    whole, parts = make(), make()
    whole.add(gradients)
    parts.add(gradients[:7])
    parts.add(gradients[7:])
    assert whole.seen == parts.seen == 20
    torch.testing.assert_close(parts.scores(values), whole.scores(values))


@EACH
def test_a_measure_goes_on_from_its_state(
    gradients: torch.Tensor, values: torch.Tensor, make: Callable[[], Measure]
) -> None:
    whole, first, second = make(), make(), make()
    whole.add(gradients[:7])
    whole.add(gradients[7:])
    first.add(gradients[:7])
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    second.add(gradients[7:])
    assert second.seen == 20
    assert torch.equal(second.scores(values), whole.scores(values))


@EACH
def test_scores_without_any_gradient_are_finite(values: torch.Tensor, make: Callable[[], Measure]) -> None:
    measure = make()
    measure.add(torch.zeros(4, 6))
    assert measure.seen == 4 and measure.scores(values).isfinite().all()


def test_a_first_gradient_of_zero_changes_no_score(gradients: torch.Tensor, values: torch.Tensor) -> None:
    plain, late = WoodburyFisher(6, 3, 20), WoodburyFisher(6, 3, 20)
    plain.add(gradients)
    late.add(torch.cat((torch.zeros(1, 6), gradients)))
    assert torch.equal(plain.scores(values), late.scores(values))


def test_a_gradient_far_larger_than_the_first_keeps_scores_positive(values: torch.Tensor) -> None:
    for block in (1, 3):
        fisher = WoodburyFisher(6, block, 4)
        fisher.add(torch.cat((torch.full((1, 6), 1e-4), torch.full((3, 6), 1e-1))))
        assert (fisher.scores(values)[:5] > 0).all()


def test_of_two_units_that_do_the_same_each_counts_less_than_one_alone() -> None:
    signal = torch.randn(30, 1, generator=torch.Generator().manual_seed(0))
    twins, alone = BlockFisher(2, 2), BlockFisher(1, 1)
    twins.add(signal.expand(-1, 2))
    alone.add(signal)
    assert (twins.scores(torch.ones(2)) < alone.scores(torch.ones(1)) / 2).all()
