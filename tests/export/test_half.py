"""Graphs in fp16: what is computed in it, and what is only stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from export.graphs import explain_graph, predict_graph
from export.half import compute_in_half, store_in_half
from sparsecbm.model import SparseCBM
from tests.export.conftest import CONVENTIONS, Batch, MakeModel

Open = Callable[[onnx.ModelProto], ort.InferenceSession]
FAMILIES = pytest.mark.parametrize("family", CONVENTIONS)


def types(graph: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in graph.graph.initializer}


@FAMILIES
def test_predict_in_half_is_near_the_model(open_graph: Open, make_model: MakeModel, batch: Batch, family: str) -> None:
    model = make_model(family=family, values=(3, 2))
    session = open_graph(compute_in_half(predict_graph(model, "fp16")))
    logits, vectors = session.run(["logits", "vectors"], {"input_ids": batch[0], "attention_mask": batch[1]})
    with torch.inference_mode():
        expected = model(*map(torch.from_numpy, batch))
    assert logits.dtype == vectors.dtype == np.float32
    np.testing.assert_allclose(logits, expected.logits, atol=0.02)
    np.testing.assert_allclose(vectors, expected.vectors, atol=0.02)


@FAMILIES
def test_nothing_of_predict_stays_in_float32(make_model: MakeModel, family: str) -> None:
    graph = compute_in_half(predict_graph(make_model(family=family), "fp16"))
    assert TensorProto.FLOAT not in types(graph) and TensorProto.FLOAT16 in types(graph)
    onnx.checker.check_model(graph, full_check=True)


def explained(session: ort.InferenceSession, model: SparseCBM, batch: Batch) -> list[np.ndarray]:
    """Logits, token scores and gradients by heads and neurons."""
    texts, concepts = len(batch[0]), len(model.concepts)
    gates = [
        np.broadcast_to(mask.numpy().astype(np.float32), (texts, *mask.shape))
        for mask in (model.masks.heads, model.masks.neurons)
    ]
    feeds = {"input_ids": batch[0], "attention_mask": batch[1], "head_gates": gates[0], "neuron_gates": gates[1]}
    weights = np.tile(np.array([-1, 1, 0], np.float32), (texts, concepts, 1))
    names = ["logits", "token_scores", "head_gradients", "neuron_gradients"]
    outputs: list[np.ndarray] = session.run(names, feeds | {"value_weights": weights})
    return outputs


def test_explain_computes_in_float32_what_is_stored_in_half(
    open_graph: Open, make_model: MakeModel, batch: Batch
) -> None:
    model = make_model()
    rounded = explain_graph(model, "fp16")
    for tensor in rounded.graph.initializer:  # the same weights in float32
        values = numpy_helper.to_array(tensor)
        if values.nbytes >= 1024 and values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
    expected = explained(open_graph(rounded), model, batch)
    stored = store_in_half(explain_graph(model, "fp16"))
    assert any(tensor.name.endswith("_half") for tensor in stored.graph.initializer)
    for actual, wanted in zip(explained(open_graph(stored), model, batch), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
