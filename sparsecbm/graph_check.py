"""What a bundle's graphs hold, read from their files before anything loads them.

An ONNX file is parsed by protobuf with a schema of the few fields that are looked at, so that serving needs no
``onnx``. The fields' numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from pathlib import Path
from reprlib import repr as short
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from sparsecbm.errors import BundleError

# All that an export emits: tensor arithmetic without control flow, randomness or anything outside the graph.
OPERATORS: dict[str, set[str]] = {
    "": {
        *("Add", "ArgMax", "Attention", "Cast", "Concat", "Div", "Erf", "Expand", "Gather", "Gelu", "Greater"),
        *("Identity", "LayerNormalization", "MatMul", "Max", "Min", "Mul", "Neg", "Pad", "QuantizeLinear", "Range"),
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice"),
        *("Softmax", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    },
    "com.microsoft": {"DynamicQuantizeMatMul", "FusedMatMul", "MatMulIntegerToFloat"},
}
_GRAPH_BYTES = 64 * 2**20  # of structure; the weights lie beside it
_EXTERNAL = 1
# By TensorProto.DataType: float, uint8, int8, int32, int64, bool, float16.
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2}

# Message → field → (number, type, whether it is one of many). What must be absent is declared as bytes.
_BYTES, _LONG = Field.TYPE_BYTES, Field.TYPE_INT64
_SCHEMA: dict[str, dict[str, tuple[int, Any, bool]]] = {
    "Model": {
        "graph": (7, "Graph", False),
        "opset_import": (8, "Opset", True),
        "training_info": (20, _BYTES, True),
        "functions": (25, _BYTES, True),
    },
    "Opset": {"domain": (1, _BYTES, False)},
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "sparse_initializer": (15, _BYTES, True),
    },
    "Node": {"op_type": (4, _BYTES, False), "attribute": (5, "Attribute", True), "domain": (7, _BYTES, False)},
    "Attribute": {
        "name": (1, _BYTES, False),
        "t": (5, _BYTES, True),
        "g": (6, _BYTES, True),
        "tensors": (10, _BYTES, True),
        "graphs": (11, _BYTES, True),
        "tp": (14, _BYTES, True),
        "type_protos": (15, _BYTES, True),
        "ref_attr_name": (21, _BYTES, True),
        "sparse_tensor": (22, _BYTES, True),
        "sparse_tensors": (23, _BYTES, True),
    },
    "Tensor": {
        "dims": (1, _LONG, True),
        "data_type": (2, Field.TYPE_INT32, False),
        "segment": (3, _BYTES, True),
        "float_data": (4, Field.TYPE_FLOAT, True),
        "int32_data": (5, Field.TYPE_INT32, True),
        "string_data": (6, _BYTES, True),
        "int64_data": (7, _LONG, True),
        "name": (8, _BYTES, False),
        "raw_data": (9, _BYTES, False),
        "double_data": (10, Field.TYPE_DOUBLE, True),
        "uint64_data": (11, Field.TYPE_UINT64, True),
        "external_data": (13, "Entry", True),
        "data_location": (14, Field.TYPE_INT32, False),
    },
    "Entry": {"key": (1, _BYTES, False), "value": (2, _BYTES, False)},
}
# Of a TorchScript archive.
_ENTRY = re.compile(
    r"archive/(data\.pkl|constants\.pkl|constants/\d+|code/__torch__/export/torchscript\.py|(\.data/)?version|byteorder)"
)
_OTHER_DATA = ("segment", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def _model_class() -> Any:
    file = FileDescriptorProto(name="graph_check.proto", package="graph_check", syntax="proto2")
    for message, fields in _SCHEMA.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind, many) in fields.items():
            field = declared.field.add(name=name, number=number)
            field.label = Field.LABEL_REPEATED if many else Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = Field.TYPE_MESSAGE, f".graph_check.{kind}"
            else:
                field.type = kind
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("graph_check.Model"))


_Model = _model_class()


def _shown(name: bytes) -> str:
    return repr(name[:64].decode(errors="replace"))


def check_graph(path: Path, weights: Path) -> None:
    """Refuses a graph that holds anything that an export doesn't write.

    Args:
        path: of the ``.onnx`` file.
        weights: the one file that its large tensors may lie in.

    Raises:
        BundleError: it isn't ONNX; has an operator or a domain that isn't in ``OPERATORS``, a subgraph or a function;
            or a tensor whose declared size isn't that of its data, or whose data lie elsewhere.
    """
    size = path.stat().st_size
    if size > _GRAPH_BYTES:
        raise BundleError(
            f"{path} has {size:,} bytes; a graph has at most {_GRAPH_BYTES:,}, and its weights beside it."
        )
    model = _Model()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise BundleError(f"{path} is not an ONNX graph: {error}.") from error
    domains = {opset.domain.decode(errors="replace") for opset in model.opset_import}
    if not domains or not domains <= OPERATORS.keys():
        raise BundleError(
            f"{path} imports the operator domains {short(sorted(domains))}; only {sorted(OPERATORS)} may be."
        )
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise BundleError(f"{path} holds functions, training steps or sparse tensors; a bundle's graph has none.")
    for node in model.graph.node:
        _check_node(path, node)
    room = weights.stat().st_size
    for tensor in model.graph.initializer:
        _check_tensor(path, tensor, weights.name, room)


def check_archive(path: Path) -> None:
    """Refuses a TorchScript archive that holds other entries than an export writes, or compressed ones.

    What its code would do is not looked at: loading it means trusting it.

    Raises:
        BundleError: it isn't such an archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
        raise BundleError(f"{path} is not a TorchScript archive: {error}.") from error
    names = [entry.filename for entry in entries]
    other = next((name for name in names if not _ENTRY.fullmatch(name)), None)
    if other is not None or len(set(names)) != len(names):
        raise BundleError(f"{path} holds {short(other or names)}, which no export writes so.")
    unpacked = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or unpacked > path.stat().st_size:
        raise BundleError(f"{path} holds compressed entries ({unpacked:,} bytes unpacked); an export stores them.")


def _check_node(path: Path, node: Any) -> None:
    domain, kind = (text.decode(errors="replace") for text in (node.domain, node.op_type))
    if kind not in OPERATORS.get(domain, ()):
        raise BundleError(
            f"{path} has the operator {_shown(node.op_type)} of the domain {_shown(node.domain)}; no export writes it."
        )
    for attribute in node.attribute:
        if any(field.name != "name" for field, _ in attribute.ListFields()):
            raise BundleError(
                f"{path}: the attribute {_shown(attribute.name)} of an operator {kind} is a tensor, a graph, a type or "
                "a reference, which no export writes."
            )


def _check_tensor(path: Path, tensor: Any, weights: str, room: int) -> None:
    name = _shown(tensor.name)
    if tensor.data_type not in _ITEM_BYTES or len(tensor.dims) > 8 or any(size < 0 for size in tensor.dims):
        raise BundleError(
            f"{path}: the tensor {name} is of type {tensor.data_type} and shape {list(tensor.dims)[:8]}; no export "
            "writes it."
        )
    declared = math.prod(tensor.dims) * _ITEM_BYTES[tensor.data_type]
    if any(getattr(tensor, field) for field in _OTHER_DATA):
        raise BundleError(f"{path}: the tensor {name} holds its data otherwise than as raw bytes.")
    if tensor.data_location != _EXTERNAL:
        if tensor.external_data or len(tensor.raw_data) != declared:
            raise BundleError(f"{path}: the tensor {name} declares {declared} bytes and holds {len(tensor.raw_data)}.")
        return
    place = {entry.key: entry.value for entry in tensor.external_data}
    if place.keys() != {b"location", b"offset", b"length"} or len(tensor.external_data) != 3 or tensor.raw_data:
        raise BundleError(f"{path}: the tensor {name} must say its location, offset and length, each once.")
    if place[b"location"] != weights.encode():
        raise BundleError(f"{path}: the tensor {name} lies in {_shown(place[b'location'])}; it must lie in {weights}.")
    digits = (place[b"offset"], place[b"length"])
    if not all(value.isdigit() and len(value) <= 18 for value in digits):
        raise BundleError(f"{path}: the tensor {name} has no place: {_shown(digits[0])}, {_shown(digits[1])}.")
    offset, length = map(int, digits)
    if length != declared or offset + length > room:
        raise BundleError(
            f"{path}: the tensor {name} declares {declared} bytes, and has {length} at {offset} in a file of {room}."
        )
