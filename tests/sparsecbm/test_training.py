"""Training: what it learns, that it repeats, which weights it keeps, and how it fails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsecbm import training
from sparsecbm.errors import TrainingError
from sparsecbm.evaluation import evaluate
from sparsecbm.model import SparseCBM
from sparsecbm.recipe import Recipe
from sparsecbm.training import Progress, train

MakeModel = Callable[..., SparseCBM]
SHORT = Recipe(
    epochs=3,
    batch_size=16,
    learning_rate=1e-3,
    head_learning_rate=1e-2,
    density=0.5,
    prune_start=0,
    prune_end=1,
    precision="fp32",
)


def varied(**changes: Any) -> Recipe:
    """The short recipe with other settings."""
    return Recipe(**SHORT.model_dump() | changes)


def run(model: SparseCBM, texts: Any, recipe: Recipe = SHORT, **more: Any) -> dict[str, Any]:
    return train(model, texts.data, texts.ids, texts.data, texts.ids, recipe, **more)


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Names of the weights that differ."""
    return [name for name in left if not torch.equal(left[name], right[name])]


def test_it_learns_what_the_tokens_say(make_model: MakeModel, texts: Any) -> None:
    recipe = varied(epochs=40, learning_rate=1e-2, average=0.9, prune_start=16, prune_end=24)
    figures = run(make_model(), texts, recipe)
    assert figures["concept"]["accuracy"] > 0.95
    assert figures["label"]["accuracy"] > 0.9


def test_the_figures_are_those_of_the_model_that_it_leaves(model: SparseCBM, texts: Any) -> None:
    figures = run(model, texts)
    assert evaluate(model, texts.data, texts.ids) == figures


def test_the_same_seed_gives_the_same_model(make_model: MakeModel, texts: Any) -> None:
    first, second = make_model(), make_model()
    run(first, texts)
    torch.manual_seed(99)
    run(second, texts)
    assert differences(first.state_dict(), second.state_dict()) == []
    assert torch.equal(first.masks.flat(), second.masks.flat())


def test_another_seed_gives_another_model(make_model: MakeModel, texts: Any) -> None:
    first, second = make_model(), make_model()
    run(first, texts)
    run(second, texts, varied(seed=1))
    assert differences(first.state_dict(), second.state_dict())


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0.5, 1.5), (1, 1), (0, 0), (1, 2)])
def test_the_final_density_is_reached(model: SparseCBM, texts: Any, start: float, end: float) -> None:
    run(model, texts, varied(prune_start=start, prune_end=end))
    assert model.masks.density() == 0.5


def test_a_density_of_one_prunes_nothing(model: SparseCBM, texts: Any) -> None:
    run(model, texts, varied(density=1))
    assert model.masks.density() == 1


def test_it_ends_in_evaluation_mode(model: SparseCBM, texts: Any) -> None:
    run(model, texts)
    assert not model.training


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], list[dict[str, Any]]]:
    """Makes the epochs score what is given; gives the weights that each was judged with."""

    def script(accuracies: list[float]) -> list[dict[str, Any]]:
        judged: list[dict[str, Any]] = []

        def evaluate(model: SparseCBM, *_: Any) -> dict[str, Any]:
            judged.append(copy.deepcopy(model.state_dict()))
            accuracy = accuracies[len(judged) - 1]
            return {"concept": {"accuracy": accuracy}, "label": {"accuracy": accuracy}, "epoch": len(judged) - 1}

        monkeypatch.setattr(training, "evaluate", evaluate)
        return judged

    return script


Epochs = Callable[[list[float]], list[dict[str, Any]]]


def test_it_ends_with_the_best_epochs_weights(model: SparseCBM, texts: Any, epochs: Epochs) -> None:
    judged = epochs([0.1, 0.2, 0.9, 0.3])
    figures = run(model, texts, varied(epochs=4))
    assert figures["epoch"] == 2
    assert differences(model.state_dict(), judged[2]) == []
    assert differences(judged[2], judged[3])


def test_an_epoch_before_the_final_density_is_never_the_best(model: SparseCBM, texts: Any, epochs: Epochs) -> None:
    epochs([0.9, 0.1, 0.2])
    assert run(model, texts, varied(prune_end=2))["epoch"] == 2


def test_of_equal_epochs_the_first_is_kept(model: SparseCBM, texts: Any, epochs: Epochs) -> None:
    epochs([0.5, 0.5, 0.5])
    assert run(model, texts)["epoch"] == 0


def test_every_step_and_every_epoch_is_reported(model: SparseCBM, texts: Any) -> None:
    reports: list[Progress] = []
    figures = run(model, texts, report=reports.append)
    assert [report.step for report in reports if report.figures is None] == list(range(1, 10))
    ends = [report for report in reports if report.figures is not None]
    assert [(report.epoch, report.step, report.steps) for report in ends] == [(0, 3, 9), (1, 6, 9), (2, 9, 9)]
    assert [report.figures for report in ends if report.best][-1] == figures


def test_the_reported_density_falls_to_the_final_one(model: SparseCBM, texts: Any) -> None:
    reports: list[Progress] = []
    run(model, texts, varied(prune_end=2), report=reports.append)
    densities = [report.density for report in reports]
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] == 0.5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_it(model: SparseCBM, texts: Any, value: float) -> None:
    with torch.no_grad():
        model.head_bias[0] = value
    with pytest.raises(TrainingError, match=r"^the loss is \w+ at step 0 of epoch 0; lower the learning rate"):
        run(model, texts)


def test_a_learning_rate_far_too_high_stops_it(model: SparseCBM, texts: Any) -> None:
    with pytest.raises(TrainingError, match=r"^the loss is \w+ at step .*\(now 1e\+20\)"):
        run(model, texts, varied(learning_rate=1e20, head_learning_rate=1e30))


def test_bfloat16_trains_too(model: SparseCBM, texts: Any) -> None:
    figures = run(model, texts, varied(precision="bf16"))
    assert figures["texts"] == 48
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
