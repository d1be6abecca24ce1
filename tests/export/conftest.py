"""Small models with random weights, which the export takes in a moment, and checkpoints of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.graph import save_graphs
from export.parity import open_session
from sparsecbm import checkpoint as checkpoints
from sparsecbm import data
from sparsecbm.backbone import Backbone, BackboneConfig, load_backbone
from sparsecbm.bundle import Concept, Granularity
from sparsecbm.checkpoint import Checkpoint, CheckpointConfig
from sparsecbm.data import Dataset
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import pad

CONFIG = BackboneConfig(
    name="random",
    family="bert",
    layers=3,
    hidden=32,
    heads=4,
    neurons=48,
    vocabulary=60,
    positions=32,
    position_offset=0,
    pad_id=0,
    activation="gelu",
    norm_epsilon=1e-12,
    dropout=0.1,
)
_DECODER: dict[str, Any] = {"causal": True, "norm_first": True, "final_norm": True, "embedding_norm": False}
CONVENTIONS: dict[str, dict[str, Any]] = {  # what distinguishes a family's configuration
    "bert": {},
    "mpnet": {"distance_buckets": 32, "positions": 34, "position_offset": 2},
    "gpt2": _DECODER | {"activation": "gelu_tanh"},
    "opt": _DECODER | {"activation": "relu", "positions": 34, "position_offset": 2},
    "opt normalised after the sums": {"causal": True, "embedding_norm": False, "activation": "relu"},
}
VALUES = ["Negative", "Positive", "unknown"]

MakeModel = Callable[..., SparseCBM]
Batch = tuple[np.ndarray, np.ndarray]


def randomise(model: SparseCBM, seed: int, density: float, trunk_density: float = 1.0) -> None:
    """Gives every weight a size at which all of them matter, and every concept masks of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if name.endswith(("norm", "norm1", "norm2")) else 0.0
            weight.copy_(around + 0.2 * torch.randn(weight.shape, generator=generator))
    if model.weight_masks is not None:
        for mask in model.weight_masks.matrices.values():
            mask.copy_(torch.rand(mask.shape, generator=generator) < density)
    for units, share in ((model.masks, density), (model.trunk_masks, trunk_density)):
        for mask in (units.heads, units.neurons) if units is model.trunk_masks or model.weight_masks is None else ():
            chances = torch.rand(mask.shape, generator=generator)
            mask.copy_((chances < share) | (chances == chances.amin(-1, keepdim=True)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keeps PyTorch's sums the same whatever ran before; models this small gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Makes a model in evaluation mode; ``values`` has the number of values of each concept."""

    def make(
        activation: str = "gelu",
        trunk: int = 1,
        values: tuple[int, ...] = (3, 3),
        density: float = 0.5,
        seed: int = 0,
        granularity: Granularity = "units",
        trunk_density: float = 1.0,
        family: str = "bert",
    ) -> SparseCBM:
        config = dataclasses.replace(CONFIG, **{"activation": activation} | CONVENTIONS[family])
        concepts = [Concept(name=f"concept {index}", values=VALUES[:count]) for index, count in enumerate(values)]
        model = SparseCBM(Backbone(config), concepts, ["1", "2", "3"], trunk, width=4, granularity=granularity)
        randomise(model, seed, density, trunk_density)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Ids and mask [4, 14] of texts of 9, 2, 14 and 5 tokens."""
    generator = np.random.default_rng(1)
    return pad([generator.integers(1, CONFIG.vocabulary, length) for length in (9, 2, 14, 5)], CONFIG.pad_id)


@pytest.fixture
def open_graph(tmp_path: Path) -> Callable[[onnx.ModelProto], ort.InferenceSession]:
    """Saves a graph and opens it as the server does."""

    def open_it(graph: onnx.ModelProto) -> ort.InferenceSession:
        save_graphs(tmp_path, {"graph.onnx": graph})
        return open_session(tmp_path / "graph.onnx")

    return open_it


@pytest.fixture(scope="session")
def labelled(reviews: Path) -> Dataset:
    """240 synthetic reviews."""
    return data.load(str(reviews), "train")


def random_checkpoint(
    backbone: Path, labelled: Dataset, granularity: Granularity = "units", trunk_density: float = 1.0
) -> Checkpoint:
    base, tokenizer = load_backbone(str(backbone))
    schema = labelled.schema
    model = SparseCBM(base, schema.concepts, schema.labels, trunk=1, width=4, granularity=granularity)
    randomise(model, 5, 0.5, trunk_density)
    config = CheckpointConfig(
        name="tiny",
        backbone=base.config,
        concepts=model.concepts,
        labels=model.labels,
        trunk=1,
        width=4,
        max_tokens=64,
    )
    return Checkpoint(config, model.eval(), tokenizer)


@pytest.fixture(scope="session")
def untrained(backbone: Path, labelled: Dataset) -> Checkpoint:
    """A checkpoint over a BERT that ``transformers`` wrote, with random weights and masks."""
    return random_checkpoint(backbone, labelled)


@pytest.fixture(scope="session")
def weight_pruned(backbone: Path, labelled: Dataset) -> Checkpoint:
    """The like of ``untrained`` with masks over single weights, and half of its trunk's units."""
    return random_checkpoint(backbone, labelled, "weights", 0.5)


@pytest.fixture(scope="session")
def untrained_folder(tmp_path_factory: pytest.TempPathFactory, untrained: Checkpoint) -> Path:
    """The folder of the untrained checkpoint."""
    folder = tmp_path_factory.mktemp("untrained") / "checkpoint"
    checkpoints.save(untrained, folder)
    return folder
