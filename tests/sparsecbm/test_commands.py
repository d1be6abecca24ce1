"""``sparsecbm train`` and ``sparsecbm evaluate``, run as a user runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sparsecbm import checkpoint as checkpoints
from tests.program import Ran, sparsecbm

Train = Callable[..., Ran]


@pytest.fixture(scope="module")
def train(reviews: Path, backbone: Path) -> Train:
    """Trains for two epochs, with further options."""

    def train(out: Path, *options: str) -> Ran:
        return sparsecbm(
            *("train", "--data", str(reviews), "--out", str(out), "--train-split", "train"),
            *("--backbone", str(backbone), "--trunk", "1", "--width", "4", "--epochs", "2", "--density", "0.5"),
            *("--prune-start", "0", "--prune-end", "1", "--precision", "fp32", *options),
        )

    return train


class Trained(NamedTuple):
    folder: Path
    ran: Ran


@pytest.fixture(scope="module")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    return Trained(folder, train(folder, "--json"))


def test_train_writes_a_checkpoint_of_what_was_asked_for(trained: Trained) -> None:
    assert trained.ran.code == 0, trained.ran.err
    loaded = checkpoints.load(trained.folder)
    assert (loaded.config.name, loaded.config.trunk, loaded.config.width) == ("tiny-reviews", 1, 4)
    assert loaded.config.training["epochs"] == 2
    assert loaded.model.masks.density() == 0.5


def test_train_reads_no_longer_texts_than_the_backbone(trained: Trained) -> None:
    assert checkpoints.load(trained.folder).config.max_tokens == 64


def test_train_prints_its_figures_as_json(trained: Trained) -> None:
    printed = json.loads(trained.ran.out)
    assert printed["checkpoint"] == str(trained.folder)
    assert printed["dev"] == checkpoints.load(trained.folder).config.evaluation["dev"]


def test_train_reports_every_epoch_on_stderr(trained: Trained) -> None:
    assert "240 texts to learn from, 80 to choose by; concepts food, service, noise" in trained.ran.err
    assert "epoch 1: dev concept" in trained.ran.err and "epoch 2: dev concept" in trained.ran.err


def test_train_without_json_says_what_comes_next(train: Train, tmp_path: Path) -> None:
    ran = train(tmp_path / "out", "--name", "mine", "--max-tokens", "8")
    assert (ran.code, ran.out) == (0, "")
    assert f"Next: sparsecbm export {tmp_path / 'out'} BUNDLE" in ran.err
    assert "texts are longer than 8 tokens and are truncated" in ran.err
    assert checkpoints.load(tmp_path / "out").config.name == "mine"


def test_train_learns_from_corrections(train: Train, tmp_path: Path) -> None:
    corrections = tmp_path / "corrections.csv"
    corrections.write_text("text,label,food,service\nthe soup was odd .,,Negative,\nthe staff was odd .,,,Positive\n")
    ran = train(tmp_path / "out", "--corrections", str(corrections))
    assert ran.code == 0, ran.err
    assert "242 texts to learn from" in ran.err
    assert f"2 of the texts to learn from are corrections from {corrections}" in ran.err
    assert checkpoints.load(tmp_path / "out").config.training["corrections"] == 2


def test_train_leaves_a_folder_alone_that_is_no_checkpoint(train: Train, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    ran = train(tmp_path)
    assert ran.code == 2
    assert ran.err == f"error: {tmp_path} exists and is not a checkpoint; name another folder with --out.\n"
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", "0"], "--density: Input should be greater than 0."),
        (["--prune-end", "2"], "at least one epoch must follow pruning"),
        (["--precision", "fp8"], "--precision: Input should be 'auto', 'fp32' or 'bf16'."),
        (["--learning-rate", "-1"], "--learning-rate: Input should be greater than 0."),
        (["--epochs", "0"], "--epochs: Input should be greater than or equal to 1."),
        (["--seed", "-1"], "--seed: Input should be greater than or equal to 0."),
        (["--recipe", "nowhere.yaml"], "There is no recipe at nowhere.yaml."),
        (["--trunk", "3"], "trunk must be from 0 to 2 for this backbone, got 3."),
        (["--train-split", "trian"], "names no file for split 'trian'; it has ['dev', 'train']."),
        (["--data", "nowhere.yaml"], "There is no data description at nowhere.yaml."),
    ],
)
def test_train_answers_a_mistake_with_one_sentence(
    train: Train, tmp_path: Path, options: list[str], message: str
) -> None:
    ran = train(tmp_path / "out", *options)
    assert (ran.code, ran.out) == (2, "")
    error = ran.err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()


def test_train_without_the_backbone_says_so(train: Train, tmp_path: Path) -> None:
    ran = train(tmp_path / "out", "--backbone", str(tmp_path / "nowhere"))
    assert ran.code == 2
    assert ran.err.startswith(f"error: There is no backbone '{tmp_path / 'nowhere'}'")


def test_evaluate_prints_the_checkpoints_own_figures_as_json(trained: Trained, reviews: Path) -> None:
    ran = sparsecbm("evaluate", str(trained.folder), "--data", str(reviews), "--json")
    assert ran.code == 0, ran.err
    wanted = checkpoints.load(trained.folder).config.evaluation["dev"]
    assert json.loads(ran.out) == {"dev": json.loads(json.dumps(wanted))}


def test_evaluate_prints_a_table(trained: Trained, reviews: Path) -> None:
    ran = sparsecbm("evaluate", str(trained.folder), "--data", str(reviews), "--split", "train")
    assert ran.code == 0, ran.err
    assert "tiny-reviews on train (240 texts)" in ran.out
    for row in ("label", "label, mistakes corrected", "concepts (mean)", "food", "service", "noise"):
        assert row in ran.out


def test_evaluate_without_a_checkpoint_says_how_to_make_one(tmp_path: Path, reviews: Path) -> None:
    ran = sparsecbm("evaluate", str(tmp_path), "--data", str(reviews))
    assert ran.code == 2
    assert (
        ran.err == f"error: {tmp_path} is not a checkpoint: it has no config.json. Make one with 'sparsecbm train'.\n"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  food:", "  meal:"),
        ('"1", "2", "3"', '"1", "2", "3", "4"'),
        ("[Negative, Positive, unknown]", "[Positive, Negative, unknown]"),
    ],
)
def test_evaluate_on_data_of_another_schema_is_refused(
    trained: Trained, reviews: Path, tmp_path: Path, old: str, new: str
) -> None:
    shutil.copytree(reviews.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / reviews.name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    ran = sparsecbm("evaluate", str(trained.folder), "--data", str(path))
    assert ran.code == 2
    assert "has other concepts or labels than" in ran.err


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_explains_every_option(command: str) -> None:
    ran = sparsecbm(command, "--help")
    assert ran.code == 0
    assert "--data" in ran.out and "--json" in ran.out


def test_training_twice_with_a_seed_gives_the_same_weights(train: Train, trained: Trained, tmp_path: Path) -> None:
    assert train(tmp_path / "again").code == 0
    files: list[Any] = [(folder / checkpoints.WEIGHTS).read_bytes() for folder in (tmp_path / "again", trained.folder)]
    assert files[0] == files[1]
