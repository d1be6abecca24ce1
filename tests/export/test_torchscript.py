"""TorchScript graphs, against the PyTorch model and its autograd, and the files they are written to."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.torchscript import explain_module, predict_module, save_module
from sparsecbm.attribution import attribute
from sparsecbm.bundle import EXPLAIN_INPUTS, EXPLAIN_OUTPUTS, PREDICT_INPUTS, PREDICT_OUTPUTS, Granularity, Precision
from sparsecbm.graph_check import check_archive
from sparsecbm.model import SparseCBM
from sparsecbm.torchscript import TorchGraph
from tests.export.conftest import CONVENTIONS, Batch, MakeModel

KINDS = pytest.mark.parametrize("granularity", ["units", "weights"])
FAMILIES = pytest.mark.parametrize("family", CONVENTIONS)


def predict(folder: Path, model: SparseCBM, batch: Batch, precision: Precision = "fp32") -> list[np.ndarray]:
    """Logits and vectors, by a graph that was written and read."""
    save_module(predict_module(model, precision), folder / "graph.ts")
    graph = TorchGraph(folder / "graph.ts", PREDICT_INPUTS, PREDICT_OUTPUTS, gradients=False)
    return graph.run(PREDICT_OUTPUTS, {"input_ids": batch[0], "attention_mask": batch[1]})


def explain(graph: TorchGraph, masks: Sequence[torch.Tensor], batch: Batch, weights: np.ndarray) -> list[np.ndarray]:
    gates = [np.tile(mask.numpy().astype(np.float32), (len(batch[0]), 1, 1, 1)) for mask in masks]
    feeds = dict(zip(EXPLAIN_INPUTS, (*batch, *gates, weights), strict=True))
    return graph.run(EXPLAIN_OUTPUTS, feeds)


def explained(folder: Path, model: SparseCBM, precision: Precision = "fp32") -> TorchGraph:
    save_module(explain_module(model, precision), folder / "graph.ts")
    return TorchGraph(folder / "graph.ts", EXPLAIN_INPUTS, EXPLAIN_OUTPUTS, gradients=True)


@FAMILIES
@KINDS
def test_predict_answers_as_the_model(
    tmp_path: Path, make_model: MakeModel, batch: Batch, family: str, granularity: Granularity
) -> None:
    model = make_model(family=family, granularity=granularity, trunk_density=0.5, values=(3, 2))
    model.reach = 0.4
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, batch))
    for actual, wanted in zip(predict(tmp_path, model, batch), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("bf16", 0.1)])
def test_predict_in_half_is_near_the_model(
    tmp_path: Path, make_model: MakeModel, batch: Batch, precision: Precision, tolerance: float
) -> None:
    model = make_model()
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, batch))
    logits, vectors = predict(tmp_path, model, batch, precision)
    assert logits.dtype == vectors.dtype == np.float32
    np.testing.assert_allclose(logits, expected.logits, atol=tolerance)
    np.testing.assert_allclose(vectors, expected.vectors, atol=tolerance)


def test_predict_leaves_out_what_the_masks_do(tmp_path: Path, make_model: MakeModel, batch: Batch) -> None:
    sizes = []
    for density in (0.2, 0.9):
        predict(tmp_path, make_model(density=density), batch)
        sizes.append((tmp_path / "graph.ts").stat().st_size)
    assert sizes[0] < 0.8 * sizes[1]


@FAMILIES
@KINDS
@pytest.mark.parametrize("trunk", [0, 1])
def test_explain_attributes_as_autograd(
    tmp_path: Path, make_model: MakeModel, batch: Batch, family: str, granularity: Granularity, trunk: int
) -> None:
    model = make_model(family=family, granularity=granularity, trunk=trunk, values=(3, 2))
    weights = np.tile(np.array([[-1, 0.5, 1], [1, -1, 0]], np.float32), (len(batch[0]), 1, 1))
    expected = attribute(model, *map(torch.from_numpy, (*batch, weights)))
    masks = (model.masks.heads, model.masks.neurons)
    graph = explained(tmp_path, model)
    for _ in range(3):  # the first runs are those that TorchScript learns from
        logits, _, tokens, heads, neurons = explain(graph, masks, batch, weights)
        for actual, wanted in zip((logits, tokens, heads, neurons), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-4)


def test_explain_computes_in_fp32_with_rounded_weights(tmp_path: Path, make_model: MakeModel, batch: Batch) -> None:
    model, rounded = make_model(), make_model()
    rounded.backbone.to(torch.bfloat16).float()
    weights = np.tile(np.array([-1, 1, 0], np.float32), (len(batch[0]), 2, 1))
    masks = (model.masks.heads, model.masks.neurons)
    actual = explain(explained(tmp_path, model, "bf16"), masks, batch, weights)
    for ours, same in zip(actual, explain(explained(tmp_path, rounded), masks, batch, weights), strict=True):
        np.testing.assert_array_equal(ours, same)


def test_other_gates_give_the_answer_of_other_masks(tmp_path: Path, make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    graph = explained(tmp_path, model)
    weights = np.zeros((len(batch[0]), 2, 3), np.float32)
    model.masks.neurons.logical_not_()
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, batch))
    logits, vectors, *_ = explain(graph, (model.masks.heads, model.masks.neurons), batch, weights)
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(vectors, expected.vectors, atol=1e-4)


def test_making_graphs_leaves_the_model_as_it_was(make_model: MakeModel) -> None:
    model = make_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    predict_module(model, "fp16")
    explain_module(model, "bf16")
    for name, weight in model.named_parameters():
        assert weight.requires_grad and torch.equal(weight, before[name])


@pytest.mark.parametrize("make", [predict_module, explain_module], ids=["predict", "explain"])
def test_a_file_is_the_same_every_time_and_says_nothing_of_this_machine(
    tmp_path: Path, make_model: MakeModel, make: Callable[[SparseCBM, Precision], Any]
) -> None:
    for name in ("first", "second"):
        save_module(make(make_model(), "fp32"), tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    with zipfile.ZipFile(tmp_path / "first") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert not [word for word in (str(Path(__file__).parents[2]), "torch_mangle") if word.encode() in content]
    check_archive(tmp_path / "first")
