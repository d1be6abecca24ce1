"""Graphs in fp16, made from their fp32 ones: computed in it for predictions, only stored in it for gradients."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_STORED_FROM = 1024  # bytes of fp32; smaller tensors keep their precision


def compute_in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes every float32 tensor of a graph float16 but its outputs, in place.

    Args:
        model: whose inputs are no floats and whose outputs are named by Identity nodes.
    """
    outputs = {output.name for output in model.graph.output}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(_halved(tensor), tensor.name))
    for node in model.graph.node:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
        elif node.output[0] in outputs:
            node.op_type = "Cast"
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    return model


def store_in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores a graph's large float32 tensors as float16, in place; they become float32 again when it is loaded."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.raw_data) >= _STORED_FROM:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(_halved(tensor), f"{name}_half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _halved(tensor: onnx.TensorProto) -> np.ndarray:
    with np.errstate(over="ignore"):  # a weight beyond the range becomes infinite, which parity finds
        return numpy_helper.to_array(tensor).astype(np.float16)
