"""Unfinished runs: what they leave, that they go on as if unbroken, and whose state is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsecbm import state as states
from sparsecbm.data import Dataset
from sparsecbm.errors import TrainingError
from sparsecbm.model import SparseCBM
from sparsecbm.recipe import Recipe
from sparsecbm.training import Progress, Trained, train

MakeModel = Callable[..., SparseCBM]
SHORT = Recipe(
    trunk=1,
    epochs=4,
    batch_size=16,
    learning_rate=1e-3,
    head_learning_rate=1e-2,
    density=0.5,
    prune_start=0.5,
    prune_end=2.5,
    prune_cuts=1,  # so that measures of importance live on from epoch to epoch
    precision="fp32",
)


def varied(**changes: Any) -> Recipe:
    return Recipe(**SHORT.model_dump() | changes)


def run(model: SparseCBM, texts: Any, recipe: Recipe = SHORT, **more: Any) -> Trained:
    return train(model, texts.data, texts.ids, texts.data, texts.ids, recipe, **more)


class KilledError(Exception):
    pass


def kill_after(steps: int) -> Callable[[Progress], None]:
    """Ends a run once it has taken so many steps."""

    def report(progress: Progress) -> None:
        if progress.figures is None and progress.step == steps:
            raise KilledError

    return report


@pytest.fixture
def begun(make_model: MakeModel, texts: Any, tmp_path: Path) -> Path:
    """The state of a run that was killed in its second epoch."""
    folder = tmp_path / "out.partial"
    with pytest.raises(KilledError):
        run(make_model(), texts, partial=folder, report=kill_after(5))
    return folder


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 2),
        ({}, 5),
        ({}, 8),
        ({}, 11),
        ({"trunk_density": 0.5}, 5),
        ({"average": 0.0, "class_weights": "balanced", "accumulate": 3}, 8),
        ({"mode": "sequential"}, 11),
        ({"mode": "independent"}, 8),
    ],
)
def test_a_run_that_was_killed_ends_like_an_unbroken_one(
    make_model: MakeModel, texts: Any, tmp_path: Path, changes: dict[str, Any], steps: int
) -> None:
    recipe, folder = varied(**changes), tmp_path / "out.partial"
    unbroken, broken = make_model(), make_model()
    expected = run(unbroken, texts, recipe)
    with pytest.raises(KilledError):
        run(make_model(), texts, recipe, partial=folder, report=kill_after(steps))
    torch.manual_seed(99)
    reports: list[Progress] = []
    found = run(broken, texts, recipe, partial=folder, report=reports.append)
    assert reports[0].step == steps // 3 * 3 + 1
    assert (found.figures, found.history) == (expected.figures, expected.history)
    for name, weight in unbroken.state_dict().items():
        assert torch.equal(weight, broken.state_dict()[name]), name
    for name, mask in unbroken.mask_tensors().items():
        assert torch.equal(mask, broken.mask_tensors()[name]), name


def test_masks_over_weights_go_on_too(make_model: MakeModel, texts: Any, tmp_path: Path) -> None:
    def model() -> SparseCBM:
        dense = make_model()
        single = SparseCBM(dense.backbone, dense.concepts, dense.labels, 1, 5, granularity="weights")
        single.load_state_dict(dense.state_dict())
        return single

    recipe, folder, unbroken, broken = varied(granularity="weights"), tmp_path / "partial", model(), model()
    run(unbroken, texts, recipe)
    with pytest.raises(KilledError):
        run(model(), texts, recipe, partial=folder, report=kill_after(5))
    run(broken, texts, recipe, partial=folder)
    for name, mask in unbroken.mask_tensors().items():
        assert torch.equal(mask, broken.mask_tensors()[name]), name


def test_a_run_whose_last_epoch_is_done_only_gives_its_result(
    make_model: MakeModel, texts: Any, tmp_path: Path
) -> None:
    first, second, folder = make_model(), make_model(), tmp_path / "partial"
    expected = run(first, texts, partial=folder)
    reports: list[Progress] = []
    assert run(second, texts, partial=folder, report=reports.append).figures == expected.figures
    assert reports == []
    assert torch.equal(first.head_weight, second.head_weight)


def test_a_run_that_ran_out_of_patience_does_not_go_on(make_model: MakeModel, texts: Any, tmp_path: Path) -> None:
    recipe, folder = (
        varied(density=1, patience=1, epochs=30, learning_rate=1e-9, head_learning_rate=1e-9),
        tmp_path / "p",
    )
    expected = run(make_model(), texts, recipe, partial=folder)
    assert len(expected.history) < 30
    assert run(make_model(), texts, recipe, partial=folder).history == expected.history


def test_the_state_holds_no_pickle(begun: Path) -> None:
    assert sorted(path.name for path in begun.iterdir()) == [states.STATE, states.TENSORS]


def test_the_time_taken_before_counts(make_model: MakeModel, texts: Any, begun: Path) -> None:
    path = begun / states.STATE
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"seconds": 1000.0}))
    assert run(make_model(), texts, partial=begun).seconds > 1000


def test_another_precision_may_go_on(make_model: MakeModel, texts: Any, begun: Path) -> None:
    assert len(run(make_model(), texts, varied(precision="bf16"), partial=begun).history) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 0.001 and is 0.5."),
        ({"seed": 3, "patience": 2}, "patience was 0 and is 2; seed was 0 and is 3."),
    ],
)
def test_another_recipe_is_refused_by_name(
    make_model: MakeModel, texts: Any, begun: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        run(make_model(), texts, varied(**changes), partial=begun)
    assert caught.value.message.startswith(f"{begun} holds a run that differs from this one: {message} Go on with")


def with_other(data: Dataset, what: str) -> Dataset:
    if what == "texts":
        return replace(data, texts=(*data.texts[:-1], "another"))
    values: np.ndarray = getattr(data, what).copy()
    values[0] = values[0][..., ::-1] if values.ndim > 1 else (values[0] + 1) % 3
    changed: dict[str, Any] = {what: values}
    return replace(data, **changed)


@pytest.mark.parametrize("what", ["texts", "labels", "label_votes"])
@pytest.mark.parametrize("split", ["training", "validation"])
def test_other_data_is_refused_by_name(make_model: MakeModel, texts: Any, begun: Path, split: str, what: str) -> None:
    texts.data.label_votes[0] = [0.5, 0.3, 0.2]
    data = {"training": texts.data, "validation": texts.data, split: with_other(texts.data, what)}
    facts = states.read_facts(begun)
    origin = facts.origin.model_copy(update={name: states.fingerprint(one) for name, one in data.items()})
    same = facts.origin.model_copy(update={name: states.fingerprint(texts.data) for name in data})
    assert states.differences(same, origin) == [f"the {split} split has other texts or labels"]


def test_another_tokenizer_is_refused(make_model: MakeModel, texts: Any, begun: Path) -> None:
    texts.ids[0] = texts.ids[0][:-1]
    with pytest.raises(TrainingError, match="the tokenizer makes other tokens of the texts"):
        run(make_model(), texts, partial=begun)


def test_where_texts_end_counts() -> None:
    left, right = [np.array([1, 2]), np.array([3])], [np.array([1]), np.array([2, 3])]
    assert states.token_fingerprint(left) != states.token_fingerprint(right)
    assert states.token_fingerprint(left, right) != states.token_fingerprint(left + right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_version": 2}, "has state version 2; this program goes on from version 1"),
        ({"epochs": -1}, r"can't be read as a run's state \(Input should be greater"),
        (None, r"can't be read as a run's state \(Expecting value"),
    ],
)
def test_a_state_of_another_kind_is_refused(
    make_model: MakeModel, texts: Any, begun: Path, change: dict[str, Any] | None, message: str
) -> None:
    path = begun / states.STATE
    path.write_text("" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TrainingError, match=message):
        run(make_model(), texts, partial=begun)


def test_damaged_tensors_are_refused(make_model: MakeModel, texts: Any, begun: Path) -> None:
    path = begun / states.TENSORS
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TrainingError, match=r"state\.safetensors can't be read .*; begin anew with --restart\.$"):
        run(make_model(), texts, partial=begun)


def test_tensors_that_do_not_fit_are_refused(make_model: MakeModel, texts: Any, begun: Path) -> None:
    facts = states.read_facts(begun)
    states.write(states.State(facts, {"model.head_bias": torch.zeros(1)}), begun)
    with pytest.raises(TrainingError, match=r"^The run's state doesn't fit"):
        run(make_model(), texts, partial=begun)


def test_a_folder_of_something_else_is_left_alone(make_model: MakeModel, texts: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(TrainingError, match="holds something else"):
        run(make_model(), texts, partial=tmp_path)
    states.remove(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_what_a_killed_write_left_is_cleared_away(begun: Path) -> None:
    left, others = begun.with_name(f".{begun.name}.abcd_123"), begun.with_name(".other.partial.abcd_123")
    for folder in (left, others):
        (folder / "new").mkdir(parents=True)
    states.remove(begun)
    assert not begun.exists() and not left.exists()
    assert others.exists()


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(
    make_model: MakeModel, texts: Any, tmp_path: Path
) -> None:
    folder, model = tmp_path / "out.partial", make_model()

    def spoil(progress: Progress) -> None:
        if progress.step == 5:
            with torch.no_grad():
                model.head_bias.fill_(torch.nan)

    with pytest.raises(TrainingError) as caught:
        run(model, texts, partial=folder, report=spoil)
    assert caught.value.message == (
        "the loss is nan at step 6, in epoch 2; go on with --precision fp32 if it was another, or begin anew with a "
        f"lower learning rate (now 0.001). The state after epoch 1 of 4 is kept in {folder}; the same command with "
        "--resume goes on from there."
    )
    assert len(run(make_model(), texts, partial=folder).history) == 4


def test_weights_that_are_not_finite_are_never_kept(make_model: MakeModel, texts: Any, tmp_path: Path) -> None:
    folder, model = tmp_path / "out.partial", make_model()

    def spoil(progress: Progress) -> None:
        if progress.step == 6:
            with torch.no_grad():
                model.head_bias.fill_(torch.inf)

    with pytest.raises(TrainingError, match=r"^a weight is not finite at step 7, in epoch 2;"):
        run(model, texts, partial=folder, report=spoil)
    assert states.read_facts(folder).epochs == 1


@pytest.mark.parametrize(
    ("out", "partial"), [("mine", "mine.partial"), ("runs/mine/", "runs/mine.partial"), ("a.b", "a.b.partial")]
)
def test_the_state_lies_beside_the_checkpoint(out: str, partial: str) -> None:
    assert states.partial_folder(Path(out)) == Path(partial)


def test_the_state_of_the_present_folder_lies_beside_it() -> None:
    here = Path.cwd()
    assert states.partial_folder(Path()) == here.with_name(f"{here.name}.partial")
