"""The ranges that int8 activations are rounded over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from export.graphs import predict_graph
from export.products import Int8Product
from export.ranges import measure_ranges
from sparsecbm.model import SparseCBM

MakeModel = Callable[..., SparseCBM]

GENERATOR = np.random.default_rng(6)
IDS = [GENERATOR.integers(1, 60, length) for length in (9, 2, 14, 5)]


def test_every_product_of_the_prediction_graph_has_a_range(make_model: MakeModel) -> None:
    model = make_model()
    ranges = measure_ranges(model, IDS)
    nodes = predict_graph(model, "int8", Int8Product(ranges)).graph.node
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in nodes) == len(ranges)


def test_a_range_has_zero_between_its_bounds(make_model: MakeModel) -> None:
    assert all(low <= 0 <= high and low < high for low, high in measure_ranges(make_model(activation="relu"), IDS))


def test_more_texts_widen_ranges(make_model: MakeModel) -> None:
    model = make_model()
    few, many = measure_ranges(model, IDS[:1]), measure_ranges(model, IDS)
    assert all(b.low <= a.low and a.high <= b.high for a, b in zip(few, many, strict=True)) and few != many


def test_padding_widens_no_range(make_model: MakeModel) -> None:
    model = make_model()
    alone = [measure_ranges(model, [ids]) for ids in IDS]
    widest = [(min(r.low for r in each), max(r.high for r in each)) for each in zip(*alone, strict=True)]
    np.testing.assert_allclose(measure_ranges(model, IDS), widest, rtol=0.02, atol=1e-6)


def test_bounds_have_three_digits(make_model: MakeModel) -> None:
    assert all(float(f"{bound:.3g}") == bound for pair in measure_ranges(make_model(), IDS) for bound in pair)
