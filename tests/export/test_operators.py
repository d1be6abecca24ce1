"""Whatever an export can write, a bundle's reader lets pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.graph import WEIGHTS, save_graphs
from export.graphs import EXPLAIN, PREDICT, explain_graph, predict_graph
from export.half import compute_in_half, store_in_half
from sparsecbm.bundle import PRECISIONS, Granularity, Precision
from sparsecbm.graph_check import check_graph
from tests.export.conftest import CONVENTIONS, MakeModel


@pytest.mark.parametrize("family", CONVENTIONS)
@pytest.mark.parametrize("granularity", ["units", "weights"])
@pytest.mark.parametrize("precision", PRECISIONS["onnx"])
def test_graphs_of_every_kind_pass(
    tmp_path: Path, make_model: MakeModel, family: str, granularity: Granularity, precision: Precision
) -> None:
    model = make_model("silu" if family == "bert" else "gelu", family=family, granularity=granularity)
    model.reach = 0.4
    predict, explain = predict_graph(model, precision), explain_graph(model, precision)
    if precision == "fp16":
        predict, explain = compute_in_half(predict), store_in_half(explain)
    save_graphs(tmp_path, {PREDICT: predict, EXPLAIN: explain})
    for name in (PREDICT, EXPLAIN):
        check_graph(tmp_path / name, tmp_path / WEIGHTS)
