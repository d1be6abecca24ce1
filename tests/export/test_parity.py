"""The comparison of an export with its checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.graph import save_graphs
from export.graphs import ATTRIBUTE, EXPLAIN, PREDICT, attribute_graph, explain_graph, predict_graph
from export.parity import TOLERANCES, check_parity, open_session, run_exported
from export.products import ExactProduct, Int8Product
from export.ranges import measure_ranges
from sparsecbm import data
from sparsecbm.bundle import Precision
from sparsecbm.checkpoint import Checkpoint
from sparsecbm.data import Dataset
from sparsecbm.errors import ParityError
from sparsecbm.evaluation import run
from sparsecbm.masks import UnitMasks
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import encode, tokenizer_from_text

MakeModel = Callable[..., SparseCBM]
Figures = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="session")
def ids(untrained: Checkpoint, labelled: Dataset) -> list[np.ndarray]:
    return encode(tokenizer_from_text(untrained.tokenizer, 64), labelled.texts).ids


@pytest.fixture
def model(untrained: Checkpoint) -> SparseCBM:
    return untrained.model


def other_masks(model: SparseCBM) -> UnitMasks:
    """Masks that keep what the model's leave out, and one unit more."""
    heads, neurons = ~model.masks.heads, ~model.masks.neurons
    heads[..., 0] = neurons[..., 0] = True
    return UnitMasks(heads, neurons)


def write(folder: Path, model: SparseCBM, ids: list[np.ndarray], precision: Precision = "fp32") -> None:
    ranges = measure_ranges(model, ids)
    products = [Int8Product(ranges) if precision == "int8" else ExactProduct() for _ in range(2)]
    save_graphs(
        folder,
        {
            PREDICT: predict_graph(model, precision, products[0]),
            EXPLAIN: explain_graph(model, precision),
            ATTRIBUTE: attribute_graph(model, precision, products[1]),
        },
    )


@pytest.fixture
def wrong_predict(tmp_path: Path, model: SparseCBM, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose prediction graph has other masks than the model."""
    with monkeypatch.context() as patch:
        patch.setattr(model, "masks", other_masks(model))
        predict = predict_graph(model, "fp32")
    save_graphs(tmp_path, {PREDICT: predict, EXPLAIN: explain_graph(model, "fp32")})
    return tmp_path


def test_an_exact_export_is_accepted(
    tmp_path: Path, model: SparseCBM, labelled: Dataset, ids: list[np.ndarray]
) -> None:
    write(tmp_path, model, ids)
    parity, _ = check_parity(tmp_path, model, labelled, ids, "fp32")
    assert (parity["texts"], parity["value_agreement"], parity["label_agreement"]) == (240, 1.0, 1.0)
    assert parity["logit_difference"] < 1e-4 and parity["explain_logit_difference"] < 1e-4


def test_an_int8_export_is_accepted(tmp_path: Path, model: SparseCBM, labelled: Dataset, ids: list[np.ndarray]) -> None:
    write(tmp_path, model, ids, "int8")
    parity, _ = check_parity(tmp_path, model, labelled, ids, "int8")
    assert parity["value_agreement"] >= 0.95
    assert parity["logit_difference"] > 0


def test_figures_are_json(tmp_path: Path, model: SparseCBM, labelled: Dataset, ids: list[np.ndarray]) -> None:
    write(tmp_path, model, ids)
    figures = check_parity(tmp_path, model, labelled, ids, "fp32")
    assert json.loads(json.dumps(figures, allow_nan=False)) == list(figures)


def test_an_export_whose_concepts_differ_in_values_is_accepted(tmp_path: Path, make_model: MakeModel) -> None:
    (tmp_path / "all.csv").write_text("text,stars,a,b\ngood,1,yes,2\nbad,2,no,3\nfair,3,no,1\n")
    (tmp_path / "data.yaml").write_text(
        "name: mixed\ntext: text\nlabel: {column: stars, values: ['1', '2', '3']}\nconcepts:\n"
        "  a: {column: a, values: ['yes', 'no']}\n  b: {column: b, values: ['1', '2', '3']}\nfiles: {all: all.csv}\n"
    )
    mixed = data.load(str(tmp_path / "data.yaml"), "all")
    model = make_model(values=(2, 3))
    ids = [np.arange(1, n) for n in (5, 9, 3)]
    write(tmp_path, model, ids)
    parity, _ = check_parity(tmp_path, model, mixed, ids, "fp32")
    assert parity["explain_logit_difference"] < 1e-4


def test_texts_keep_their_order(tmp_path: Path, model: SparseCBM, ids: list[np.ndarray]) -> None:
    write(tmp_path, model, ids)
    few = ids[:70]
    actual = run_exported(open_session(tmp_path / PREDICT), few, model.backbone.config.pad_id)
    np.testing.assert_allclose(actual.logits, run(model, few).logits, atol=1e-4)


def test_an_export_that_says_other_values_is_refused(
    wrong_predict: Path, model: SparseCBM, labelled: Dataset, ids: list[np.ndarray]
) -> None:
    with pytest.raises(ParityError, match=r"value_agreement is 0\.\d{4}, must be at least 0\.998") as caught:
        check_parity(wrong_predict, model, labelled, ids, "fp32")
    assert caught.value.detail["value_agreement"] < 0.998


def test_an_export_that_is_less_accurate_is_refused(
    wrong_predict: Path,
    model: SparseCBM,
    labelled: Dataset,
    ids: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tolerance = dataclasses.replace(TOLERANCES["fp32"], agreement=0.0, activation_error=9.0)
    monkeypatch.setitem(TOLERANCES, "fp32", tolerance)
    right = dataclasses.replace(labelled, concepts=run(model, ids).logits.argmax(-1).numpy())
    with pytest.raises(ParityError, match=r"concept_accuracy falls by 0\.\d{4}, may fall by at most 0\.002"):
        check_parity(wrong_predict, model, right, ids, "fp32")


def test_an_export_that_hands_other_activations_to_the_label_is_refused(
    tmp_path: Path, model: SparseCBM, labelled: Dataset, ids: list[np.ndarray]
) -> None:
    """Twice as long, they give the same labels as long as the head's bias is small."""
    predict = predict_graph(model, "fp32")
    (node,) = (node for node in predict.graph.node if node.output[0] == "vectors")
    node.op_type = "Add"
    node.input.append(node.input[0])
    save_graphs(tmp_path, {PREDICT: predict, EXPLAIN: explain_graph(model, "fp32")})
    with pytest.raises(ParityError, match=r"activation_error is \d\.\d{4}, may be at most 0\.001"):
        check_parity(tmp_path, model, labelled, ids, "fp32")


@pytest.mark.parametrize(
    ("output", "figure"),
    [
        ("logits", "explain_value_agreement"),
        ("vectors", "explain_vector_correlation"),
        ("token_scores", "token_correlation"),
        ("head_gradients", "head_correlation"),
        ("neuron_gradients", "neuron_correlation"),
    ],
)
def test_an_export_that_explains_otherwise_is_refused(
    tmp_path: Path, model: SparseCBM, labelled: Dataset, ids: list[np.ndarray], output: str, figure: str
) -> None:
    explain = explain_graph(model, "fp32")
    (node,) = (node for node in explain.graph.node if node.output[0] == output)
    node.op_type = "Neg"
    save_graphs(tmp_path, {PREDICT: predict_graph(model, "fp32"), EXPLAIN: explain})
    with pytest.raises(ParityError, match=rf"so no bundle was written: {figure} is [^;]*$"):
        check_parity(tmp_path, model, labelled, ids, "fp32")


@pytest.mark.parametrize(
    ("output", "kind"), [("token_scores", "token"), ("head_gradients", "head"), ("neuron_gradients", "neuron")]
)
def test_an_export_that_attributes_otherwise_is_refused(
    tmp_path: Path, model: SparseCBM, labelled: Dataset, ids: list[np.ndarray], output: str, kind: str
) -> None:
    attribute = attribute_graph(model, "fp32")
    (node,) = (node for node in attribute.graph.node if node.output[0] == output)
    node.op_type = "Neg"
    graphs = {PREDICT: predict_graph(model, "fp32"), EXPLAIN: explain_graph(model, "fp32"), ATTRIBUTE: attribute}
    save_graphs(tmp_path, graphs)
    with pytest.raises(ParityError, match=rf"so no bundle was written: attribute_{kind}_correlation is [^;]*$"):
        check_parity(tmp_path, model, labelled, ids, "fp32")
