"""The bundle: what is written is read back, and whatever differs is refused with its reason."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError

from sparsecbm.bundle import FILES as NAMES
from sparsecbm.bundle import MANIFEST, content_version, file_entry, read_bundle, read_manifest, write_manifest
from sparsecbm.errors import BundleError
from tests.sparsecbm.mutation import change_a_part

FILES = sorted(NAMES["onnx"])


def fields() -> dict[str, Any]:
    return {
        "name": "tiny",
        "description": "Größe",
        "backbone": {
            "name": "b", "family": "bert", "layers": 3, "hidden": 16, "heads": 4, "neurons": 12, "pad_id": 0,
        },
        "concepts": [{"name": "food", "values": ["no", "yes"]}, {"name": "noise", "values": ["a", "b", "c"]}],
        "labels": ["1", "2"],
        "layout": {"trunk": 1, "branch": 2, "heads": 4, "neurons": 12},
        "head": {"width": 2, "weight": [[[0.1, 0.2], [0.3, 0.4]], [[1, 2], [3, 4]]], "bias": [0, 0.5]},
        "density": {
            name: [{"layer": layer, "heads": 0.5, "neurons": 0.25} for layer in (1, 2)] for name in ("food", "noise")
        },
        "branch_density": 0.3,
        "overlap": {"food": {"food": 1.0, "noise": 0.5}, "noise": {"food": 0.5, "noise": 1.0}},
        "precision": "int8",
        "max_tokens": 64,
        "evaluation": {"dev": {"texts": 8, "concept": {"accuracy": 0.9}, "label": {"accuracy": 0.7, "f1": 0.6}}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose files hold their own names, and whose graphs hand on what they get."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(f"content of {name}")
    for name in ("predict.onnx", "explain.onnx"):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
        node = helper.make_node("Identity", ["x"], ["y"], name=name)
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
        graph = helper.make_model(helper.make_graph([node], "graph", [value], [output]))
        (folder / name).write_bytes(graph.SerializeToString())
    write_manifest(folder, fields())
    return folder


@pytest.fixture
def refused(folder: Path) -> Callable[[str], None]:
    """Checks that the bundle is refused, for a reason that matches."""

    def check(reason: str) -> None:
        with pytest.raises(BundleError, match=reason):
            read_bundle(folder)

    return check


Refused = Callable[[str], None]


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest and gives it the version of its new content."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(content)
    content["version"] = content_version(content)
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def test_what_is_written_is_read_back(folder: Path) -> None:
    manifest = read_bundle(str(folder))
    assert manifest.model_dump(include=set(fields()), exclude_unset=True) == fields()


def test_every_file_is_listed_but_the_manifest(folder: Path) -> None:
    assert sorted(read_bundle(folder).files) == sorted(FILES)


def test_the_version_is_a_hash_of_the_content(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert content["version"] == content_version(content) == read_bundle(folder).version


def test_the_same_content_has_the_same_version(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert write_manifest(copy, fields()).version == read_bundle(folder).version


def test_a_changed_file_gives_another_version(folder: Path) -> None:
    before = read_bundle(folder).version
    (folder / "predict.onnx").write_text("retrained")
    assert write_manifest(folder, fields()).version != before


def test_a_file_entry_is_its_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    entry = file_entry(tmp_path / "file")
    assert (entry.bytes, entry.sha256) == (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_reading_the_manifest_alone_leaves_the_files_unread(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink()
    assert read_manifest(folder).name == "tiny"


def test_reading_a_bundle_loads_no_torch() -> None:
    code = "import sys, sparsecbm.bundle; print({'torch', 'transformers', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(folder: Path, refused: Refused, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[3] ^= 1
    (folder / name).write_bytes(content)
    refused(rf"{name} differs from the exported file: sha256 .* instead of .*\. Copy the bundle again or export it")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_size_is_refused(folder: Path, refused: Refused, name: str) -> None:
    size = (folder / name).stat().st_size
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    refused(rf"{name} has {size - 1} bytes, but the manifest says {size}\.")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, refused: Refused, name: str) -> None:
    (folder / name).unlink()
    refused(rf"bundle lacks {name}, which its manifest lists\.")


def test_a_link_out_of_the_folder_is_refused(folder: Path, refused: Refused) -> None:
    (folder / "predict.onnx").rename(folder.parent / "elsewhere")
    (folder / "predict.onnx").symlink_to(folder.parent / "elsewhere")
    refused(r"predict\.onnx is a link to outside the bundle; copy the file itself there\.")


def test_a_manifest_that_is_a_link_out_of_the_folder_is_refused(folder: Path, refused: Refused) -> None:
    (folder / MANIFEST).rename(folder.parent / "elsewhere.json")
    (folder / MANIFEST).symlink_to(folder.parent / "elsewhere.json")
    refused(r"manifest\.json is a link to outside the bundle")


def test_a_file_that_is_a_pipe_is_refused(folder: Path, refused: Refused) -> None:
    (folder / "weights.bin").unlink()
    os.mkfifo(folder / "weights.bin")
    refused(r"bundle lacks weights\.bin")


def test_a_huge_manifest_is_refused_unread(folder: Path, refused: Refused) -> None:
    with (folder / MANIFEST).open("ab") as file:
        file.truncate(2**40)  # of which the disk holds nothing
    refused(r"has 1,099,511,627,776 bytes; a manifest has at most 8,388,608")


def test_a_huge_file_is_refused_unread(folder: Path, refused: Refused) -> None:
    with (folder / "weights.bin").open("ab") as file:
        file.truncate(2**40)
    refused(r"weights\.bin has 1099511627776 bytes, but the manifest says ")


def test_a_deep_manifest_is_refused(folder: Path, refused: Refused) -> None:
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep]
    edit(folder, lambda content: content["evaluation"]["dev"].update(deep=deep))
    refused(r"manifest\.json is nested more than 32 levels deep")


def test_a_graph_that_no_export_writes_is_refused(folder: Path, refused: Refused) -> None:
    (folder / "explain.onnx").write_bytes(b"no graph")
    write_manifest(folder, fields())
    refused(r"explain\.onnx is not an ONNX graph")


def test_a_bundle_that_is_itself_behind_a_link_is_read(folder: Path) -> None:
    (folder.parent / "current").symlink_to(folder)
    assert read_bundle(folder.parent / "current").name == "tiny"


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json\. Make one with 'spars"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"\xff\xfe", b"", b"[" * 100_000, b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}'),
        *(b'{"a": 1' + b"0" * 5000 + b"}", b'{"a": 1, "a": 1}', b'{"b": [{"a": 1, "a": 2}]}'),
    ],
)
def test_a_manifest_that_is_not_json_is_refused(folder: Path, refused: Refused, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    refused(r"manifest\.json is not JSON: ")


def test_a_manifest_that_is_no_object_is_refused(folder: Path, refused: Refused) -> None:
    (folder / MANIFEST).write_text("[]")
    refused(r"manifest\.json must hold a JSON object, not list\.")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(folder: Path, refused: Refused, version: Any) -> None:
    edit(folder, lambda content: content.update(schema_version=version))
    refused(rf"has schema version {version!r}; this program reads version 1\. Export the checkpoint again")


def test_a_version_that_is_not_the_contents_hash_is_refused(folder: Path, refused: Refused) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(content | {"version": "0" * 16}), encoding="utf-8")
    refused(rf"was changed after its export: its content hashes to {content['version']}, but it says version 0000")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("head", "bias", 0), 7.0),
        (("evaluation", "dev", "texts"), 9),
        (("labels", 1), "5"),
        (("files", "predict.onnx", "sha256"), "0" * 64),
        (("description",), "better"),
    ],
)
def test_a_field_changed_after_the_export_is_refused(
    folder: Path, refused: Refused, path: tuple[Any, ...], value: Any
) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    part: Any = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    refused("was changed after its export")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda content: content.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda content: content["head"].update(surprise=1), "head.surprise: Extra inputs are not permitted"),
        (lambda content: content.pop("labels"), "labels: Field required"),
        (lambda content: content.update(precision="fp4"), "precision: "),
        (lambda content: content.update(branch_density=0), "branch_density: "),
        (lambda content: content["head"].update(bias=[0.0, "nan"]), "head.bias.1: "),
        (lambda content: content["head"].update(bias=[0.0]), "head.bias must have one value per label .2., got 1"),
        (lambda content: content["head"].update(width=3), "head.weight must be .labels, concepts, width. = .2, 2, 3."),
        (lambda content: content["head"]["weight"].pop(), "head.weight must be .labels, concepts, width."),
        (lambda content: content.update(labels=["1", "1"]), "labels must differ"),
        (lambda content: content["concepts"][1].update(name="food"), "concept names must differ"),
        (lambda content: content["concepts"][0].update(values=["a", "a"]), "values of concept 'food' must differ"),
        (lambda content: content["concepts"][0].update(values=["a"]), "concepts.0.values: "),
        (lambda content: content["layout"].update(trunk=2), "layout.trunk . layout.branch must be backbone.layers"),
        (lambda content: content["density"].pop("food"), "density must have exactly the concepts as keys"),
        (lambda content: content["files"]["predict.onnx"].update(sha256="abc"), "files.predict.onnx.sha256: "),
        (lambda content: content["files"]["predict.onnx"].update(bytes=10**15), "files.predict.onnx.bytes: "),
        (lambda content: content["files"].pop("weights.bin"), "files must be exactly .*weights.* got .'explain.onnx'"),
        (lambda content: content.update(format="torchscript", precision="fp32"), "files must be exactly predict.ts, "),
        (lambda content: content.update(format="pickle"), "format: Input should be 'onnx' or 'torchscript'"),
        (lambda content: content.update(precision="bf16"), "precision must be one of int8, fp32, fp16 in .*, got bf16"),
        (lambda content: content.update(max_tokens=10**12), "max_tokens: "),
        (lambda content: content["layout"].update(neurons=10**15), "layout.neurons: "),
        (lambda content: content["layout"].update(neurons=13), "layout.heads and layout.neurons must be the back"),
        (lambda content: content["backbone"].update(pad_id=2**40), "backbone.pad_id: "),
        (lambda content: content["overlap"].pop("food"), "overlap must have exactly the concepts as keys"),
        (lambda content: content["overlap"]["food"].pop("noise"), "overlap must have exactly the concepts as keys"),
        (lambda content: content["density"]["food"][0].update(heads=1.5), "density.food.0.heads: "),
        (lambda content: content["evaluation"]["dev"].pop("texts"), "evaluation.dev.texts: Field required"),
        (lambda content: content["evaluation"]["dev"].update(label=1), "evaluation.dev.label: "),
    ],
)  # fmt: skip
def test_a_manifest_that_breaks_the_schema_says_where(
    folder: Path, refused: Refused, change: Callable[[dict[str, Any]], Any], where: str
) -> None:
    edit(folder, change)
    refused(rf"manifest\.json breaks the bundle's schema at .*{where}")


@pytest.mark.parametrize(
    "path", ["../elsewhere", "/etc/hostname", "sub/file", "..", ".", "", "..\\elsewhere", "a/../b"]
)
def test_a_path_outside_the_folder_is_refused(folder: Path, refused: Refused, path: str) -> None:
    (folder.parent / "elsewhere").write_text("secret")
    entry = file_entry(folder.parent / "elsewhere").model_dump()
    edit(folder, lambda content: content["files"].update({path: entry}))
    refused("files must be exactly predict.onnx, ")


def test_text_that_no_file_can_hold_is_refused(folder: Path, refused: Refused) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content["evaluation"] = {"note": "\ud800"}
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    refused(r"manifest\.json ")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([10**17, -1, "a" * 300, "../x", [], {}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_changed_manifest_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One part is anything that JSON holds, or left out; the version is that of the content."""
    folder = tmp_path_factory.mktemp("changed")
    for name in FILES:
        (folder / name).touch()
    write_manifest(folder, fields())
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change_a_part(content, data, JSON)
    with contextlib.suppress(UnicodeEncodeError):
        content["version"] = content_version(content)
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        assert len(str(error)) < 2000
    else:
        assert manifest.version == content["version"]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_manifest_of_other_bytes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in FILES:
        (folder / name).touch()
    write_manifest(folder, fields())
    content = bytearray((folder / MANIFEST).read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(1, 40))] = data.draw(st.binary(max_size=40))
    (folder / MANIFEST).write_bytes(content)
    with contextlib.suppress(BundleError):
        read_manifest(folder)


def test_a_manifest_too_large_to_be_read_is_not_written(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).touch()
    with pytest.raises(BundleError, match="manifest would have"):
        write_manifest(tmp_path, fields() | {"description": "x" * 9_000_000})
    assert not (tmp_path / MANIFEST).exists()


def test_fields_that_break_the_schema_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        write_manifest(tmp_path, fields() | {"labels": ["1"]})
    assert not (tmp_path / MANIFEST).exists()
