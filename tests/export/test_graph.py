"""Building graphs, and saving several of them over one weights file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.graph import WEIGHTS, GraphBuilder, save_graphs

LARGE = np.arange(1024, dtype=np.float32).reshape(32, 32)
OTHER = LARGE + 0.5
SMALL = np.arange(4, dtype=np.float32)


def chain(*arrays: np.ndarray) -> onnx.ModelProto:
    """A graph that adds constants to its input."""
    graph = GraphBuilder()
    total = "x"
    for array in arrays:
        total = graph.op("Add", total, graph.constant(array))
    graph.rename(total, "y")
    return graph.build("chain", {"x": (TensorProto.FLOAT, ("rows", "columns"))}, {"y": ("rows", "columns")})


def places(folder: Path, name: str) -> list[tuple[int, int]]:
    """Offset and length of every external tensor of a saved graph."""
    graph = onnx.load(folder / name, load_external_data=False).graph
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in graph.initializer]
    assert all(entry["location"] == WEIGHTS for entry in entries if entry)
    return [(int(entry["offset"]), int(entry["length"])) for entry in entries if entry]


def test_equal_constants_are_one_tensor() -> None:
    graph = GraphBuilder()
    assert graph.constant(LARGE) == graph.constant(LARGE.copy(), "another hint")


@pytest.mark.parametrize("other", [LARGE.ravel(), LARGE.view(np.int32), OTHER], ids=["shape", "type", "content"])
def test_constants_that_differ_are_different_tensors(other: np.ndarray) -> None:
    graph = GraphBuilder()
    assert graph.constant(LARGE) != graph.constant(other)


def test_a_transposed_constant_keeps_its_values() -> None:
    columns = chain(LARGE.T)
    assert np.array_equal(numpy_helper.to_array(columns.graph.initializer[0]), LARGE.T)


def test_a_node_of_several_outputs_has_a_name_for_each() -> None:
    names = GraphBuilder().op("TopK", "x", "k", outputs=2)
    assert len(set(names)) == 2


def test_an_unused_output_has_no_name() -> None:
    first, second = GraphBuilder().op("TopK", "x", "k", outputs=2, unused=(1,))
    assert first and not second


def test_what_is_computed_already_is_not_computed_again() -> None:
    graph = GraphBuilder()
    assert graph.op("Softmax", "x", axis=-1) == graph.op("Softmax", "x", axis=-1)


def test_nodes_that_differ_in_an_input_or_an_attribute_are_different() -> None:
    graph = GraphBuilder()
    names = {graph.op("Softmax", "x", axis=-1), graph.op("Softmax", "x", axis=1), graph.op("Softmax", "y", axis=-1)}
    assert len(names) == 3


def test_a_graph_that_breaks_onnx_is_not_built() -> None:
    graph = GraphBuilder()
    graph.rename(graph.op("Add", "x", "nowhere"), "y")
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        graph.build("broken", {"x": (TensorProto.FLOAT, ("rows",))}, {"y": ("rows",)})


def test_a_saved_graph_has_its_tensors(tmp_path: Path) -> None:
    save_graphs(tmp_path, {"a.onnx": chain(LARGE, SMALL[:1], OTHER)})
    read = [numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer]
    assert [array.tolist() for array in read] == [LARGE.tolist(), SMALL[:1].tolist(), OTHER.tolist()]


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    save_graphs(tmp_path, {"a.onnx": chain(SMALL[:1], LARGE)})
    assert len(places(tmp_path, "a.onnx")) == 1


def test_equal_tensors_of_two_graphs_lie_at_one_place(tmp_path: Path) -> None:
    save_graphs(tmp_path, {"a.onnx": chain(LARGE, OTHER), "b.onnx": chain(OTHER)})
    assert places(tmp_path, "a.onnx")[1:] == places(tmp_path, "b.onnx")


def test_different_tensors_do_not_overlap_and_lie_in_the_file(tmp_path: Path) -> None:
    save_graphs(tmp_path, {"a.onnx": chain(LARGE, OTHER), "b.onnx": chain(LARGE * 2)})
    regions = sorted(places(tmp_path, "a.onnx") + places(tmp_path, "b.onnx"))
    ends = [offset + length for offset, length in regions]
    assert all(end <= offset for end, (offset, _) in zip(ends, regions[1:], strict=False))
    assert ends[-1] == (tmp_path / WEIGHTS).stat().st_size


def test_large_tensors_start_on_a_page(tmp_path: Path) -> None:
    save_graphs(tmp_path, {"a.onnx": chain(LARGE[:31]), "b.onnx": chain(OTHER)})
    assert [places(tmp_path, name)[0][0] % 4096 for name in ("a.onnx", "b.onnx")] == [0, 0]


def test_a_graph_is_saved_to_the_same_bytes_twice(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_graphs(tmp_path / name, {"a.onnx": chain(LARGE, SMALL[:1], OTHER)})
        written.append([(tmp_path / name / file).read_bytes() for file in ("a.onnx", WEIGHTS)])
    assert written[0] == written[1]
