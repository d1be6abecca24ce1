"""Checkpoint → bundle: what is written, what is refused, and that it is the same every time."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from export.exporter import MASKS, NO_TIME_SAVED, export_bundle, pack_masks
from export.graph import WEIGHTS
from export.graphs import ATTRIBUTE, EXPLAIN, PREDICT, predict_graph
from export.parity import TOLERANCES
from export.products import Product
from sparsecbm import checkpoint as checkpoints
from sparsecbm.bundle import MANIFEST, Precision, read_bundle
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.data import Dataset
from sparsecbm.errors import BundleError, DataError, ParityError
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import TOKENIZER


def contents(folder: Path) -> dict[str, bytes]:
    """Everything under a folder; directories too, with no bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, untrained: Checkpoint, labelled: Dataset) -> dict[str, Path]:
    """The untrained checkpoint's bundle in both precisions."""
    folder = tmp_path_factory.mktemp("exported")
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for precision in precisions:
        export_bundle(untrained, folder / precision, labelled, "train", precision)
    return {precision: folder / precision for precision in precisions}


@pytest.fixture(scope="session")
def weight_bundles(
    tmp_path_factory: pytest.TempPathFactory, weight_pruned: Checkpoint, labelled: Dataset
) -> dict[str, Path]:
    """The bundle of a checkpoint of pruned weights and a pruned trunk in both precisions."""
    folder = tmp_path_factory.mktemp("weights")
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for precision in precisions:
        export_bundle(weight_pruned, folder / precision, labelled, "train", precision)
    return {precision: folder / precision for precision in precisions}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, untrained: Checkpoint) -> None:
    """Makes the export write the prediction graph of another model."""

    def other(model: SparseCBM, precision: Precision, product: Product) -> onnx.ModelProto:
        wrong = copy.deepcopy(model)
        wrong.logit_weight.data.neg_()
        return predict_graph(wrong, precision, product)

    monkeypatch.setattr("export.exporter.predict_graph", other)


BOTH = pytest.mark.parametrize("precision", ["fp32", "int8"])


@BOTH
def test_a_bundle_is_read_back(exported: dict[str, Path], precision: str) -> None:
    manifest = read_bundle(exported[precision])
    assert (manifest.name, manifest.precision) == ("tiny", precision)


@BOTH
def test_a_bundle_holds_the_listed_files_and_no_others(exported: dict[str, Path], precision: str) -> None:
    folder = exported[precision]
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
    assert {path.name for path in exported["fp32"].parent.iterdir()} == {"fp32", "int8"}


def external(folder: Path, graph: str) -> dict[str, tuple[int, int]]:
    """Offset and length of a graph's external tensors by name."""
    tensors = onnx.load(folder / graph, load_external_data=False).graph.initializer
    places = {tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in tensors}
    return {name: (int(place["offset"]), int(place["length"])) for name, place in places.items() if place}


@BOTH
@pytest.mark.parametrize("graph", [PREDICT, ATTRIBUTE, EXPLAIN])
def test_a_graphs_tensors_lie_in_the_weights_file(exported: dict[str, Path], precision: str, graph: str) -> None:
    size = (exported[precision] / WEIGHTS).stat().st_size
    places = external(exported[precision], graph).values()
    assert places and all(offset >= 0 and length > 0 and offset + length <= size for offset, length in places)


@BOTH
def test_both_graphs_share_the_embeddings_and_the_trunk(exported: dict[str, Path], precision: str) -> None:
    predict, explain = (external(exported[precision], graph) for graph in (PREDICT, EXPLAIN))
    own = {name: place for name, place in explain.items() if name.startswith(("tokens", "positions"))}
    assert own and set(own.values()) <= set(predict.values())
    trunk = list(predict.values())[len(own) : len(own) + 4]
    assert len(trunk) == 4 and set(trunk) <= set(explain.values())


@BOTH
def test_no_tensor_is_stored_twice(exported: dict[str, Path], precision: str) -> None:
    folder = exported[precision]
    weights = (folder / WEIGHTS).read_bytes()
    places = {place for graph in (PREDICT, ATTRIBUTE, EXPLAIN) for place in external(folder, graph).values()}
    assert len({weights[offset : offset + length] for offset, length in places}) == len(places)


def test_int8_weights_are_less_than_half_of_fp32_ones(exported: dict[str, Path]) -> None:
    def stored(precision: str) -> int:
        places = {place for graph in (PREDICT, EXPLAIN) for place in external(exported[precision], graph).values()}
        return sum(length for _, length in places)

    assert stored("int8") < stored("fp32") / 2


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


@BOTH
def test_a_bundle_of_pruned_weights_answers_and_explains_as_its_checkpoint(
    weight_bundles: dict[str, Path], precision: Precision
) -> None:
    parity, least = read_bundle(weight_bundles[precision]).parity["train"], TOLERANCES[precision]
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
    export_bundle(checkpoints.load(tmp_path / "checkpoint"), tmp_path / "another", labelled, "train", "int8")
    assert contents(tmp_path / "another") == contents(weight_bundles["int8"])


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


@BOTH
def test_a_checkpoint_exported_twice_gives_the_same_bytes(
    tmp_path: Path, exported: dict[str, Path], untrained_folder: Path, labelled: Dataset, precision: Precision
) -> None:
    manifest = export_bundle(checkpoints.load(untrained_folder), tmp_path / "another", labelled, "train", precision)
    assert manifest.version == read_bundle(exported[precision]).version
    assert contents(tmp_path / "another") == contents(exported[precision])


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


@pytest.mark.usefixtures("failing")
def test_an_export_that_answers_otherwise_writes_nothing(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset
) -> None:
    with pytest.raises(ParityError, match="no bundle was written"):
        export_bundle(untrained, tmp_path / "bundle", labelled, "train", "fp32")
    assert not list(tmp_path.iterdir())


def test_an_export_that_answers_otherwise_leaves_an_older_bundle(
    tmp_path: Path, untrained: Checkpoint, labelled: Dataset, request: pytest.FixtureRequest
) -> None:
    target = tmp_path / "bundle"
    export_bundle(untrained, target, labelled, "train", "fp32")
    before = contents(tmp_path)
    request.getfixturevalue("failing")
    with pytest.raises(ParityError):
        export_bundle(untrained, target, labelled, "train", "fp32")
    assert contents(tmp_path) == before


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
