"""What TensorBoard reads of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sparsecbm.scalars import Scalars, flat
from sparsecbm.training import Progress

FIGURES = {"texts": 3, "label": {"accuracy": 0.5}, "concepts": {"food": {"macro_f1": 0.25}}}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard shows them."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events: Any = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(folder: Path, *reports: Progress) -> None:
    pytest.importorskip("tensorboard")
    scalars = Scalars(folder, "dev")
    for report in reports:
        scalars.write(report)
    scalars.close()


def step(number: int, loss: float) -> Progress:
    return Progress(number, 9, 0, loss, 0.75, 0.125)


def test_every_step_has_loss_learning_rate_and_density(tmp_path: Path) -> None:
    write(tmp_path, step(1, 2.0), step(2, 1.5))
    assert read(tmp_path) == {
        "step/loss": [(1, 2.0), (2, 1.5)],
        "step/learning_rate": [(1, 0.125), (2, 0.125)],
        "step/density": [(1, 0.75), (2, 0.75)],
    }


def test_every_epoch_has_its_figures(tmp_path: Path) -> None:
    write(tmp_path, Progress(3, 9, 0, 1.0, 0.75, 0.125, FIGURES))
    assert read(tmp_path) == {"dev/label/accuracy": [(3, 0.5)], "dev/concepts/food/macro_f1": [(3, 0.25)]}


def test_a_run_that_goes_on_replaces_the_interrupted_epochs_steps(tmp_path: Path) -> None:
    write(tmp_path, step(1, 2.0), step(2, 1.5), step(3, 1.0))
    write(tmp_path, step(2, 1.25))
    assert read(tmp_path)["step/loss"] == [(1, 2.0), (2, 1.25)]


def test_counts_are_no_figures() -> None:
    assert dict(flat(FIGURES)) == {"label/accuracy": 0.5, "concepts/food/macro_f1": 0.25}


def test_nothing_reported_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        Scalars(tmp_path, "dev")
    assert caught.value.name == "tensorboard"
