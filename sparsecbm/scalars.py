"""A run's figures as scalars that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sparsecbm.training import Progress


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The fractions among nested figures, each with its path: ``("concepts/food/accuracy", 0.87)``."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, float):
            yield f"{prefix}{key}", value


class Scalars:
    """Writes what a run reports: loss, learning rate and density per step, the validation figures per epoch.

    A run that goes on writes into the same folder; what an interrupted epoch had written there is hidden.

    Args:
        folder: for TensorBoard's event files.
        split: what the figures are of.

    Raises:
        ModuleNotFoundError: the package ``tensorboard`` isn't installed.
    """

    def __init__(self, folder: Path, split: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make = partial(SummaryWriter, str(folder))
        self._writer: SummaryWriter | None = None
        self._split = split

    def write(self, progress: Progress) -> None:
        """Writes one report."""
        if self._writer is None:
            self._writer = self._make(purge_step=progress.step)
        values = {
            "step/loss": progress.loss,
            "step/learning_rate": progress.learning_rate,
            "step/density": progress.density,
        }
        if progress.figures is not None:
            values = dict(flat(progress.figures, f"{self._split}/"))
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, progress.step)

    def close(self) -> None:
        """Writes what is still buffered."""
        if self._writer is not None:
            self._writer.close()
