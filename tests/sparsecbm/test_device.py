"""Devices and precisions that are asked for."""

from __future__ import annotations

import pytest
import torch

from sparsecbm.device import autocast, move, pick_device
from sparsecbm.errors import SetupError
from sparsecbm.model import SparseCBM


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_a_gpu_it_is_the_processor(no_gpu: None, name: str) -> None:
    assert pick_device(name) == torch.device("cpu")


def test_cuda_without_a_gpu_says_so(no_gpu: None) -> None:
    with pytest.raises(SetupError, match=r"^There is no GPU that torch can use here \(torch .*\); leave --device out"):
        pick_device("cuda")


def test_another_device_is_refused() -> None:
    with pytest.raises(SetupError, match=r"^--device must be 'auto', 'cpu' or 'cuda', not 'tpu'\.$"):
        pick_device("tpu")


def test_moving_keeps_weights_and_masks(pruned: SparseCBM) -> None:
    before = pruned.masks.clone()
    move(pruned, torch.device("cpu"))
    assert torch.equal(pruned.masks.flat(), before.flat())


def test_bf16_is_only_inside() -> None:
    with autocast("bf16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast("fp32", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
