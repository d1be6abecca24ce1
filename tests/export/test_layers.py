"""The transformer layer's forward and backward nodes, against PyTorch and its autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from export.graph import GraphBuilder
from export.layers import Emitter, ExportLayer
from export.products import ExactProduct
from sparsecbm.backbone import Gates, LayerWeights, attention_bias, normalise, run_layer
from sparsecbm.model import SparseCBM

Open = Callable[[onnx.ModelProto], ort.InferenceSession]
MakeModel = Callable[..., SparseCBM]

HIDDEN, HEADS, WIDTH, NEURONS, LENGTH = 32, 4, 8, 48, 7
ACTIVATIONS = pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])


class Case(NamedTuple):
    """Inputs of one layer for three texts of different length."""

    hidden: Tensor
    bias: Tensor
    gates: Gates
    gradient: Tensor

    def feeds(self, *names: str) -> dict[str, np.ndarray]:
        tensors = {
            "hidden": self.hidden,
            "bias": self.bias.expand(-1, -1, LENGTH, -1).contiguous(),
            "heads": self.gates.heads[:, None, :, None],
            "neurons": self.gates.neurons[:, None, :],
            "gradient": self.gradient,
        }
        return {name: tensors[name].numpy() for name in names}


@pytest.fixture
def case() -> Case:
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(LENGTH)[None, :] < torch.tensor([7, 3, 5])[:, None]
    return Case(
        torch.randn(3, LENGTH, HIDDEN, generator=generator),
        attention_bias(mask, causal=False),
        Gates(torch.rand(3, HEADS, generator=generator), torch.rand(3, NEURONS, generator=generator)),
        torch.randn(3, LENGTH, HIDDEN, generator=generator),
    )


def run(
    open_graph: Open, graph: GraphBuilder, output: str, feeds: Mapping[str, np.ndarray], rank: int = 3
) -> np.ndarray:
    """Finishes a graph, opens it and gives one of its tensors."""
    graph.rename(output, "output")
    inputs = {name: (TensorProto.FLOAT, array.shape) for name, array in feeds.items()}
    opened = open_graph(graph.build("layer", inputs, {"output": ("a", "b", "c", "d")[:rank]}))
    actual: np.ndarray = opened.run(["output"], dict(feeds))[0]
    return actual


def close(actual: np.ndarray, expected: Tensor) -> None:
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


@ACTIVATIONS
def test_a_layer_answers_as_in_pytorch(open_graph: Open, make_model: MakeModel, case: Case, activation: str) -> None:
    backbone = make_model(activation=activation).backbone
    weights, graph, feeds = backbone.layers[0].weights(), GraphBuilder(), case.feeds("hidden", "bias")
    emitter = Emitter(graph, backbone.config, ExactProduct(), traced=False)
    output, _ = emitter.forward("hidden", "bias", ExportLayer.of(weights, "fp32"))
    actual = run(open_graph, graph, output, feeds)
    close(actual, run_layer(case.hidden, case.bias, weights, backbone.config))


def test_a_gated_layer_answers_as_in_pytorch(open_graph: Open, make_model: MakeModel, case: Case) -> None:
    backbone = make_model().backbone
    weights, graph, feeds = (
        backbone.layers[0].weights(),
        GraphBuilder(),
        case.feeds("hidden", "bias", "heads", "neurons"),
    )
    emitter = Emitter(graph, backbone.config, ExactProduct(), traced=True)
    output, _ = emitter.forward("hidden", "bias", ExportLayer.of(weights, "fp32"), "heads", "neurons")
    actual = run(open_graph, graph, output, feeds)
    close(actual, run_layer(case.hidden, case.bias, weights, backbone.config, case.gates))


@pytest.mark.parametrize(("heads", "neurons"), [([0, 3], [1, 2, 40]), ([2], [47]), (range(4), range(48))])
def test_a_compact_layer_answers_as_the_masked_one(
    open_graph: Open, make_model: MakeModel, case: Case, heads: list[int], neurons: list[int]
) -> None:
    backbone = make_model().backbone
    layer, graph, feeds = backbone.layers[0], GraphBuilder(), case.feeds("hidden", "bias")
    emitter = Emitter(graph, backbone.config, ExactProduct(), traced=False)
    compact = ExportLayer.of(layer.weights(), "fp32").compact(np.array(heads), np.array(neurons))
    output, _ = emitter.forward("hidden", "bias", compact)
    actual = run(open_graph, graph, output, feeds)
    gates = Gates(torch.zeros(3, HEADS), torch.zeros(3, NEURONS))
    gates.heads[:, list(heads)] = 1
    gates.neurons[:, list(neurons)] = 1
    close(actual, run_layer(case.hidden, case.bias, layer.weights(), backbone.config, gates))


def test_a_compact_layer_holds_nothing_of_the_units_left_out(make_model: MakeModel) -> None:
    layer = ExportLayer.of(make_model().backbone.layers[0].weights(), "int8").compact(np.array([1, 3]), np.arange(5))
    shapes = [matrix.weight.shape for matrix in (layer.qkv, layer.out, layer.up, layer.down)]
    assert shapes == [(HIDDEN, 3 * 2 * WIDTH), (2 * WIDTH, HIDDEN), (HIDDEN, 5), (5, HIDDEN)]
    assert (layer.qkv_bias.shape, layer.up_bias.shape) == ((3 * 2 * WIDTH,), (5,))


class Gradients(NamedTuple):
    hidden: Tensor
    heads: Tensor
    neurons: Tensor


def autograd(weights: LayerWeights, model: SparseCBM, case: Case, gradient: Tensor) -> Gradients:
    hidden, heads, neurons = (tensor.clone().requires_grad_() for tensor in (case.hidden, *case.gates))
    output = run_layer(hidden, case.bias, weights, model.backbone.config, Gates(heads, neurons), linear=True)
    return Gradients(*torch.autograd.grad(output, (hidden, heads, neurons), gradient))


@ACTIVATIONS
@pytest.mark.parametrize("by", ["hidden", "heads", "neurons"])
def test_a_gated_layers_gradient_is_autograds(
    open_graph: Open, make_model: MakeModel, case: Case, activation: str, by: str
) -> None:
    model = make_model(activation=activation)
    weights, graph = model.backbone.layers[0].weights(), GraphBuilder()
    feeds = case.feeds("hidden", "bias", "heads", "neurons", "gradient")
    emitter = Emitter(graph, model.backbone.config, ExactProduct(), traced=True)
    _, trace = emitter.forward("hidden", "bias", ExportLayer.of(weights, "fp32"), "heads", "neurons")
    gradient, units = emitter.backward("gradient", trace)
    assert units is not None
    names = {"hidden": gradient, "heads": units.heads, "neurons": units.neurons}
    actual = run(open_graph, graph, names[by], feeds, rank=3 if by == "hidden" else 2)
    close(actual, getattr(autograd(weights, model, case, case.gradient), by))


@pytest.mark.parametrize("by", ["hidden", "heads", "neurons"])
def test_a_layer_without_gates_has_the_gradients_of_gates_of_1(
    open_graph: Open, make_model: MakeModel, case: Case, by: str
) -> None:
    model = make_model()
    weights, graph = model.backbone.layers[0].weights(), GraphBuilder()
    emitter = Emitter(graph, model.backbone.config, ExactProduct(), traced=True)
    _, trace = emitter.forward("hidden", "bias", ExportLayer.of(weights, "fp32"))
    gradient, units = emitter.backward("gradient", trace)
    assert units is not None
    names = {"hidden": gradient, "heads": units.heads, "neurons": units.neurons}
    feeds = case.feeds("hidden", "bias", "gradient")
    actual = run(open_graph, graph, names[by], feeds, rank=3 if by == "hidden" else 2)
    ungated = case._replace(gates=Gates(torch.ones(3, HEADS), torch.ones(3, NEURONS)))
    close(actual, getattr(autograd(weights, model, ungated, case.gradient), by))


@pytest.mark.parametrize("chosen", [[0], [1, 3], [3, 2, 1, 0]])
def test_chosen_heads_of_an_attention_are_those_of_a_layer_that_has_no_others(
    open_graph: Open, make_model: MakeModel, case: Case, chosen: list[int]
) -> None:
    backbone, graph, feeds = make_model().backbone, GraphBuilder(), case.feeds("hidden", "bias")
    layer = ExportLayer.of(backbone.layers[0].weights(), "fp32")
    emitter = Emitter(graph, backbone.config, ExactProduct(), traced=False)
    alone = emitter.attend("hidden", "bias", layer.compact(np.array(chosen), np.arange(1)))
    among = emitter.of_heads(emitter.attend("hidden", "bias", layer), np.array(chosen))
    difference = graph.op("Sub", among.context, alone.context)
    np.testing.assert_allclose(run(open_graph, graph, difference, feeds), 0, atol=1e-5)


def test_several_gradients_share_a_forward_pass(open_graph: Open, make_model: MakeModel, case: Case) -> None:
    model = make_model()
    weights, graph = model.backbone.layers[0].weights(), GraphBuilder()
    several = torch.stack([case.gradient, case.gradient.flip(0)], 1)
    feeds = case.feeds("hidden", "bias") | {"gradient": several.numpy()}
    emitter = Emitter(graph, model.backbone.config, ExactProduct(), traced=True)
    _, trace = emitter.forward("hidden", "bias", ExportLayer.of(weights, "fp32"))
    gradient, _ = emitter.backward("gradient", trace, shared=True)
    actual = run(open_graph, graph, gradient, feeds, rank=4)
    ungated = case._replace(gates=Gates(torch.ones(3, HEADS), torch.ones(3, NEURONS)))
    close(actual, torch.stack([autograd(weights, model, ungated, part).hidden for part in several.unbind(1)], 1))


def test_a_norms_gradient_takes_its_deviation_for_a_constant(
    open_graph: Open, make_model: MakeModel, case: Case
) -> None:
    backbone, graph, feeds = make_model().backbone, GraphBuilder(), case.feeds("hidden", "gradient")
    emitter = Emitter(graph, backbone.config, ExactProduct(), traced=True)
    weight, bias = backbone.layers[0].norm1.detach(), backbone.layers[0].norm1_bias.detach()
    _, norm = emitter.normalise("hidden", weight.numpy(), bias.numpy())
    actual = run(open_graph, graph, emitter.backward_norm("gradient", norm), feeds)
    inputs = case.hidden.clone().requires_grad_()
    output = normalise(inputs, weight, bias, backbone.config, linear=True)
    close(actual, torch.autograd.grad(output, inputs, case.gradient)[0])
