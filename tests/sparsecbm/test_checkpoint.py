"""Checkpoints: the round trip, every damage, and a crash while writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsecbm import checkpoint as checkpoints
from sparsecbm.checkpoint import CONFIG, WEIGHTS, Checkpoint, CheckpointConfig
from sparsecbm.errors import CheckpointError
from sparsecbm.evaluation import run
from sparsecbm.model import SparseCBM
from sparsecbm.tokens import TOKENIZER


def of(model: SparseCBM, name: str = "tiny") -> Checkpoint:
    config = CheckpointConfig(
        name=name,
        backbone=model.backbone.config,
        concepts=model.concepts,
        labels=model.labels,
        trunk=model.trunk,
        width=model.width,
        bottleneck=model.bottleneck,
        max_tokens=20,
        training={"epochs": 3},
        evaluation={"dev": {"label": {"accuracy": 0.5}}},
    )
    return Checkpoint(config, model, '{"not": "looked at"}')


@pytest.fixture
def saved(pruned: SparseCBM, tmp_path: Path) -> Path:
    checkpoints.save(of(pruned), tmp_path / "saved")
    return tmp_path / "saved"


def test_a_checkpoint_holds_json_and_safetensors_only(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG, WEIGHTS, TOKENIZER]


def test_weights_come_back(saved: Path, pruned: SparseCBM) -> None:
    state = checkpoints.load(saved).model.state_dict()
    assert state.keys() == pruned.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in pruned.state_dict().items())


def test_masks_come_back(saved: Path, pruned: SparseCBM) -> None:
    masks = checkpoints.load(saved).model.masks
    assert masks.heads.dtype == masks.neurons.dtype == torch.bool
    assert torch.equal(masks.heads, pruned.masks.heads) and torch.equal(masks.neurons, pruned.masks.neurons)


def test_masks_over_weights_and_over_the_trunk_come_back(weight_pruned: SparseCBM, texts: Any, tmp_path: Path) -> None:
    weight_pruned.trunk_masks.neurons[0, 0, 3:] = False
    checkpoints.save(of(weight_pruned), tmp_path / "weights")
    loaded = checkpoints.load(tmp_path / "weights").model
    assert (loaded.granularity, loaded.density()) == ("weights", weight_pruned.density())
    assert torch.equal(loaded.trunk_masks.flat(), weight_pruned.trunk_masks.flat())
    wanted, found = run(weight_pruned, texts.ids), run(loaded, texts.ids)
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.vectors, wanted.vectors)


def test_a_plain_bottleneck_comes_back(make_model: Callable[..., SparseCBM], texts: Any, tmp_path: Path) -> None:
    model = make_model(bottleneck="logits")
    checkpoints.save(of(model), tmp_path / "plain")
    loaded = checkpoints.load(tmp_path / "plain").model
    assert loaded.bottleneck == "logits"
    wanted, found = run(model, texts.ids), run(loaded, texts.ids)
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.vectors, wanted.vectors)


def test_masks_over_weights_take_a_bit_each(weight_pruned: SparseCBM, tmp_path: Path) -> None:
    checkpoints.save(of(weight_pruned), tmp_path / "weights")
    stored = load_file(tmp_path / "weights" / WEIGHTS)["masks.weights.up"]
    assert (stored.dtype, tuple(stored.shape)) == (torch.uint8, (2, 2, 12 * 16 // 8))


def test_a_dense_trunk_and_masks_over_units_are_stored_as_ever(saved: Path) -> None:
    names = {name for name in load_file(saved / WEIGHTS) if name.startswith("masks.")}
    assert names == {"masks.heads", "masks.neurons"}


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_masks_over_weights_that_are_damaged_are_named(
    weight_pruned: SparseCBM, saved: Path, refused: Callable[[str], None], damage: str
) -> None:
    checkpoints.save(of(weight_pruned), saved)
    tensors = load_file(saved / WEIGHTS)
    mask = tensors.pop("masks.weights.up")
    if damage == "short":
        tensors["masks.weights.up"] = mask[..., :-1].contiguous()
    save_file(tensors, saved / WEIGHTS)
    refused(r"model.safetensors: masks of weights.up have shape \[.*\], but config.json asks for \[2, 2, 24\]")


def test_configuration_and_tokenizer_come_back(saved: Path, pruned: SparseCBM) -> None:
    loaded, original = checkpoints.load(saved), of(pruned)
    assert (loaded.config, loaded.tokenizer) == (original.config, original.tokenizer)


def test_a_loaded_model_answers_the_same(saved: Path, pruned: SparseCBM, texts: Any) -> None:
    wanted = run(pruned, texts.ids)
    found = run(checkpoints.load(saved).model, texts.ids)
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.vectors, wanted.vectors)


def test_a_loaded_model_is_in_evaluation_mode(saved: Path) -> None:
    assert not checkpoints.load(saved).model.training


def test_saving_again_replaces_the_checkpoint(saved: Path, make_model: Callable[..., SparseCBM]) -> None:
    other = make_model(seed=1)
    checkpoints.save(of(other, "other"), saved)
    loaded = checkpoints.load(str(saved))
    assert loaded.config.name == "other"
    assert torch.equal(loaded.model.head_weight, other.head_weight)


@pytest.mark.parametrize("when", ["before the weights", "after the weights"])
def test_a_crash_while_writing_leaves_the_old_checkpoint_whole(
    saved: Path, make_model: Callable[..., SparseCBM], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def crash(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if when == "after the weights":
            save_file(tensors, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", crash)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(of(make_model(seed=1)), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.fixture
def refused(saved: Path) -> Callable[[str], None]:
    """Checks that the damaged checkpoint is refused, for a reason that matches."""

    def check(reason: str) -> None:
        with pytest.raises(CheckpointError, match=reason):
            checkpoints.load(saved)

    return check


Refused = Callable[[str], None]


def edit(saved: Path, **changes: Any) -> None:
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(config | changes))


def test_a_folder_that_is_no_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: it has no config.json. Make one with 'sparsecbm"):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER])
def test_a_missing_file_is_named(saved: Path, refused: Refused, name: str) -> None:
    (saved / name).unlink()
    refused(rf"saved can't be read as a checkpoint: .*{name}")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_configuration_that_is_not_json(saved: Path, refused: Refused, content: bytes) -> None:
    (saved / CONFIG).write_bytes(content)
    refused(r"config.json is not JSON: ")


@pytest.mark.parametrize("content", ["[]", "{}", '{"checkpoint_version": 2}', '{"checkpoint_version": "1"}'])
def test_another_version(saved: Path, refused: Refused, content: str) -> None:
    (saved / CONFIG).write_text(content)
    refused(r"config.json has checkpoint version .*; this program reads version 1\. Train again, or use the program")


def test_an_unknown_field_is_named(saved: Path, refused: Refused) -> None:
    edit(saved, extra=1)
    refused("config.json is not a checkpoint's configuration, at extra: ")


@pytest.mark.parametrize("changes", [{"width": "wide"}, {"width": 0}, {"concepts": []}, {"labels": []}])
def test_a_field_that_makes_no_sense_is_named(saved: Path, refused: Refused, changes: dict[str, Any]) -> None:
    edit(saved, **changes)
    refused(f"config.json is not a checkpoint's configuration, at {next(iter(changes))}: ")


@pytest.mark.parametrize("trunk", [-1, 3])
def test_a_trunk_that_the_backbone_does_not_have(saved: Path, refused: Refused, trunk: int) -> None:
    edit(saved, trunk=trunk)
    refused("config.json")


@pytest.mark.parametrize("sizes", [{"heads": 0}, {"layers": -1}, {"hidden": -16}, {"activation": "gelu_new"}])
def test_a_backbone_that_cannot_be(saved: Path, refused: Refused, sizes: dict[str, Any]) -> None:
    edit(saved, backbone=json.loads((saved / CONFIG).read_text())["backbone"] | sizes)
    refused("config.json")


@pytest.mark.parametrize("kept", [0, 5, 1000])
def test_weights_that_are_cut_off(saved: Path, refused: Refused, kept: int) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:kept])
    refused("saved can't be read as a checkpoint: ")


def test_weights_of_another_shape_are_named(saved: Path, refused: Refused) -> None:
    tensors = load_file(saved / WEIGHTS)
    save_file(tensors | {"head_bias": torch.zeros(4)}, saved / WEIGHTS)
    refused("model.safetensors doesn't fit config.json: 1 tensor.*first 'head_bias'")


def test_a_weight_that_is_missing_is_named(saved: Path, refused: Refused) -> None:
    tensors = load_file(saved / WEIGHTS)
    del tensors["head_bias"]
    save_file(tensors, saved / WEIGHTS)
    refused("model.safetensors doesn't fit config.json: 1 tensor.*first 'head_bias'")


def test_a_weight_too_many_is_named(saved: Path, refused: Refused) -> None:
    save_file(load_file(saved / WEIGHTS) | {"more": torch.zeros(1)}, saved / WEIGHTS)
    refused("model.safetensors doesn't fit config.json: 1 tensor.*first 'more'")


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_masks_of_another_shape_are_named(saved: Path, refused: Refused, kind: str) -> None:
    tensors = load_file(saved / WEIGHTS)
    save_file(tensors | {f"masks.{kind}": tensors[f"masks.{kind}"][:, :1].contiguous()}, saved / WEIGHTS)
    refused(rf"model.safetensors: masks of {kind} have shape \[2, 1, \d+\], but config.json asks for \[2, 2, \d+\]")


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_masks_that_are_missing_are_named(saved: Path, refused: Refused, kind: str) -> None:
    tensors = load_file(saved / WEIGHTS)
    del tensors[f"masks.{kind}"]
    save_file(tensors, saved / WEIGHTS)
    refused(f"model.safetensors: masks of {kind} have shape")


def test_configuration_of_another_backbone_does_not_fit_the_weights(saved: Path, refused: Refused) -> None:
    edit(saved, backbone=json.loads((saved / CONFIG).read_text())["backbone"] | {"vocabulary": 31})
    refused("model.safetensors doesn't fit config.json: 1 tensor.*first 'backbone.embeddings.token'")
