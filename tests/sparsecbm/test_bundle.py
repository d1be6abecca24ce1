"""The bundle: what is written is read back, and whatever differs is refused with its reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sparsecbm.bundle import MANIFEST, content_version, file_entry, read_bundle, read_manifest, write_manifest
from sparsecbm.errors import BundleError

FILES = ["predict.onnx", "explain.onnx", "masks.safetensors", "tokenizer.json"]


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
        "overlap": {"food": {"noise": 0.5}, "noise": {"food": 0.5}},
        "precision": "int8",
        "max_tokens": 64,
        "evaluation": {"dev": {"label": {"accuracy": 0.7}}},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose files hold their own names."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(f"content of {name}")
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


def test_a_bundle_that_is_itself_behind_a_link_is_read(folder: Path) -> None:
    (folder.parent / "current").symlink_to(folder)
    assert read_bundle(folder.parent / "current").name == "tiny"


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json\. Make one with 'spars"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
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
        (("evaluation", "dev"), {}),
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
        (lambda content: content["head"].update(bias=[0.0, float("nan")]), "head.bias.1: "),
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
    refused("files must lie in the bundle's folder itself, got ")


def test_text_that_no_file_can_hold_is_refused(folder: Path, refused: Refused) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content["evaluation"] = {"note": "\ud800"}
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    refused(r"manifest\.json ")


def test_fields_that_break_the_schema_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        write_manifest(tmp_path, fields() | {"labels": ["1"]})
    assert not (tmp_path / MANIFEST).exists()
