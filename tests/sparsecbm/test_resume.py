"""``sparsecbm train`` interrupted, resumed and begun anew, run as a user runs it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsecbm import checkpoint as checkpoints
from sparsecbm import state as states
from sparsecbm.training import Run
from tests.program import Ran, sparsecbm

# Sends itself SIGKILL before its 20th step, in the third of three epochs of eight steps.
KILLED = """
import os, signal
from sparsecbm.cli import main
from sparsecbm.training import Run

take_step = Run.take_step

def killed(self, chosen):
    if self.step == 19:
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(self, chosen)

Run.take_step = killed
main()
"""


Train = Callable[..., Ran]


@pytest.fixture(scope="module")
def arguments(reviews: Path, backbone: Path) -> Callable[..., list[str]]:
    """What trains for three epochs of eight steps, pruned until the second one's middle."""

    def arguments(out: Path, *options: str) -> list[str]:
        return [
            *("train", "--data", str(reviews), "--out", str(out), "--train-split", "train"),
            *("--backbone", str(backbone), "--trunk", "1", "--width", "4", "--epochs", "3", "--density", "0.5"),
            *("--prune-start", "0.5", "--prune-end", "1.5", "--precision", "fp32", "--threads", "1", *options),
        ]

    return arguments


@pytest.fixture(scope="module")
def train(arguments: Callable[..., list[str]]) -> Train:
    return lambda out, *options: sparsecbm(*arguments(out, *options))


@contextmanager
def interrupted_before(step: int) -> Iterator[None]:
    """Has Ctrl-C pressed before a step."""
    take_step = Run.take_step

    def interrupted(self: Run, chosen: np.ndarray) -> float:
        if self.step == step - 1:
            signal.raise_signal(signal.SIGINT)
        return take_step(self, chosen)

    # A shell that starts the tests in the background has them ignore Ctrl-C, which is not what is tested here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "take_step", interrupted)
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def unbroken(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    ran = train(out)
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="module")
def stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with interrupted_before(12):
        assert train(folder / "out").code == 130
    return folder


@pytest.fixture
def begun(stopped: Path, tmp_path: Path) -> Path:
    """Where an interrupted run was to write its checkpoint, for one test."""
    shutil.copytree(stopped, tmp_path / "begun")
    return tmp_path / "begun" / "out"


def weights(out: Path) -> bytes:
    return (out / checkpoints.WEIGHTS).read_bytes()


def training(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / checkpoints.CONFIG).read_text())["training"]
    return {name: value for name, value in found.items() if name != "seconds"}


def test_a_process_killed_in_an_epoch_ends_with_the_unbroken_runs_bytes(
    arguments: Callable[..., list[str]], train: Train, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments(out)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    assert states.read_facts(states.partial_folder(out)).epochs == 2
    ran = train(out, "--resume")
    assert ran.code == 0, ran.err
    assert weights(out) == weights(unbroken)
    assert training(out) == training(unbroken)


def test_nothing_but_the_checkpoint_is_left_in_the_end(unbroken: Path) -> None:
    assert [path.name for path in unbroken.parent.iterdir()] == [unbroken.name]


def test_the_checkpoint_has_the_history(unbroken: Path) -> None:
    history = training(unbroken)["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(0 <= row["concepts"]["food"]["accuracy"] <= 1 for row in history)


def test_an_interrupted_run_says_how_to_go_on(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with interrupted_before(12):
        ran = train(out)
    assert ran.code == 130
    assert (
        f"Interrupted. The state after epoch 1 of 3 is kept in {out}.partial; the same command with --resume goes on "
        "from there.\n" in ran.err
    )
    assert "Traceback" not in ran.err
    resumed = train(out, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"The run in {out}.partial goes on\n" in resumed.err
    assert "epoch 1: dev" not in resumed.err and "epoch 2: dev" in resumed.err


def test_a_run_interrupted_in_its_first_epoch_says_that_nothing_is_kept(train: Train, tmp_path: Path) -> None:
    with interrupted_before(3):
        ran = train(tmp_path / "out")
    assert "Interrupted. No epoch was finished, so nothing is kept.\n" in ran.err
    assert not any(tmp_path.iterdir())


def test_an_unfinished_run_is_not_overwritten_unasked(train: Train, begun: Path) -> None:
    before = (states.partial_folder(begun) / states.TENSORS).read_bytes()
    ran = train(begun)
    assert ran.code == 2
    assert ran.err == (
        f"error: {begun}.partial holds an unfinished run, at epoch 1 of 3; go on with --resume, or begin anew with "
        "--restart, which deletes it.\n"
    )
    assert (states.partial_folder(begun) / states.TENSORS).read_bytes() == before


def test_restart_begins_anew(train: Train, begun: Path, unbroken: Path) -> None:
    ran = train(begun, "--restart")
    assert ran.code == 0, ran.err
    assert "epoch 1: dev" in ran.err
    assert weights(begun) == weights(unbroken)
    assert not states.partial_folder(begun).exists()


def test_a_mistake_beside_restart_deletes_nothing(train: Train, begun: Path) -> None:
    assert train(begun, "--restart", "--trunk", "9").code == 2
    assert states.begun(states.partial_folder(begun))


def test_resuming_with_another_setting_names_it(train: Train, begun: Path) -> None:
    ran = train(begun, "--resume", "--learning-rate", "0.5")
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == (
        f"error: {begun}.partial holds a run that differs from this one: learning_rate was 0.0002 and is 0.5. Go on "
        "with what it was begun with, or begin anew with --restart."
    )


def test_resuming_nothing_begins(train: Train, tmp_path: Path, unbroken: Path) -> None:
    ran = train(tmp_path / "out", "--resume")
    assert ran.code == 0, ran.err
    assert f"There is no unfinished run in {tmp_path / 'out'}.partial; one begins" in ran.err
    assert weights(tmp_path / "out") == weights(unbroken)


def test_resuming_a_finished_run_is_refused(train: Train, unbroken: Path) -> None:
    ran = train(unbroken, "--resume")
    assert ran.code == 2
    assert "its checkpoint is finished; to train it anew, leave --resume out." in ran.err


def test_resume_and_restart_exclude_each_other(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "out", "--resume", "--restart").err == "error: Say --resume or --restart, not both.\n"


def test_a_run_logs_for_tensorboard(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    ran = train(tmp_path / "out", "--log-dir", str(tmp_path / "log"))
    assert ran.code == 0, ran.err
    assert [path.name.split(".")[0] for path in (tmp_path / "log").iterdir()] == ["events"]


def test_cuda_without_a_gpu_is_one_sentence(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ran = train(tmp_path / "out", "--device", "cuda")
    assert ran.code == 2
    assert ran.err.startswith("error: There is no GPU that torch can use here")


@pytest.fixture
def one_value(reviews: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """The reviews with another value in place of one of noise's, in the training split."""

    def one_value(old: str, new: str) -> Path:
        shutil.copytree(reviews.parent, tmp_path / "data")
        path = tmp_path / "data" / "train.csv"
        rows = [line.rsplit(",", 1) for line in path.read_text().splitlines()]
        lines = [f"{left},{new if noise in old.split() or not noise else noise}" for left, noise in rows]
        path.write_text("\n".join(lines) + "\n")
        return tmp_path / "data" / reviews.name

    return one_value


def test_a_concept_with_one_value_is_refused(
    train: Train, one_value: Callable[[str, str], Path], tmp_path: Path
) -> None:
    ran = train(tmp_path / "out", "--data", str(one_value("Negative Positive", "Positive")))
    assert ran.code == 2
    assert "Nothing can be learned in split 'train' where concept noise is always 'Positive'" in ran.err


def test_a_value_that_never_occurs_is_warned_of(
    train: Train, one_value: Callable[[str, str], Path], tmp_path: Path
) -> None:
    ran = train(tmp_path / "out", "--data", str(one_value("", "Positive")))
    assert ran.code == 0, ran.err
    assert "Warning: In split 'train', concept noise is never 'unknown'. It can't be learned.\n" in ran.err
