"""``sparsecbm bench``."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loadtests import bench, scaling, synthetic
from loadtests.cli import SECTIONS, app
from sparsecbm.backbone import BackboneConfig
from sparsecbm.errors import CheckpointError, SetupError, SparseCBMError

DEFAULT = Path(__file__).parents[2] / "models" / "restaurant-reviews"
SMALL = ("--count", "8", "--batch", "4", "--rounds", "2", "--threads", "1")


def call(*args: str | Path) -> Result:
    result = CliRunner().invoke(app, [*map(str, args)])
    if isinstance(result.exception, SparseCBMError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def all_sections(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of all sections; BERT-base is made as small as the tiny bundle."""
    folder = tmp_path_factory.mktemp("bench") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "PROCESSES", 1)
        patch.setattr(scaling, "CONCEPTS", (4, 8))
        patch.setattr(scaling, "DENSITIES", (0.5, 1.0))
        patch.setattr(scaling, "LENGTHS", (8, 16, 1024))
        patch.setattr(synthetic, "base_sized", same)
        call(bundle, *SMALL, "--report", folder)
    return folder


def same(config: BackboneConfig) -> BackboneConfig:
    return config


def test_every_section_is_measured(all_sections: Path) -> None:
    found = json.loads((all_sections / "bench.json").read_text(encoding="utf-8"))
    assert set(SECTIONS) <= found.keys()
    assert found["left_out"] == []
    names = [row["name"] for row in found["rivals"]["contenders"]]
    assert {"dense PyTorch", "dense transformers", "dense ONNX fp32", "dense ONNX int8 fused"} <= set(names)
    assert {"ours int8", "ours fp32"} <= set(names)
    assert {f"ours {it} + {what}" for it in ("int8", "fp32") for what in ("tokens", "subnetwork", "both")} <= set(names)
    assert "ours int8 + mask edit" in names and "ours fp32 + mask edit" not in names  # nobody trained the latter
    repeated = sorted(name.removesuffix(" fused") for name in names if name.startswith("3 × dense ONNX"))
    assert repeated == ["3 × dense ONNX fp32", "3 × dense ONNX int8"]  # each the faster of two
    assert sum(name.startswith("3 × padded") for name in names) == 1


def test_ratios_are_of_the_fastest_of_each_kind(all_sections: Path) -> None:
    found = json.loads((all_sections / "bench.json").read_text(encoding="utf-8"))
    rates = {row["name"]: row["texts_per_second"]["value"] for row in found["rivals"]["contenders"]}
    dense = max(rate for name, rate in rates.items() if name.startswith("dense") and "int8" not in name)
    ratio = found["rivals"]["ratios"]["int8_to_dense_fp32"]
    assert ratio["value"] == pytest.approx(rates["ours int8"] / dense)
    assert found["ratio_int8_to_dense_fp32"] == ratio["value"]


def test_lengths_beyond_what_the_model_reads_are_left_out(all_sections: Path) -> None:
    found = json.loads((all_sections / "bench.json").read_text(encoding="utf-8"))
    assert [row["tokens"] for row in found["length"]["rows"]] == [8, 16]


def test_contenders_are_in_one_order_at_all_lengths(all_sections: Path) -> None:
    found = json.loads((all_sections / "bench.json").read_text(encoding="utf-8"))
    orders = {tuple(row["name"] for row in length["contenders"]) for length in found["length"]["rows"]}
    assert orders == {("ours int8", "dense ONNX int8", "dense ONNX fp32")}


def test_plots_are_pictures_of_their_own(all_sections: Path) -> None:
    plots = {path.stem: path for path in all_sections.glob("*.svg")}
    assert set(plots) == {"rivals", "length", "concepts", "density", "base"}
    for path in plots.values():
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_without_torch_the_bundle_is_measured_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    found = json.loads(call(bundle, *SMALL, "--json", "--section", "rivals", "--section", "concepts").stdout)
    assert "torch" in found["left_out"][0] and "concepts" not in found
    assert [row["name"] for row in found["rivals"]["contenders"]][::4] == ["ours int8", "ours int8 + mask edit"]
    assert found["ratio_int8_to_dense_fp32"] is None
    assert list(found["rivals"]["ratios"]) == ["plain_to_explained_int8"]


def test_with_a_checkpoint_its_weights_are_run(bundle: Path, checkpoint: Path) -> None:
    found = json.loads(call(bundle, *SMALL, "--json", "--section", "rivals", "--checkpoint", checkpoint).stdout)
    assert "ours fp32 + mask edit" in [row["name"] for row in found["rivals"]["contenders"]]
    assert "the checkpoint's weights" in found["notes"][0]


def test_lengths_are_measured_without_torch_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LENGTHS", (8,))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    shown = call(bundle, *SMALL, "--section", "length").stdout
    assert "ours int8, texts/s" in shown and "dense" not in shown.partition("Left out")[0]


def test_tables_are_printed_for_people(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PROCESSES", 1)
    (tmp_path / "texts").write_text("the pasta was tasty [bold]\nthe room was loud\n", encoding="utf-8")
    shown = call(bundle, *SMALL, "--section", "process", "--texts", tmp_path / "texts").stdout
    assert "2 texts" in shown and "import of the engine to the first answer" in shown and "MB" in shown


def test_another_bundles_checkpoint_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="concepts are"):
        call(DEFAULT, *SMALL, "--checkpoint", checkpoint)


def test_an_unknown_section_is_named(bundle: Path) -> None:
    with pytest.raises(SetupError, match=r"one of rivals.*not 'rival'"):
        call(bundle, "--section", "rival")


def test_a_folder_with_something_else_is_not_replaced(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(SetupError, match="not a benchmark's report"):
        call(bundle, *SMALL, "--report", tmp_path)
    assert (tmp_path / "precious").exists()
