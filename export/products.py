"""Matrix products of a graph, in fp32 or with int8 weights.

An int8 matrix has one scale per output column. The prediction graph multiplies it with activations that are
quantised as they come (dynamic quantisation); the explanation graph multiplies its real values, since
gradients need them, and both graphs so share one copy of the weights.
"""

from __future__ import annotations

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


class Product(Protocol):
    """Emits ``inputs @ matrix + bias``."""

    def __call__(self, graph: GraphBuilder, inputs: str, matrix: Matrix, bias: np.ndarray | None) -> str: ...


def fast_product(graph: GraphBuilder, inputs: str, matrix: Matrix, bias: np.ndarray | None) -> str:
    """A product for speed: int8 weights meet activations quantised per tensor."""
    if matrix.quantised is None:
        return exact_product(graph, inputs, matrix, bias)
    values, scale = matrix.quantised
    operands = [inputs, graph.constant(values, "weight"), graph.constant(scale, "scale"), ""]
    if bias is not None:
        operands.append(graph.constant(bias.astype(np.float32), "bias"))
    return str(graph.op("DynamicQuantizeMatMul", *operands, domain=MICROSOFT))


def real_values(graph: GraphBuilder, matrix: Matrix) -> str:
    """The matrix in float32, computed from its int8 values once, when the graph is loaded."""
    if matrix.quantised is None:
        return graph.constant(matrix.weight, "weight")
    values, scale = matrix.quantised
    floats = graph.op("Cast", graph.constant(values, "weight"), to=1)
    return str(graph.op("Mul", floats, graph.constant(scale, "scale")))


def exact_product(graph: GraphBuilder, inputs: str, matrix: Matrix, bias: np.ndarray | None) -> str:
    """A product of float32 activations with the weights' real values."""
    product = str(graph.op("MatMul", inputs, real_values(graph, matrix)))
    if bias is None:
        return product
    return str(graph.op("Add", product, graph.constant(bias.astype(np.float32), "bias")))


def transposed_product(graph: GraphBuilder, inputs: str, weight: str) -> str:
    """``inputs @ weight.T`` for a float32 tensor in the graph, which is not copied for it."""
    return str(graph.op("FusedMatMul", inputs, weight, domain=MICROSOFT, transB=1))
