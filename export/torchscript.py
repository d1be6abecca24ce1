"""The two graphs of a bundle as TorchScript: ``predict.ts``, compact, and ``explain.ts``, gated and with gradients.

They are traced from the model's own layers, and their gradients are those of PyTorch's autograd at run time. What
they take and give is what ``export.graphs`` says of the ONNX graphs of the same names.
"""

from __future__ import annotations

import copy
import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecbm.backbone import Gates, attention_bias, run_layer
from sparsecbm.bundle import Precision
from sparsecbm.model import SparseCBM, mean_over_tokens

PREDICT = "predict.ts"
EXPLAIN = "explain.ts"
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TEXTS, _LENGTH = 2, 5  # of the example that is traced; both vary afterwards
# Tracing cannot record gradients, so this part is compiled. Each concept's branch has its own copy of the trunk's
# output, so that one backward pass gives all concepts' gradients there.
_EXPLAIN_SOURCE = """
def forward(self, input_ids: Tensor, attention_mask: Tensor, head_gates: Tensor, neuron_gates: Tensor,
            value_weights: Tensor):
    tokens = self.embed(input_ids).detach().requires_grad_()
    heads, neurons = head_gates.detach().requires_grad_(), neuron_gates.detach().requires_grad_()
    shared = self.trunk(tokens, attention_mask)
    concepts = value_weights.size(1)
    spread = shared.detach().unsqueeze(1).repeat(1, concepts, 1, 1).requires_grad_()
    logits, vectors = self.branches(spread, attention_mask, heads, neurons)
    weighted = torch.where(value_weights != 0, logits * value_weights, torch.zeros_like(logits))
    by_shared, by_heads, by_neurons = torch.autograd.grad([weighted.sum()], [spread, heads, neurons])
    assert by_shared is not None and by_heads is not None and by_neurons is not None
    scores = torch.jit.annotate(List[Tensor], [])
    for concept in range(concepts):
        seed = torch.jit.annotate(List[Optional[Tensor]], [by_shared[:, concept]])
        by_tokens = torch.autograd.grad([shared], [tokens], seed, retain_graph=True)[0]
        assert by_tokens is not None
        scores.append((by_tokens * tokens).sum(-1))
    return logits.detach(), vectors.detach(), torch.stack(scores, 1).detach(), by_heads, by_neurons
"""


def _constant(model: SparseCBM) -> SparseCBM:
    """A copy of a model whose weights a trace takes for constants."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def _trace(module: nn.Module, examples: Mapping[str, tuple[Tensor, ...]]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and layers compute sizes that don't vary in Python
        return torch.jit.trace_module(module, dict(examples), check_trace=False)


def predict_module(model: SparseCBM, precision: Precision) -> Any:
    """Tokens → every concept's logits and vectors, as ``export.graphs.predict_graph``.

    In half precision, all but the concept layers is computed in it.
    """
    model, dtype = _constant(model), _DTYPES[precision]
    backbone, config = model.backbone.to(dtype), model.backbone.config
    trunk = model.trunk_weights()
    branches = [model.branch_weights(concept) for concept in range(len(model.concepts))]

    class Predict(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            bias = attention_bias(attention_mask, config.causal).to(dtype)
            shared: Tensor = backbone.embeddings(input_ids)
            for weights in trunk:
                shared = run_layer(shared, bias, weights, config)
            pooled = []
            for branch in branches:
                hidden = shared
                for weights in branch:
                    hidden = run_layer(hidden, bias, weights, config)
                pooled.append(mean_over_tokens(backbone.finish(hidden).float(), attention_mask))
            logits, vectors = model.read_concepts(torch.stack(pooled, 1))
            return logits, vectors

    ids = torch.zeros(_TEXTS, _LENGTH, dtype=torch.int64)
    return _trace(Predict(), {"forward": (ids, torch.ones_like(ids))})


def explain_module(model: SparseCBM, precision: Precision) -> Any:
    """The same function with gates and gradients, as ``export.graphs.explain_graph``.

    It computes in fp32, with the weights rounded to the precision.
    """
    model = _constant(model)
    model.backbone.to(_DTYPES[precision]).float()
    backbone, config, concepts = model.backbone, model.backbone.config, len(model.concepts)
    trunk = model.trunk_weights()
    together = [list(range(concepts))] if model.weight_masks is None else [[concept] for concept in range(concepts)]
    branches = [
        [model.full_weights(members[0], position) for position in range(model.branch_layers)] for members in together
    ]

    class Explain(nn.Module):
        def embed(self, input_ids: Tensor) -> Tensor:
            return F.embedding(input_ids, backbone.embeddings.token)

        def trunk(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
            bias = attention_bias(attention_mask, config.causal)
            hidden: Tensor = backbone.embeddings.add_positions(tokens, linear=True)
            for weights in trunk:
                hidden = run_layer(hidden, bias, weights, config, linear=True)
            return hidden

        def branches(
            self, spread: Tensor, attention_mask: Tensor, head_gates: Tensor, neuron_gates: Tensor
        ) -> tuple[Tensor, Tensor]:
            pooled = []
            for members, branch in zip(together, branches, strict=True):
                mask = attention_mask.repeat_interleave(len(members), 0)
                bias = attention_bias(mask, config.causal)
                hidden = spread[:, members].flatten(0, 1)
                for position, weights in enumerate(branch):
                    own = (gates[:, members, position].flatten(0, 1) for gates in (head_gates, neuron_gates))
                    hidden = run_layer(hidden, bias, weights, config, Gates(*own), linear=True)
                means = mean_over_tokens(backbone.finish(hidden, linear=True), mask)
                pooled.append(means.unflatten(0, (-1, len(members))))
            logits, vectors = model.read_concepts(torch.cat(pooled, 1))
            return logits, vectors

    ids = torch.zeros(_TEXTS, _LENGTH, dtype=torch.int64)
    mask = torch.ones_like(ids)
    tokens = torch.zeros(_TEXTS, _LENGTH, config.hidden)
    spread = torch.zeros(_TEXTS, concepts, _LENGTH, config.hidden)
    gates = [torch.ones(_TEXTS, concepts, model.branch_layers, units) for units in (config.heads, config.neurons)]
    module = _trace(
        Explain(), {"embed": (ids,), "trunk": (tokens, mask), "branches": (spread, mask, gates[0], gates[1])}
    )
    module.define(_EXPLAIN_SOURCE)
    return module


def save_module(module: Any, path: Path) -> None:
    """Writes a module of one class so that the same module gives the same bytes in every process.

    Left out are the numbers that TorchScript appends to the names of what it compiles again, the example's shapes, the
    places of the source on this machine, and the hash over all.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            if "/traced_inputs" in entry.filename or entry.filename.endswith((".debug_pkl", "/serialization_id")):
                continue
            content = source.read(entry)
            name = re.sub(r"/___torch_mangle_\d+(?=\.py$)", "", entry.filename)
            if entry.filename.endswith((".py", "/data.pkl")):
                content = re.sub(rb"\.___torch_mangle_\d+", b"", content)
            target.writestr(zipfile.ZipInfo(name), content)
