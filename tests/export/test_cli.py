"""``sparsecbm export`` and ``sparsecbm inspect``."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export.exporter import IS_A_PROGRAM, NO_TIME_SAVED, export_bundle
from export.graph import WEIGHTS
from export.graphs import predict_graph
from export.products import Product
from sparsecbm import checkpoint as checkpoints
from sparsecbm import cli
from sparsecbm.bundle import Precision, read_bundle
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.data import Dataset
from sparsecbm.model import SparseCBM

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; gives exit code, stdout and stderr."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "1000")
        monkeypatch.setattr(sys, "argv", ["sparsecbm", *map(str, args)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer replaces it
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert isinstance(exit.value.code, int)
        return exit.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, untrained: Checkpoint, labelled: Dataset) -> Path:
    """A bundle whose name and description look like markup."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    export_bundle(untrained, folder, labelled, "train", "fp32", "tiny [red]", "What guests say [/of] a :pizza:.")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_writes_a_bundle(tmp_path: Path, untrained_folder: Path, reviews: Path, run: Run) -> None:
    code, out, _ = run("export", untrained_folder, tmp_path / "bundle", "--data", reviews, "--precision", "fp32")
    assert (code, out, read_bundle(tmp_path / "bundle").precision) == (0, "", "fp32")


def test_export_takes_the_name_and_the_description(
    tmp_path: Path, untrained_folder: Path, reviews: Path, run: Run
) -> None:
    given = ("--name", "lunch", "--description", "What guests say.", "--precision", "fp32")
    run("export", untrained_folder, tmp_path / "bundle", "--data", reviews, *given)
    manifest = read_bundle(tmp_path / "bundle")
    assert (manifest.name, manifest.description) == ("lunch", "What guests say.")


def test_export_says_what_it_wrote(tmp_path: Path, untrained_folder: Path, reviews: Path, run: Run) -> None:
    target = tmp_path / "[bold]bundle"
    _, _, err = run("export", untrained_folder, target, "--data", reviews, "--precision", "fp32")
    version = read_bundle(target).version
    assert f"{target}: tiny {version}, fp32, " in err
    assert "on 80 texts 100.0% of concept values and 100.0% of labels are the checkpoint's" in err


def test_export_writes_torchscript_and_says_what_it_is(
    tmp_path: Path, untrained_folder: Path, reviews: Path, run: Run
) -> None:
    code, _, err = run("export", untrained_folder, tmp_path / "bundle", "--data", reviews, "--format", "torchscript")
    manifest = read_bundle(tmp_path / "bundle")
    assert (code, manifest.format, manifest.precision) == (0, "torchscript", "fp32")
    assert IS_A_PROGRAM in err
    assert IS_A_PROGRAM in run("inspect", tmp_path / "bundle")[1]


def test_export_prints_its_figures_as_json(tmp_path: Path, untrained_folder: Path, reviews: Path, run: Run) -> None:
    target = tmp_path / "bundle"
    _, out, _ = run("export", untrained_folder, target, "--data", reviews, "--precision", "fp32", "--json")
    manifest = read_bundle(target)
    assert json.loads(out) == {
        "bundle": str(target),
        "version": manifest.version,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "parity": manifest.parity["dev"],
    }


SENTENCE = re.compile(r"error: [^\n]+\.\n\Z")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"--precision": "int4"},
            "no int4 export in the format onnx: onnx comes in int8, fp32, fp16; torch",
        ),
        ({"--precision": "bf16"}, "no bf16 export in the format onnx"),
        ({"--precision": "int8", "--format": "torchscript"}, "no int8 export in the format torchscript"),
        ({"--format": "pickle"}, "format must be onnx or torchscript, not 'pickle'"),
        ({"--split": "test"}, "'test'"),
        ({"--data": "nowhere.yaml"}, "nowhere.yaml"),
        ({"checkpoint": "nowhere"}, "nowhere is not a checkpoint"),
        ({"checkpoint": "file"}, "file is not a checkpoint"),
        ({"bundle": "."}, "exists and is not a bundle"),
        ({"bundle": "file"}, "exists and is not a bundle"),
        ({"bundle": "file/bundle"}, "can't be written"),
        ({"--name": "n" * 129}, "at most 128 characters"),
    ],
)
def test_a_bad_argument_of_export_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    untrained_folder: Path,
    reviews: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    options = {"--data": str(reviews), "--precision": "fp32", "checkpoint": str(untrained_folder), "bundle": "bundle"}
    options |= change
    places = [options.pop("checkpoint"), options.pop("bundle")]
    code, out, err = run("export", *places, *(part for option in options.items() for part in option))
    assert (code, out) == (2, "")
    assert SENTENCE.match(err) and reason in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_export_without_data_is_a_usage_error(tmp_path: Path, untrained_folder: Path, run: Run) -> None:
    code, _, err = run("export", untrained_folder, tmp_path / "bundle")
    assert code == 2
    assert "Missing option '--data'" in err


def test_an_export_that_answers_otherwise_is_one_sentence_and_writes_nothing(
    tmp_path: Path, untrained_folder: Path, reviews: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: SparseCBM, precision: Precision, product: Product) -> onnx.ModelProto:
        graph = predict_graph(model, precision, product)
        (node,) = (node for node in graph.graph.node if node.output[0] == "logits")
        node.op_type = "Neg"
        return graph

    monkeypatch.setattr("export.exporter.predict_graph", wrong)
    code, _, err = run("export", untrained_folder, tmp_path / "bundle", "--data", reviews, "--precision", "fp32")
    assert code == 2
    assert SENTENCE.match(err) and "doesn't answer as its checkpoint does" in err
    assert not list(tmp_path.iterdir())


def test_inspect_shows_the_card(small: Path, run: Run) -> None:
    code, out, err = run("inspect", small)
    assert (code, err) == (0, "")
    assert "1 shared and 2 masked layers" in out
    assert all(shown in out for shown in ("food", "service", "noise", "Negative, Positive, unknown", WEIGHTS))


def test_inspect_shows_names_and_descriptions_as_they_are(small: Path, run: Run) -> None:
    _, out, _ = run("inspect", small)
    assert "tiny [red] " in out and "What guests say [/of] a :pizza:." in out


def test_inspect_prints_the_manifest_as_json(small: Path, run: Run) -> None:
    code, out, _ = run("inspect", small, "--json")
    assert (code, json.loads(out)) == (0, read_bundle(small).model_dump())


def test_inspect_writes_nothing(small: Path, run: Run) -> None:
    before = files(small)
    run("inspect", small)
    assert files(small) == before


def test_inspect_of_a_folder_that_is_no_bundle_is_one_sentence(tmp_path: Path, run: Run) -> None:
    code, out, err = run("inspect", tmp_path)
    assert (code, out) == (2, "")
    assert SENTENCE.match(err) and "is not a bundle" in err


def test_inspect_of_a_changed_bundle_is_one_sentence(tmp_path: Path, small: Path, run: Run) -> None:
    shutil.copytree(small, tmp_path / "bundle")
    weights = tmp_path / "bundle" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    code, out, err = run("inspect", tmp_path / "bundle")
    assert (code, out) == (2, "")
    assert SENTENCE.match(err) and f"{WEIGHTS} differs from the exported file" in err


def test_export_and_inspect_say_that_pruned_weights_save_no_time(
    tmp_path: Path, weight_pruned: Checkpoint, reviews: Path, run: Run
) -> None:
    checkpoints.save(weight_pruned, tmp_path / "checkpoint")
    code, _, err = run("export", tmp_path / "checkpoint", tmp_path / "bundle", "--data", reviews)
    assert code == 0 and f"\n{NO_TIME_SAVED}\n" in err
    code, out, _ = run("inspect", tmp_path / "bundle")
    assert code == 0 and NO_TIME_SAVED in out
    assert "of weights, trunk density 0." in out and "attention kept" in out
