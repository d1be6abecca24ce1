"""Matrix products, in fp32 and with int8 weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from export.graph import GraphBuilder
from export.products import Matrix, Product, exact_product, fast_product, quantise, real_values, transposed_product
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
    np.testing.assert_allclose(run(session(open_graph, exact_product, matrix, bias), INPUTS), expected, atol=1e-5)


def test_a_fast_product_in_fp32_is_exact(open_graph: Open) -> None:
    opened = session(open_graph, fast_product, Matrix(WEIGHT, "fp32"), BIAS)
    np.testing.assert_allclose(run(opened, INPUTS), INPUTS @ WEIGHT + BIAS, atol=1e-5)


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
def test_a_fast_product_in_int8_is_off_by_no_more_than_the_inputs_rounding(
    open_graph: Open, bias: np.ndarray | None
) -> None:
    matrix = Matrix(WEIGHT, "int8")
    step = (max(INPUTS.max(), 0) - min(INPUTS.min(), 0)) / 255
    bound = step * np.abs(real(matrix)).sum(axis=0)
    expected = INPUTS @ real(matrix) + (0 if bias is None else bias)
    assert np.all(np.abs(run(session(open_graph, fast_product, matrix, bias), INPUTS) - expected) <= bound)


def test_a_fast_product_in_int8_does_not_depend_on_the_order_of_rows(open_graph: Open) -> None:
    opened = session(open_graph, fast_product, Matrix(WEIGHT, "int8"), BIAS)
    order = [3, 0, 4, 2, 1]
    assert np.array_equal(run(opened, INPUTS[order]), run(opened, INPUTS)[order])


def test_a_fast_product_in_int8_does_not_depend_on_other_rows_within_its_range(open_graph: Open) -> None:
    opened = session(open_graph, fast_product, Matrix(WEIGHT, "int8"), BIAS)
    more = np.concatenate([INPUTS, np.clip(INPUTS * 2, INPUTS.min(), INPUTS.max())])
    assert np.array_equal(run(opened, more)[:5], run(opened, INPUTS))


def test_a_transposed_product_multiplies_by_the_rows(open_graph: Open) -> None:
    graph, matrix = GraphBuilder(), Matrix(WEIGHT, "int8")
    graph.rename(transposed_product(graph, "x", real_values(graph, matrix)), "y")
    opened = open_graph(graph.build("product", {"x": (TensorProto.FLOAT, ("rows", 12))}, {"y": ("rows", 16)}))
    inputs = INPUTS[:, :12].copy()
    np.testing.assert_allclose(run(opened, inputs), inputs @ real(matrix).T, atol=1e-5)
