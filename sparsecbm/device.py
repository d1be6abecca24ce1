"""Where a model computes, and how precisely."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from sparsecbm.errors import SetupError
from sparsecbm.masks import UnitMasks, WeightMasks
from sparsecbm.model import SparseCBM


def pick_device(name: str) -> torch.device:
    """The device for "cpu", "cuda", or "auto": a GPU where there is one, else the processor.

    Raises:
        SetupError: another name, or no GPU that torch can use.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise SetupError(f"--device must be 'auto', 'cpu' or 'cuda', not {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        built = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else (f"torch {torch.__version__} is built without CUDA")
        )
        raise SetupError(f"There is no GPU that torch can use here ({built}); leave --device out or say --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def move(model: SparseCBM, device: torch.device) -> None:
    """Moves a model's weights and masks to a device, in place."""

    def moved(masks: UnitMasks) -> UnitMasks:
        return replace(masks, heads=masks.heads.to(device), neurons=masks.neurons.to(device))

    model.to(device)
    model.masks, model.trunk_masks = moved(model.masks), moved(model.trunk_masks)
    if model.weight_masks is not None:
        matrices = {name: mask.to(device) for name, mask in model.weight_masks.matrices.items()}
        model.weight_masks = WeightMasks(matrices)


def natively_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Runs what is inside at "fp32", at "bf16", or, with "auto", at bf16 where the device does so natively."""
    if precision == "bf16" or (precision == "auto" and natively_bf16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def defaults(device: torch.device) -> AbstractContextManager[object]:
    """Makes new tensors on a device unless told otherwise; costs nothing on the processor."""
    return nullcontext() if device.type == "cpu" else device
