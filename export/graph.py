"""Building ONNX graphs node by node, and saving several of them over one shared weights file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 23
IR_VERSION = 11
MICROSOFT = "com.microsoft"
WEIGHTS = "weights.bin"
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay inside the graph
_PAGE = 4096  # big tensors start on a page, so that they can be mapped


class GraphBuilder:
    """Collects nodes and constants; every tensor is known by its name.

    Equal constants are stored once, and what is computed already isn't computed again.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._known: dict[bytes, list[str]] = {}
        self._constants: dict[bytes, tuple[str, np.ndarray]] = {}

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        """Adds a tensor to the graph and returns its name."""
        array = np.asarray(array, order="C")
        key = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).digest()
        if key not in self._constants:
            self._constants[key] = (f"{hint}_{len(self._constants)}", array)
        return self._constants[key][0]

    def floats(self, *values: float) -> str:
        """A constant float32 scalar, or vector where several values are given."""
        return self.constant(np.array(values[0] if len(values) == 1 else values, dtype=np.float32))

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, dtype=np.int64))

    def op(
        self,
        kind: str,
        *inputs: str,
        domain: str = "",
        outputs: int = 1,
        unused: Collection[int] = (),
        **attributes: Any,
    ) -> Any:
        """Adds a node; returns its output's name, or a tuple of names where it has several.

        An ``unused`` output, given by its place, has no name, and so isn't computed.
        """
        names = ["" if index in unused else f"{kind}_{len(self._nodes)}_{index}" for index in range(outputs)]
        node = helper.make_node(kind, inputs, [name and "-" for name in names], domain=domain, **attributes)
        key = node.SerializeToString(deterministic=True)
        if key not in self._known:
            self._known[key] = names
            node.output[:] = names
            self._nodes.append(node)
        return self._known[key][0] if outputs == 1 else tuple(self._known[key])

    def rename(self, tensor: str, name: str) -> None:
        """Gives a tensor the name that the graph's users know it by."""
        self._nodes.append(helper.make_node("Identity", [tensor], [name]))

    def build(
        self,
        name: str,
        inputs: Mapping[str, tuple[int, Sequence[str | int]]],
        outputs: Mapping[str, Sequence[str | int]],
    ) -> onnx.ModelProto:
        """The checked model.

        Args:
            name: of the graph.
            inputs: name to element type and shape; a string is a dimension that varies.
            outputs: name to shape; all are float32.
        """
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info(key, kind, list(shape)) for key, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, list(shape)) for key, shape in outputs.items()],
            [numpy_helper.from_array(array, key) for key, array in self._constants.values()],
        )
        model = helper.make_model(
            graph,
            producer_name="sparsecbm",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def save_graphs(folder: Path, graphs: Mapping[str, onnx.ModelProto]) -> None:
    """Writes graphs whose large tensors lie in one file, where equal tensors are stored once."""
    offsets: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as weights:
        for name, model in graphs.items():
            for tensor in model.graph.initializer:
                data = tensor.raw_data
                if len(data) < _EXTERNAL_FROM:
                    continue
                key = hashlib.sha256(data).digest()
                if key not in offsets:
                    weights.write(b"\0" * (-weights.tell() % _PAGE))
                    offsets[key] = (weights.tell(), len(data))
                    weights.write(data)
                offset, length = offsets[key]
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for field, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
                    tensor.external_data.add(key=field, value=str(value))
            (folder / name).write_bytes(model.SerializeToString(deterministic=True))
