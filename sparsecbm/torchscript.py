"""A bundle's TorchScript graphs, run as ONNX Runtime runs its own.

A TorchScript file is a program: whoever loads one lets its writer run code on this machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sparsecbm.errors import BundleError


class TorchGraph:
    """One graph, on the GPU where torch has one.

    Args:
        path: of the file, which is trusted.
        inputs: names of all that the graph is given, in its order.
        outputs: names of all that it gives, in its order.
        gradients: whether it computes gradients.
        threads: that torch uses in this process; as many as it takes where none are given.

    Raises:
        BundleError: torch can't load the file, or its graph takes something else.
    """

    def __init__(
        self, path: Path, inputs: Sequence[str], outputs: Sequence[str], gradients: bool, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._inputs, self._outputs, self._gradients = inputs, outputs, gradients
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module = torch.jit.load(path, map_location=self._device).eval()
            taken = [argument.name for argument in self._module.forward.schema.arguments[1:]]
        except (RuntimeError, AttributeError, ValueError) as error:
            raise BundleError(f"{path} can't be loaded by torch: {str(error)[:500]}") from error
        if taken != list(inputs):
            raise BundleError(f"{path} takes {', '.join(taken)}, but should take {', '.join(inputs)}.")

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The named outputs for the named inputs."""
        tensors = [torch.from_numpy(feeds[name]).to(self._device) for name in self._inputs]
        # Optimising a graph for the shapes of its first runs would make every new length wait for it.
        mode = torch.enable_grad if self._gradients else torch.inference_mode
        with mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            given = dict(zip(self._outputs, self._module(*tensors), strict=True))
        return [given[name].cpu().numpy() for name in outputs]
