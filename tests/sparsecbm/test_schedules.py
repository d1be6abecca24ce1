"""Schedules: the density at every step."""

from __future__ import annotations

import pytest

from sparsecbm.recipe import Shape
from sparsecbm.schedules import Schedule

SHAPES = pytest.mark.parametrize("shape", ["cubic", "linear"])


@pytest.mark.parametrize(("step", "density"), [(0, 1), (10, 1), (20, 0.3 + 0.7 / 8), (30, 0.3), (99, 0.3)])
def test_the_cubic_schedule_falls_fast_at_first(step: int, density: float) -> None:
    assert Schedule(10, 30, 0.3).at(step) == pytest.approx(density)


@pytest.mark.parametrize(("step", "density"), [(0, 1), (10, 1), (15, 0.825), (20, 0.65), (30, 0.3), (99, 0.3)])
def test_the_linear_schedule_falls_evenly(step: int, density: float) -> None:
    assert Schedule(10, 30, 0.3, "linear").at(step) == pytest.approx(density)


@SHAPES
def test_the_density_never_rises(shape: Shape) -> None:
    densities = [Schedule(3, 17, 0.25, shape).at(step) for step in range(25)]
    assert densities == sorted(densities, reverse=True)


@SHAPES
@pytest.mark.parametrize("step", [0, 5])
def test_a_schedule_that_starts_where_it_ends_has_the_density_there(step: int, shape: Shape) -> None:
    assert Schedule(step, step, 0.3, shape).at(step) == 0.3
