"""Graphs that no export writes are refused, by what their files say."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from sparsecbm.errors import BundleError
from sparsecbm.graph_check import _SCHEMA, OPERATORS, check_archive, check_graph

WEIGHTS = 512 * 4


def model() -> onnx.ModelProto:
    """Y = x · weight + bias, with the weight in another file."""
    weight = TensorProto(name="weight", dims=[16, 32], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(WEIGHTS))):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["xw"]), helper.make_node("Add", ["xw", "bias"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [weight, numpy_helper.from_array(np.zeros(32, np.float32), "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def check(folder: Path, content: bytes) -> None:
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(WEIGHTS)
    (folder / "graph.onnx").write_bytes(content)
    check_graph(folder / "graph.onnx", folder / "weights.bin")


def test_a_graph_of_known_operators_passes(tmp_path: Path) -> None:
    check(tmp_path, model().SerializeToString())


def test_the_schema_numbers_fields_as_onnx_does() -> None:
    names = {"Opset": "OperatorSetIdProto", "Entry": "StringStringEntryProto"}
    for message, fields in _SCHEMA.items():
        theirs = getattr(onnx, names.get(message, f"{message}Proto")).DESCRIPTOR.fields_by_name
        assert [number for number, _, _ in fields.values()] == [theirs[name].number for name in fields]


HARMLESS = {"", "StringStringEntryProto", "ValueInfoProto", "TensorAnnotation"}
HARMLESS |= {"NodeDeviceConfigurationProto", "DeviceConfigurationProto"}


def test_the_schema_misses_nothing_that_could_hold_a_graph_or_a_tensor() -> None:
    for message in (onnx.ModelProto, onnx.GraphProto, onnx.NodeProto, onnx.AttributeProto, onnx.TensorProto):
        known = _SCHEMA[message.__name__.removesuffix("Proto")]
        for field in message.DESCRIPTOR.fields:
            inner = field.message_type.name if field.message_type else ""
            assert field.name in known or inner in HARMLESS


def place(tensor: Any, **changes: str) -> None:
    for entry in tensor.external_data:
        entry.value = changes.get(entry.key, entry.value)


def add_node(graph: Any, kind: str, domain: str = "", **attributes: Any) -> None:
    graph.node.append(helper.make_node(kind, ["y"], ["z"], domain=domain, **attributes))


BRANCH = helper.make_graph([], "branch", [], [])
TENSOR = numpy_helper.from_array(np.zeros(4, np.float32), "value")
CHANGES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda model: add_node(model.graph, "If", then_branch=BRANCH, else_branch=BRANCH), "operator 'If'"),
    (lambda model: add_node(model.graph, "Loop"), "operator 'Loop'"),
    (lambda model: add_node(model.graph, "PythonOp", "com.microsoft"), "operator 'PythonOp' of the domain 'com.micro"),
    (lambda model: add_node(model.graph, "Add", "evil"), "operator 'Add' of the domain 'evil'"),
    (lambda model: add_node(model.graph, "Relu", surprise=BRANCH), "attribute 'surprise' of an operator Relu is a "),
    (lambda model: add_node(model.graph, "Relu", surprise=TENSOR), "attribute 'surprise' of an operator Relu"),
    (
        lambda model: model.graph.node[0].attribute.append(AttributeProto(name="r", ref_attr_name="q")),
        "attribute 'r' of an operator MatMul",
    ),
    (lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)), "domains .*ai.onnx.ml"),
    (lambda model: model.ClearField("opset_import"), "imports the operator domains "),
    (lambda model: model.functions.add(name="f"), "holds functions"),
    (lambda model: model.graph.sparse_initializer.add(dims=[2]), "sparse"),
    (lambda model: place(model.graph.initializer[0], location="../secret"), "lies in '../secret'; it must lie in w"),
    (lambda model: place(model.graph.initializer[0], location="/etc/passwd"), "lies in '/etc/passwd'"),
    (lambda model: place(model.graph.initializer[0], offset="4"), "has 2048 at 4 in a file of 2048"),
    (lambda model: place(model.graph.initializer[0], offset="-4"), "has no place: '-4'"),
    (lambda model: place(model.graph.initializer[0], length="8"), "declares 2048 bytes, and has 8 at 0"),
    (lambda model: place(model.graph.initializer[0], offset="9" * 5000), "has no place"),
    (lambda model: model.graph.initializer[0].external_data.pop(), "must say its location, offset and length"),
    (lambda model: model.graph.initializer[0].external_data.add(key="offset", value="0"), "each once"),
    (lambda model: model.graph.initializer[0].dims.append(2**60), "declares "),
    (lambda model: model.graph.initializer[1].dims.append(2**60), "'bias' declares .* and holds 128"),
    (lambda model: model.graph.initializer[1].dims.extend([1] * 100), "shape "),
    (lambda model: model.graph.initializer[1].dims.append(-1), "shape "),
    (lambda model: setattr(model.graph.initializer[1], "data_type", TensorProto.STRING), "of type 8"),
    (lambda model: model.graph.initializer[1].float_data.extend([1.0] * 32), "otherwise than as raw bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_a_graph_that_holds_more_is_refused(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    changed = model()
    change(changed)
    with pytest.raises(BundleError, match=reason):
        check(tmp_path, changed.SerializeToString())


def test_a_huge_graph_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "graph.onnx").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match="a graph has at most 67,108,864"):
        check_graph(tmp_path / "graph.onnx", tmp_path / "weights.bin")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_graph_of_other_bytes_passes_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(model().SerializeToString())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(1, 20))] = data.draw(st.binary(max_size=20))
    try:
        check(tmp_path_factory.mktemp("bytes"), bytes(content))
    except BundleError as error:
        assert len(str(error)) < 2000


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_tensor_that_passes_has_the_size_it_declares(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    changed = model()
    tensor = changed.graph.initializer[data.draw(st.integers(0, 1))]
    sizes = st.integers(0, 2**62) | st.sampled_from([16, 32, 512])
    tensor.dims[:] = data.draw(st.lists(sizes, max_size=4))
    tensor.data_type = data.draw(st.integers(0, 24))
    for entry in tensor.external_data:
        if data.draw(st.booleans()):
            entry.value = data.draw(st.integers(-5, 2**62).map(str) | st.text(max_size=5))
    try:
        check(tmp_path_factory.mktemp("tensor"), changed.SerializeToString())
    except BundleError:
        return
    assert all(np.prod(tensor.dims, dtype=object) <= WEIGHTS for tensor in changed.graph.initializer)


def test_no_operator_runs_code_or_reads_files() -> None:
    """A list that grows must grow by arithmetic: control flow, strings, randomness and custom code stay out."""
    never = {
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
        "RandomNormal",
        "Multinomial",
        "StringConcat",
        "PythonOp",
        "EPContext",
    }
    assert OPERATORS.keys() == {"", "com.microsoft"}
    assert not never & {kind for kinds in OPERATORS.values() for kind in kinds}


ENTRIES = ["data.pkl", "constants.pkl", "constants/0", "code/__torch__/export/torchscript.py", "version", "byteorder"]


def archive(path: Path, *more: str, compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive of the entries that TorchScript writes, and more."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name in (*(f"archive/{entry}" for entry in ENTRIES), *more):
            file.writestr(zipfile.ZipInfo(name), b"content " * 20, compression)
    return path


def test_an_archive_of_stored_entries_passes(tmp_path: Path) -> None:
    check_archive(archive(tmp_path / "graph.ts"))


@pytest.mark.parametrize(
    "name", ["archive/code/__torch__/other.py", "../../etc/passwd", "archive/constants/../x", "archive/data/0"]
)
def test_an_archive_of_other_entries_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="which no export writes so"):
        check_archive(archive(tmp_path / "graph.ts", name))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds compressed entries"):
        check_archive(archive(tmp_path / "graph.ts", compression=zipfile.ZIP_DEFLATED))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_an_archive_of_other_bytes_passes_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = archive(tmp_path_factory.mktemp("archive") / "graph.ts")
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    start = data.draw(st.integers(directory, len(content) - 1))
    content[start : start + data.draw(st.integers(1, 20))] = data.draw(st.binary(max_size=20))
    path.write_bytes(content)
    try:
        check_archive(path)
    except BundleError as error:
        assert len(str(error)) < 2000
