"""Checkpoint → bundle: what is written, what is refused, and that it is the same every time."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from export import torchscript
from export.exporter import MASKS, NO_TIME_SAVED, export_bundle, pack_masks
from export.graph import WEIGHTS
from export.graphs import ATTRIBUTE, EXPLAIN, PREDICT, predict_graph
from export.parity import TOLERANCES
from sparsecbm import checkpoint as checkpoints
from sparsecbm.bundle import MANIFEST, Format, Precision, read_bundle
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.data import Dataset
from sparsecbm.errors import BundleError, DataError, ParityError
from sparsecbm.graph_check import OPERATORS
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import TOKENIZER

KINDS: dict[str, tuple[Format, Precision]] = {
    "fp32": ("onnx", "fp32"),
    "int8": ("onnx", "int8"),
    "fp16": ("onnx", "fp16"),
    "torchscript": ("torchscript", "fp32"),
    "torchscript-fp16": ("torchscript", "fp16"),
    "torchscript-bf16": ("torchscript", "bf16"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Everything under a folder; directories too, with no bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, untrained: Checkpoint, labelled: Dataset) -> dict[str, Path]:
    """The untrained checkpoint's bundle, by kind."""
    folder = tmp_path_factory.mktemp("exported")
    for kind, (format, precision) in KINDS.items():
        export_bundle(untrained, folder / kind, labelled, "train", precision, format=format)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def weight_bundles(
    tmp_path_factory: pytest.TempPathFactory, weight_pruned: Checkpoint, labelled: Dataset
) -> dict[str, Path]:
    """The bundle of a checkpoint of pruned weights and a pruned trunk, by kind."""
    folder = tmp_path_factory.mktemp("weights")
    for kind, (format, precision) in KINDS.items():
        export_bundle(weight_pruned, folder / kind, labelled, "train", precision, format=format)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, untrained: Checkpoint) -> None:
    """Makes the export write the prediction graph of another model, in either format."""

    def wrong(model: SparseCBM) -> SparseCBM:
        other = copy.deepcopy(model)
        other.logit_weight.data.neg_()
        return other

    trace = torchscript.predict_module
    monkeypatch.setattr(
        "export.exporter.predict_graph", lambda model, kind, product: predict_graph(wrong(model), kind, product)
    )
    monkeypatch.setattr("export.torchscript.predict_module", lambda model, kind: trace(wrong(model), kind))


BOTH = pytest.mark.parametrize("precision", ["fp32", "int8"])
ONNX = pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
FORMATS = pytest.mark.parametrize("format", ["onnx", "torchscript"])
EVERY = pytest.mark.parametrize("kind", KINDS)


@EVERY
def test_a_bundle_is_read_back(exported: dict[str, Path], kind: str) -> None:
    manifest = read_bundle(exported[kind])
    assert (manifest.name, manifest.format, manifest.precision) == ("tiny", *KINDS[kind])


@EVERY
def test_a_bundle_holds_the_listed_files_and_no_others(exported: dict[str, Path], kind: str) -> None:
    folder = exported[kind]
    assert set(contents(folder)) == {MANIFEST, *read_bundle(folder).files}


def test_a_bundle_lists_its_graphs_weights_masks_and_tokeniser(exported: dict[str, Path]) -> None:
    assert set(read_bundle(exported["int8"]).files) == {PREDICT, ATTRIBUTE, EXPLAIN, WEIGHTS, MASKS, TOKENIZER}


def test_a_bundle_of_pruned_weights_has_no_attribution_graph(weight_bundles: dict[str, Path]) -> None:
    assert ATTRIBUTE not in read_bundle(weight_bundles["int8"]).files


@BOTH
def test_the_attribution_graph_adds_no_weights_to_the_prediction_graphs(
    exported: dict[str, Path], precision: str
) -> None:
    predict, attribute = (external(exported[precision], graph) for graph in (PREDICT, ATTRIBUTE))
    own = {place for name, place in attribute.items() if name.startswith(("weight", "tokens", "positions"))}
    assert own and own <= set(predict.values())


def test_an_export_leaves_nothing_beside_the_bundle(exported: dict[str, Path]) -> None:
    assert {path.name for path in exported["fp32"].parent.iterdir()} == set(KINDS)


def external(folder: Path, graph: str) -> dict[str, tuple[int, int]]:
    """Offset and length of a graph's external tensors by name."""
    tensors = onnx.load(folder / graph, load_external_data=False).graph.initializer
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in tensors}
    return {name: (int(place["offset"]), int(place["length"])) for name, place in places.items() if place}


@ONNX
@pytest.mark.parametrize("graph", [PREDICT, ATTRIBUTE, EXPLAIN])
def test_a_graphs_tensors_lie_in_the_weights_file(exported: dict[str, Path], precision: str, graph: str) -> None:
    size = (exported[precision] / WEIGHTS).stat().st_size
    places = external(exported[precision], graph).values()
    assert places and all(offset >= 0 and length > 0 and offset + length <= size for offset, length in places)


@ONNX
def test_both_graphs_share_the_embeddings_and_the_trunk(exported: dict[str, Path], precision: str) -> None:
    predict, explain = (external(exported[precision], graph) for graph in (PREDICT, EXPLAIN))
    own = {name: place for name, place in explain.items() if name.startswith(("tokens", "positions"))}
    assert own and set(own.values()) <= set(predict.values())
    trunk = list(predict.values())[len(own) : len(own) + 4]
    assert len(trunk) == 4 and set(trunk) <= set(explain.values())


@ONNX
def test_no_tensor_is_stored_twice(exported: dict[str, Path], precision: str) -> None:
    folder = exported[precision]
    weights = (folder / WEIGHTS).read_bytes()
    places = {place for graph in (PREDICT, ATTRIBUTE, EXPLAIN) for place in external(folder, graph).values()}
    assert len({weights[offset : offset + length] for offset, length in places}) == len(places)


def test_int8_and_fp16_weights_are_not_stored_in_fp32(exported: dict[str, Path]) -> None:
    def stored(precision: str) -> int:
        places = {place for graph in (PREDICT, EXPLAIN) for place in external(exported[precision], graph).values()}
        return sum(length for _, length in places)

    assert stored("int8") < stored("fp16") <= stored("fp32") / 2


def test_packed_masks_are_the_checkpoints(exported: dict[str, Path], untrained: Checkpoint) -> None:
    packed = load_file(exported["int8"] / MASKS)
    masks = untrained.model.masks
    for kind, mask in (("heads", masks.heads), ("neurons", masks.neurons)):
        unpacked = np.unpackbits(packed[kind], axis=-1, count=mask.shape[-1]).astype(bool)
        assert np.array_equal(unpacked, mask.numpy())


def test_masks_are_packed_most_significant_bit_first(make_model: Callable[..., SparseCBM]) -> None:
    model = make_model(density=1)
    model.masks.neurons[0, 1, 1] = False
    packed = pack_masks(model)
    assert packed["heads"][0].tolist() == [[0b11110000]] * 2
    assert packed["neurons"][0, 1].tolist() == [0b10111111, *[0b11111111] * 5]


def test_the_manifest_says_what_the_masks_keep(exported: dict[str, Path], untrained: Checkpoint) -> None:
    manifest, masks = read_bundle(exported["int8"]), untrained.model.masks
    layer = manifest.density["service"][1]
    kept = (float(masks.heads[1, 1].float().mean()), float(masks.neurons[1, 1].float().mean()))
    assert (layer.layer, layer.heads, layer.neurons) == (2, *kept)
    assert manifest.branch_density == masks.density()
    assert manifest.overlap["food"]["noise"] == pytest.approx(float(masks.overlap()[0, 2]), abs=1e-6)


def test_a_bundle_of_pruned_weights_says_what_they_are_and_that_they_save_nothing(
    weight_bundles: dict[str, Path], weight_pruned: Checkpoint
) -> None:
    manifest, model = read_bundle(weight_bundles["int8"]), weight_pruned.model
    assert model.weight_masks is not None
    assert (manifest.granularity, manifest.branch_density) == ("weights", model.density())
    assert manifest.notes == [NO_TIME_SAVED]
    assert list(manifest.concept_density.values()) == model.densities() == model.weight_masks.densities()
    assert manifest.trunk_density == model.trunk_masks.density() < 0.6
    own = model.weight_masks.of(1, 1)
    for kind, names in (("heads", ("qkv", "out")), ("neurons", ("up", "down"))):
        kept = torch.cat([own[name].flatten() for name in names]).double().mean()
        assert getattr(manifest.density["service"][1], kind) == pytest.approx(float(kept))
    assert manifest.overlap["food"]["noise"] == pytest.approx(float(model.overlap()[0, 2]), abs=1e-6)


def test_a_bundle_of_pruned_units_has_no_notes(exported: dict[str, Path]) -> None:
    manifest = read_bundle(exported["int8"])
    assert (manifest.granularity, manifest.notes, manifest.trunk_density) == ("units", [], 1)


def test_the_manifest_has_each_concepts_density(exported: dict[str, Path], untrained: Checkpoint) -> None:
    kept = untrained.model.masks.flat().double().mean(1).tolist()
    assert list(read_bundle(exported["int8"]).concept_density.values()) == pytest.approx(kept)


@EVERY
@pytest.mark.parametrize("pruned", ["exported", "weight_bundles"])
def test_a_bundle_answers_and_explains_as_its_checkpoint(
    request: pytest.FixtureRequest, pruned: str, kind: str
) -> None:
    manifest = read_bundle(request.getfixturevalue(pruned)[kind])
    parity, least = manifest.parity["train"], TOLERANCES[manifest.precision]
    for figure in ("concept_accuracy", "label_accuracy"):
        assert parity[figure]["checkpoint"] - parity[figure]["export"] <= least.accuracy_loss
    for figure in ("value_agreement", "label_agreement", "explain_value_agreement"):
        assert parity[figure] >= least.agreement
    for figure in ("explain_vector_correlation", "token_correlation", "head_correlation", "neuron_correlation"):
        assert parity[figure] >= least.correlation


def test_masks_over_weights_are_in_the_bundle_beside_those_over_units(
    weight_bundles: dict[str, Path], weight_pruned: Checkpoint
) -> None:
    packed, model = load_file(weight_bundles["int8"] / MASKS), weight_pruned.model
    assert model.weight_masks is not None
    assert packed.keys() == {"heads", "neurons", "trunk_heads", "trunk_neurons"} | {
        f"weights.{name}" for name in model.weight_masks.matrices
    }
    for name, mask in model.weight_masks.matrices.items():
        bits = np.unpackbits(packed[f"weights.{name}"], axis=-1, count=mask[0, 0].numel())
        assert np.array_equal(bits, mask.flatten(2).numpy())
    trunk = np.unpackbits(packed["trunk_neurons"], axis=-1, count=model.backbone.config.neurons)
    assert np.array_equal(trunk, model.trunk_masks.neurons.numpy())


def test_a_checkpoint_of_pruned_weights_exported_twice_gives_the_same_bytes(
    tmp_path: Path, weight_bundles: dict[str, Path], weight_pruned: Checkpoint, labelled: Dataset
) -> None:
    checkpoints.save(weight_pruned, tmp_path / "checkpoint")
    loaded = checkpoints.load(tmp_path / "checkpoint")
    for kind, (format, precision) in KINDS.items():
        export_bundle(loaded, tmp_path / kind, labelled, "train", precision, format=format)
        assert contents(tmp_path / kind) == contents(weight_bundles[kind])


def test_the_manifest_holds_the_label_head(exported: dict[str, Path], untrained: Checkpoint) -> None:
    head, model = read_bundle(exported["int8"]).head, untrained.model
    assert np.array_equal(np.array(head.weight, np.float32), model.head_weight.detach().numpy())
    assert np.array_equal(np.array(head.bias, np.float32), model.head_bias.detach().numpy())


def test_the_tokeniser_is_the_checkpoints(exported: dict[str, Path], untrained: Checkpoint) -> None:
    assert (exported["int8"] / TOKENIZER).read_text(encoding="utf-8") == untrained.tokenizer


def test_the_manifest_has_figures_of_the_split(exported: dict[str, Path]) -> None:
    manifest = read_bundle(exported["int8"])
    assert list(manifest.evaluation) == list(manifest.calibration) == list(manifest.parity) == ["train"]


def test_the_name_and_description_can_be_given(tmp_path: Path, untrained: Checkpoint, labelled: Dataset) -> None:
    export_bundle(untrained, tmp_path / "bundle", labelled, "train", "fp32", "lunch", "What guests say.")
    manifest = read_bundle(tmp_path / "bundle")
    assert (manifest.name, manifest.description) == ("lunch", "What guests say.")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bottleneck": "logits"}, "its label reads the concepts' logits"),
        ({"training": {"concept_weight": 0.0}}, "it learned no concepts"),
    ],
    ids=["plain", "classifier"],
)
def test_a_checkpoint_to_compare_with_is_refused(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, changes: dict[str, object], reason: str
) -> None:
    checkpoint = dataclasses.replace(untrained, config=untrained.config.model_copy(update=changes))
    with pytest.raises(BundleError, match=reason):
        export_bundle(checkpoint, tmp_path / "bundle", labelled, "train")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_a_trained_checkpoint_is_exported(bundle: Path) -> None:
    assert read_bundle(bundle).evaluation["dev"]["concept"]["accuracy"] > 0.8


@EVERY
def test_a_checkpoint_exported_twice_gives_the_same_bytes(
    tmp_path: Path, exported: dict[str, Path], untrained_folder: Path, labelled: Dataset, kind: str
) -> None:
    format, precision = KINDS[kind]
    loaded, target = checkpoints.load(untrained_folder), tmp_path / "another"
    manifest = export_bundle(loaded, target, labelled, "train", precision, format=format)
    assert manifest.version == read_bundle(exported[kind]).version
    assert contents(target) == contents(exported[kind])


@pytest.mark.slow
def test_another_process_exports_the_same_bytes(
    tmp_path: Path, exported: dict[str, Path], untrained_folder: Path, reviews: Path
) -> None:
    """TorchScript names what it compiles by what the process compiled before, and notes where the source lies."""
    target = tmp_path / "another"
    command = f"export {untrained_folder} {target} --data {reviews} --split train --format torchscript"
    run = "import sys; from sparsecbm.cli import main; sys.argv[0] = 'sparsecbm'; main()"
    done = subprocess.run([sys.executable, "-c", run, *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(target) == contents(exported["torchscript"])


def test_a_bundle_does_not_depend_on_the_number_of_threads(
    tmp_path: Path, exported: dict[str, Path], untrained: Checkpoint, labelled: Dataset
) -> None:
    torch.set_num_threads(2)
    export_bundle(untrained, tmp_path / "another", labelled, "train", "int8")
    assert contents(tmp_path / "another") == contents(exported["int8"])


def test_the_manifest_says_no_more_of_its_figures_than_can_be_repeated(exported: dict[str, Path]) -> None:
    manifest = read_bundle(exported["int8"])
    figures = json.dumps([manifest.evaluation, manifest.calibration, manifest.parity])
    assert not re.search(r"\.\d{5}|e-", figures)


def test_an_older_bundle_is_replaced(
    tmp_path: Path, exported: dict[str, Path], untrained: Checkpoint, labelled: Dataset
) -> None:
    target = tmp_path / "bundle"
    export_bundle(untrained, target, labelled, "train", "fp32", "older")
    (target / "note.txt").write_text("left here by somebody")
    export_bundle(untrained, target, labelled, "train", "fp32")
    assert contents(target) == contents(exported["fp32"])
    assert list(tmp_path.iterdir()) == [target]


@FORMATS
@pytest.mark.usefixtures("failing")
def test_an_export_that_answers_otherwise_writes_nothing(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, format: Format
) -> None:
    with pytest.raises(ParityError, match="no bundle was written"):
        export_bundle(untrained, tmp_path / "bundle", labelled, "train", "fp32", format=format)
    assert not list(tmp_path.iterdir())


@FORMATS
def test_an_export_that_answers_otherwise_leaves_an_older_bundle(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, request: pytest.FixtureRequest, format: Format
) -> None:
    target = tmp_path / "bundle"
    export_bundle(untrained, target, labelled, "train", "fp32")
    before = contents(tmp_path)
    request.getfixturevalue("failing")
    with pytest.raises(ParityError):
        export_bundle(untrained, target, labelled, "train", "fp32", format=format)
    assert contents(tmp_path) == before


@FORMATS
def test_an_export_that_is_broken_off_leaves_nothing(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.exporter.check_parity", break_off)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(untrained, tmp_path / "bundle", labelled, "train", "fp32", format=format)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_a_server_would_refuse_is_not_left_behind(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATORS, "", OPERATORS[""] - {"Gelu"})
    with pytest.raises(BundleError, match="operator 'Gelu'"):
        export_bundle(untrained, tmp_path / "bundle", labelled, "train", "fp32")
    assert not list(tmp_path.iterdir())


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def a_folder_of_other_files(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def a_file(path: Path) -> None:
    path.write_text("a file")


@pytest.mark.parametrize("make", [an_empty_folder, a_folder_of_other_files, a_file], ids=lambda make: make.__name__)
def test_a_target_that_is_no_bundle_is_refused(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "target")
    before = contents(tmp_path)
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        export_bundle(untrained, tmp_path / "target", labelled, "train", "fp32")
    assert contents(tmp_path) == before


def test_a_target_inside_a_file_is_refused(tmp_path: Path, untrained: Checkpoint, labelled: Dataset) -> None:
    a_file(tmp_path / "file")
    with pytest.raises(BundleError, match="can't be written"):
        export_bundle(untrained, tmp_path / "file" / "bundle", labelled, "train", "fp32")
    assert contents(tmp_path) == {"file": b"a file"}


def test_a_name_that_a_bundle_cannot_have_is_refused(tmp_path: Path, untrained: Checkpoint, labelled: Dataset) -> None:
    with pytest.raises(BundleError, match=r"name.*128"):
        export_bundle(untrained, tmp_path / "bundle", labelled, "train", "fp32", "n" * 129)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["concepts", "labels"])
def test_data_that_asks_for_others_is_refused(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, part: str
) -> None:
    fewer = dataclasses.replace(labelled.schema, **{part: getattr(labelled.schema, part)[:-1]})
    with pytest.raises(DataError, match="other concepts or labels than the checkpoint"):
        export_bundle(untrained, tmp_path / "bundle", dataclasses.replace(labelled, schema=fewer), "train", "fp32")
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_bundle_does_not_say_where_its_backbone_lay(
    exported: dict[str, Path], untrained: Checkpoint, precision: str
) -> None:
    where = Path(untrained.config.backbone.name)
    assert where.is_absolute()
    assert read_bundle(exported[precision]).backbone.name == where.name
