"""The machine's limit: the fastest large matrix product that its libraries do."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort

_ROWS, _SIZE = 2048, 1024  # [rows, size] @ [size, size]
_REPEATS = 20


def _graph(precision: str) -> bytes:
    """A product of activations with a constant matrix, in fp32 or as int8 models do it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = np.random.default_rng(0).integers(-127, 128, (_SIZE, _SIZE))
    if precision == "fp32":
        weights = [numpy_helper.from_array(values.astype(np.float32), "w")]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        weights = [numpy_helper.from_array(values.astype(np.int8), "w")]
        weights.append(numpy_helper.from_array(np.ones(_SIZE, dtype=np.float32), "s"))
        node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [_ROWS, _SIZE]) for name in ("x", "y")]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    return bytes(model.SerializeToString())


def _fastest(run: Callable[[], object]) -> float:
    """GFLOP/s of the fastest of many products."""
    run()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return 2 * _ROWS * _SIZE * _SIZE / min(seconds) / 1e9


def product_peaks(threads: int) -> dict[str, float]:
    """GFLOP/s by precision: fp32 by the faster of ONNX Runtime and PyTorch, int8 by ONNX Runtime."""
    import torch

    inputs = np.random.default_rng(1).standard_normal((_ROWS, _SIZE), dtype=np.float32)
    found: dict[str, float] = {}
    for precision in ("fp32", "int8"):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(_graph(precision), options, providers=["CPUExecutionProvider"])
        found[precision] = _fastest(lambda session=session: session.run(None, {"x": inputs}))  # type: ignore[misc]
    left, right = torch.from_numpy(inputs), torch.ones(_SIZE, _SIZE)
    found["fp32"] = max(found["fp32"], _fastest(lambda: left @ right))
    return found
