"""Matrix products of a graph and their derivatives, in fp32 or with int8 weights.

An int8 matrix has one scale per output column. The prediction graph multiplies it with activations that are rounded to
eight bits over a range measured beforehand, so that the answer to a text doesn't depend on the texts beside it; the
explanation graph multiplies its real values. All graphs share one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from export.graph import MICROSOFT, GraphBuilder
from sparsecbm.bundle import Precision


class Quantised(NamedTuple):
    """A matrix [in, out] as int8 values and a float32 scale per column, [out]."""

    values: np.ndarray
    scale: np.ndarray


def quantise(weight: np.ndarray) -> Quantised:
    """Rounds a matrix [in, out] to symmetric int8, each column with its own scale."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(127)
    return Quantised(np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale)


class Matrix:
    """A weight matrix [in, out] of which rows or columns can be taken after it was quantised."""

    def __init__(self, weight: np.ndarray, precision: Precision) -> None:
        self.weight = weight.astype(np.float32)
        self.quantised = quantise(self.weight) if precision == "int8" else None

    def select(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> Matrix:
        """The matrix of some rows and columns, with the scales of the whole one."""
        part = Matrix.__new__(Matrix)
        row = slice(None) if rows is None else rows
        column = slice(None) if columns is None else columns
        part.weight = self.weight[row][:, column]
        part.quantised = None
        if self.quantised is not None:
            part.quantised = Quantised(self.quantised.values[row][:, column], self.quantised.scale[column])
        return part


class Columns(NamedTuple):
    """Some columns of a matrix, by their numbers, or all."""

    matrix: Matrix
    chosen: np.ndarray | None = None

    def take(self, graph: GraphBuilder, tensor: str, axis: int) -> str:
        """The columns of a constant that has the matrix's; they are taken once, when the graph is loaded."""
        if self.chosen is None:
            return tensor
        return str(graph.op("Gather", tensor, graph.ints(*self.chosen), axis=axis))


class Rows(NamedTuple):
    """A gradient [.., rows, width] and, where it has one, what each row is to be multiplied by yet, [.., rows, 1]."""

    values: str
    reach: str = ""

    def whole(self, graph: GraphBuilder) -> str:
        """The gradient itself."""
        return str(graph.op("Mul", self.values, self.reach)) if self.reach else self.values

    def of(self, graph: GraphBuilder, earlier: Rows) -> Rows:
        """These rows, computed of the values of ``earlier`` ones, with those's reach too."""
        if not earlier.reach:
            return self
        return Rows(self.values, str(graph.op("Mul", self.reach, earlier.reach)) if self.reach else earlier.reach)


class Product(Protocol):
    """How a graph multiplies by matrices."""

    def __call__(self, graph: GraphBuilder, inputs: str, matrix: Matrix, bias: np.ndarray | None) -> str:
        """Emits ``inputs @ matrix + bias``."""
        ...

    def backward(self, graph: GraphBuilder, gradient: str, columns: Columns, factor: str = "") -> Rows:
        """Emits ``(gradient · factor) @ columns.T``."""
        ...


def real_values(graph: GraphBuilder, matrix: Matrix) -> str:
    """The matrix in float32, computed from its int8 values once, when the graph is loaded."""
    if matrix.quantised is None:
        return graph.constant(matrix.weight, "weight")
    values, scale = matrix.quantised
    floats = graph.op("Cast", graph.constant(values, "weight"), to=1)
    return str(graph.op("Mul", floats, graph.constant(scale, "scale")))


class ExactProduct:
    """Products of float32 activations with the weights' real values."""

    def __call__(self, graph: GraphBuilder, inputs: str, matrix: Matrix, bias: np.ndarray | None) -> str:
        product = str(graph.op("MatMul", inputs, real_values(graph, matrix)))
        if bias is None:
            return product
        return str(graph.op("Add", product, graph.constant(bias.astype(np.float32), "bias")))

    def backward(self, graph: GraphBuilder, gradient: str, columns: Columns, factor: str = "") -> Rows:
        weight = columns.take(graph, real_values(graph, columns.matrix), axis=1)
        gradient = graph.op("Mul", gradient, factor) if factor else gradient
        return Rows(graph.op("FusedMatMul", gradient, weight, domain=MICROSOFT, transB=1))


class Range(NamedTuple):
    """Least and greatest value that a product's inputs take; 0 lies between them."""

    low: float
    high: float


class Int8Product:
    """Products of int8 weights with activations rounded over known ranges.

    Args:
        ranges: of each product's inputs, in the order in which the products are emitted.
    """

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._ranges: Iterator[Range] = iter(ranges)

    def __call__(self, graph: GraphBuilder, inputs: str, matrix: Matrix, bias: np.ndarray | None) -> str:
        assert matrix.quantised is not None
        low, high = next(self._ranges)
        step = np.float32(max(high - low, 1e-12) / 255)
        scale = graph.constant(np.array(step), "step")
        zero = graph.constant(np.array(np.rint(-low / step), dtype=np.uint8), "zero")
        rounded = graph.op("QuantizeLinear", inputs, scale, zero)
        operands = [graph.constant(matrix.quantised.values, "weight"), scale]
        operands += [graph.constant(matrix.quantised.scale, "scale"), zero]
        if bias is not None:
            operands += ["", graph.constant(bias.astype(np.float32), "bias")]
        return str(graph.op("MatMulIntegerToFloat", rounded, *operands, domain=MICROSOFT))

    def backward(self, graph: GraphBuilder, gradient: str, columns: Columns, factor: str = "") -> Rows:
        """Rounds each row of a gradient over its own range: rows differ much in size, and more so over texts."""
        assert columns.matrix.quantised is not None
        op, floats, last = graph.op, graph.floats, graph.ints(-1)
        values, scale = columns.matrix.quantised
        factors = columns.take(graph, graph.constant(scale, "scale"), axis=0)
        scaled = op("Mul", gradient, op("Mul", factor, factors) if factor else factors)
        high, low = (op(kind, scaled, last, keepdims=1) for kind in ("ReduceMax", "ReduceMin"))
        reach = op("Max", high, op("Neg", low), floats(1e-30))
        step, zero = floats(1 / 127), graph.constant(np.array(128, dtype=np.uint8), "zero")
        rounded = op("QuantizeLinear", op("Div", scaled, reach), step, zero)
        transposed = op("Transpose", columns.take(graph, graph.constant(values, "weight"), axis=1), perm=[1, 0])
        return Rows(op("MatMulIntegerToFloat", rounded, transposed, step, floats(1.0), zero, domain=MICROSOFT), reach)
