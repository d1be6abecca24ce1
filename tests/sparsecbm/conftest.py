"""Random models small enough for finite differences, and texts whose tokens say their concepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch

from sparsecbm.backbone import Backbone, BackboneConfig
from sparsecbm.bundle import Concept, Granularity
from sparsecbm.data import Dataset, Schema
from sparsecbm.model import SparseCBM
from sparsecbm.recipe import BottleneckKind

CONCEPTS = (
    Concept(name="food", values=["Negative", "Positive", "unknown"]),
    Concept(name="noise", values=["no", "yes"]),
)
LABELS = ("1", "2", "3")

MakeModel = Callable[..., SparseCBM]


class Texts(NamedTuple):
    """A split with its token ids."""

    data: Dataset
    ids: list[np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keeps models this small on one thread: on a busy machine, waiting for a second one takes far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_model() -> MakeModel:
    """Makes a model of 3 layers with 4 heads and 12 neurons, whose concepts have 3 and 2 values."""

    def make(
        seed: int = 0, trunk: int = 1, granularity: Granularity = "units", bottleneck: BottleneckKind = "vectors"
    ) -> SparseCBM:
        config = BackboneConfig(
            name="tiny",
            family="bert",
            layers=3,
            hidden=16,
            heads=4,
            neurons=12,
            vocabulary=30,
            positions=20,
            position_offset=0,
            pad_id=0,
            activation="gelu",
            norm_epsilon=1e-12,
            dropout=0.1,
        )
        torch.manual_seed(seed)
        model = SparseCBM(
            Backbone(config), CONCEPTS, LABELS, trunk, width=5, granularity=granularity, bottleneck=bottleneck
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model.eval()

    return make


@pytest.fixture
def model(make_model: MakeModel) -> SparseCBM:
    return make_model()


@pytest.fixture
def pruned(make_model: MakeModel) -> SparseCBM:
    """A model whose two concepts keep different units, about half."""
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    for mask in (model.masks.heads, model.masks.neurons):
        mask.copy_(torch.rand(mask.shape, generator=generator) < 0.5)
        mask[..., 0] = True
    return model


@pytest.fixture
def weight_pruned(make_model: MakeModel) -> SparseCBM:
    """A model whose two concepts keep different weights, about half."""
    model = make_model(granularity="weights")
    assert model.weight_masks is not None
    generator = torch.Generator().manual_seed(6)
    for mask in model.weight_masks.matrices.values():
        mask.copy_(torch.rand(mask.shape, generator=generator) < 0.5)
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of three texts of 7, 4 and 5 tokens."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([7, 4, 5])
    mask = (torch.arange(7)[None, :] < lengths[:, None]).long()
    return torch.randint(1, 30, (3, 7), generator=generator) * mask, mask


@pytest.fixture
def texts() -> Texts:
    """48 texts: token 10 to 12 is the value of food, 15 or 16 that of noise, and the label is their sum, cut at 2."""
    generator = np.random.default_rng(4)
    food, noise = generator.integers(0, 3, 48), generator.integers(0, 2, 48)
    ids = [
        np.array([1, 10 + a, *generator.integers(20, 30, generator.integers(0, 4)), 15 + b, 2], dtype=np.int64)
        for a, b in zip(food, noise, strict=True)
    ]
    labels = np.minimum(food + noise, 2).astype(np.int64)
    data = Dataset(
        Schema("toy", CONCEPTS, LABELS),
        tuple(f"text {number}" for number in range(48)),
        labels,
        np.stack((food, noise), 1).astype(np.int64),
        np.eye(3, dtype=np.float32)[labels],
        np.stack((np.eye(3, dtype=np.float32)[food], np.eye(3, dtype=np.float32)[noise]), 1),
    )
    return Texts(data, ids)
