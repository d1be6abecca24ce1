"""Matrix products, in fp32 and with int8 weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from export.graph import GraphBuilder
from export.products import Columns, ExactProduct, Int8Product, Matrix, Product, Range, quantise
from sparsecbm.bundle import Precision

Open = Callable[[onnx.ModelProto], ort.InferenceSession]

GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.normal(size=(16, 12)).astype(np.float32)
BIAS = GENERATOR.normal(size=12).astype(np.float32)
INPUTS = GENERATOR.normal(size=(5, 16)).astype(np.float32)


def real(matrix: Matrix) -> np.ndarray:
    """The values that a matrix stands for."""
    if matrix.quantised is None:
        return matrix.weight
    values, scale = matrix.quantised
    product: np.ndarray = values.astype(np.float32) * scale
    return product


def session(open_graph: Open, product: Product, matrix: Matrix, bias: np.ndarray | None) -> ort.InferenceSession:
    graph = GraphBuilder()
    graph.rename(product(graph, "x", matrix, bias), "y")
    shape = ("rows", len(matrix.weight))
    return open_graph(graph.build("product", {"x": (TensorProto.FLOAT, shape)}, {"y": ("rows", "columns")}))


def run(opened: ort.InferenceSession, inputs: np.ndarray) -> np.ndarray:
    output: np.ndarray = opened.run(["y"], {"x": inputs})[0]
    return output


def test_quantising_rounds_by_at_most_half_a_step() -> None:
    values, scale = quantise(WEIGHT)
    assert np.all(np.abs(values * scale - WEIGHT) <= scale * 0.5 + 1e-7)


def test_quantising_uses_the_whole_range_of_every_column() -> None:
    values, _ = quantise(WEIGHT * np.geomspace(1e-6, 1e6, 12, dtype=np.float32))
    assert np.abs(values).max(axis=0).tolist() == [127] * 12


def test_a_column_of_zeros_is_quantised_to_zeros() -> None:
    values, scale = quantise(np.zeros((4, 2), np.float32))
    assert not values.any() and np.isfinite(scale).all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rows_and_columns_are_those_of_the_whole_matrix(precision: Precision) -> None:
    whole, rows, columns = Matrix(WEIGHT, precision), np.array([1, 7, 8]), np.array([0, 11])
    assert np.array_equal(real(whole.select(rows, columns)), real(whole)[rows][:, columns])


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_exact_product_is_that_of_the_stored_values(
    open_graph: Open, precision: Precision, bias: np.ndarray | None
) -> None:
    matrix = Matrix(WEIGHT, precision)
    expected = INPUTS @ real(matrix) + (0 if bias is None else bias)
    np.testing.assert_allclose(run(session(open_graph, ExactProduct(), matrix, bias), INPUTS), expected, atol=1e-5)


RANGE = Range(float(min(INPUTS.min(), 0)), float(INPUTS.max()))


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
def test_an_int8_product_is_off_by_no_more_than_the_inputs_rounding(open_graph: Open, bias: np.ndarray | None) -> None:
    matrix = Matrix(WEIGHT, "int8")
    bound = (RANGE.high - RANGE.low) / 255 * np.abs(real(matrix)).sum(axis=0)
    expected = INPUTS @ real(matrix) + (0 if bias is None else bias)
    actual = run(session(open_graph, Int8Product([RANGE]), matrix, bias), INPUTS)
    assert np.all(np.abs(actual - expected) <= bound)


def test_an_int8_product_takes_inputs_beyond_its_range_for_its_bounds(open_graph: Open) -> None:
    opened = session(open_graph, Int8Product([Range(-1.0, 2.0)]), Matrix(WEIGHT, "int8"), BIAS)
    assert np.array_equal(run(opened, np.clip(INPUTS * 9, -1, 2)), run(opened, INPUTS * 9))


def test_an_int8_product_of_a_row_does_not_depend_on_the_other_rows(open_graph: Open) -> None:
    opened = session(open_graph, Int8Product([RANGE]), Matrix(WEIGHT, "int8"), BIAS)
    assert np.array_equal(run(opened, np.concatenate([INPUTS * 100, INPUTS]))[5:], run(opened, INPUTS))


def test_int8_products_take_their_ranges_in_turn(open_graph: Open) -> None:
    graph, product, matrix = GraphBuilder(), Int8Product([RANGE, Range(0.0, 0.0)]), Matrix(WEIGHT, "int8")
    graph.rename(product(graph, "x", matrix, None), "y")
    graph.rename(product(graph, "x", matrix, None), "z")
    inputs = {"x": (TensorProto.FLOAT, ("rows", 16))}
    opened = open_graph(graph.build("products", inputs, dict.fromkeys("yz", ("rows", 12))))
    first, second = opened.run(["y", "z"], {"x": INPUTS})
    assert first.any() and np.abs(second).max() < 1e-6


def backward(
    open_graph: Open,
    product: Product,
    matrix: Matrix,
    gradient: np.ndarray,
    factor: np.ndarray | None,
    chosen: np.ndarray | None,
) -> np.ndarray:
    graph = GraphBuilder()
    given = "" if factor is None else graph.constant(factor)
    graph.rename(product.backward(graph, "x", Columns(matrix, chosen), given).whole(graph), "y")
    inputs = {"x": (TensorProto.FLOAT, ("rows", gradient.shape[1]))}
    return run(open_graph(graph.build("product", inputs, {"y": ("rows", len(matrix.weight))})), gradient)


CHOSEN = np.array([11, 0, 3, 4, 5, 6, 7, 9])
FACTOR = GENERATOR.normal(size=8).astype(np.float32)


@pytest.mark.parametrize("factor", [FACTOR, None], ids=["factor", "no factor"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_exact_products_derivative_multiplies_by_the_rows(
    open_graph: Open, precision: Precision, factor: np.ndarray | None
) -> None:
    matrix, gradient = Matrix(WEIGHT, precision), INPUTS[:, :8].copy()
    actual = backward(open_graph, ExactProduct(), matrix, gradient, factor, CHOSEN)
    expected = (gradient if factor is None else gradient * factor) @ real(matrix)[:, CHOSEN].T
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("factor", [FACTOR, None], ids=["factor", "no factor"])
def test_an_int8_products_derivative_is_off_by_no_more_than_its_rows_rounding(
    open_graph: Open, factor: np.ndarray | None
) -> None:
    """Rows that differ by many orders of magnitude, too."""
    matrix, rows = Matrix(WEIGHT, "int8"), np.geomspace(1e-9, 1e6, 5, dtype=np.float32)[:, None]
    gradient = INPUTS[:, :8] * rows
    actual = backward(open_graph, Int8Product([]), matrix, gradient, factor, CHOSEN)
    assert matrix.quantised is not None
    values, scale = matrix.quantised
    scaled = (gradient if factor is None else gradient * factor) * scale[CHOSEN]
    bound = np.abs(scaled).max(axis=1, keepdims=True) / 127 * np.abs(values[:, CHOSEN].astype(np.float32)).sum(axis=1)
    assert np.all(np.abs(actual - scaled @ values[:, CHOSEN].T) <= bound)


def test_an_int8_products_derivative_of_zeros_is_zero(open_graph: Open) -> None:
    zeros = np.zeros((2, 12), np.float32)
    assert not backward(open_graph, Int8Product([]), Matrix(WEIGHT, "int8"), zeros, None, None).any()
