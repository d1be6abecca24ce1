"""What values the inputs of a model's products take, measured on texts: int8 activations are rounded over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from onnx import helper

from export.graph import GraphBuilder
from export.graphs import predict_graph
from export.products import ExactProduct, Matrix, Range
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import batches, pad

_TEXTS = 256
_BATCH = 8


class _RecordingProduct(ExactProduct):
    """Exact products that say what they multiplied."""

    def __init__(self) -> None:
        self.inputs: list[str] = []

    def __call__(self, graph: GraphBuilder, inputs: str, matrix: Matrix, bias: np.ndarray | None) -> str:
        self.inputs.append(inputs)
        return super().__call__(graph, inputs, matrix, bias)


def measure_ranges(model: SparseCBM, ids: Sequence[np.ndarray]) -> list[Range]:
    """The range of each product's inputs in ``predict_graph``, over at most 256 texts taken evenly from those given.

    Bounds have three significant digits: what is beyond depends on the processor, and so would the bundle's bytes.

    Args:
        model: in fp32.
        ids: token ids of texts such as the model will read.
    """
    product = _RecordingProduct()
    graph = predict_graph(model, "fp32", product)
    names = list(dict.fromkeys(product.inputs))
    graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    chosen = [ids[row] for row in np.linspace(0, len(ids) - 1, min(_TEXTS, len(ids))).astype(int)]
    low, high = np.zeros(len(names)), np.zeros(len(names))
    for rows in batches(np.array([len(row) for row in chosen]), _BATCH):
        padded, mask = pad([chosen[row] for row in rows], model.backbone.config.pad_id)
        values = session.run(names, {"input_ids": padded, "attention_mask": mask})
        low = np.minimum(low, [inputs[mask == 1].min() for inputs in values])
        high = np.maximum(high, [inputs[mask == 1].max() for inputs in values])
    by_name = {name: Range(float(f"{low[i]:.3g}"), float(f"{high[i]:.3g}")) for i, name in enumerate(names)}
    return [by_name[name] for name in product.inputs]
