"""Training: what it learns, that it repeats, which weights it keeps, and how it fails."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparsecbm import training
from sparsecbm.errors import DataError, TrainingError
from sparsecbm.evaluation import evaluate
from sparsecbm.model import SparseCBM
from sparsecbm.recipe import Recipe
from sparsecbm.training import CPU, Progress, Run, train

MakeModel = Callable[..., SparseCBM]
SHORT = Recipe(
    epochs=3,
    batch_size=16,
    learning_rate=1e-3,
    head_learning_rate=1e-2,
    density=0.5,
    prune_start=0,
    prune_end=1,
    temperature=False,
    precision="fp32",
)


def varied(**changes: Any) -> Recipe:
    """The short recipe with other settings."""
    return Recipe(**SHORT.model_dump() | changes)


def run(model: SparseCBM, texts: Any, recipe: Recipe = SHORT, **more: Any) -> dict[str, Any]:
    return train(model, texts.data, texts.ids, texts.data, texts.ids, recipe, **more).figures


def uncorrected(figures: dict[str, Any]) -> dict[str, Any]:
    """What of the figures doesn't depend, but for rounding, on the reach of corrections, which is fitted last."""
    return {"label": figures["label"]["accuracy"], "concept": figures["concept"], "concepts": figures["concepts"]}


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


def test_it_ends_calibrated(make_model: MakeModel, texts: Any) -> None:
    model, without = make_model(), make_model()
    result = train(model, texts.data, texts.ids, texts.data, texts.ids, varied(temperature=True))
    assert list(result.temperatures) == ["food", "noise", "label"]
    assert evaluate(model, texts.data, texts.ids) == result.figures
    assert train(without, texts.data, texts.ids, texts.data, texts.ids, SHORT).temperatures == {}
    torch.testing.assert_close(model.logit_weight[1] * result.temperatures["noise"], without.logit_weight[1])
    torch.testing.assert_close(model.head_weight * result.temperatures["label"], without.head_weight)


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
        monkeypatch.setattr(training, "fit_reach", lambda *_: None)
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
    best = [report.figures for report in ends if report.best][-1]
    assert best is not None and uncorrected(best) == uncorrected(figures)


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
    with pytest.raises(TrainingError, match=r"^the loss is \w+ at step 1, in epoch 1; go on with --precision fp32"):
        run(model, texts)


def test_a_learning_rate_far_too_high_stops_it(model: SparseCBM, texts: Any) -> None:
    with pytest.raises(TrainingError, match=r"^the (loss|gradient) is \w+ at step .*\(now 1e\+20\)"):
        run(model, texts, varied(learning_rate=1e20, head_learning_rate=1e30))


def test_bfloat16_trains_too(model: SparseCBM, texts: Any) -> None:
    figures = run(model, texts, varied(precision="bf16"))
    assert figures["texts"] == 48
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def without_dropout(model: SparseCBM) -> SparseCBM:
    config = replace(model.backbone.config, dropout=0.0)
    model.backbone.config = model.backbone.embeddings.config = config
    model.dropout = 0.0
    return model


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_a_batch_in_parts_takes_the_step_of_the_whole_batch(make_model: MakeModel, texts: Any, parts: int) -> None:
    steps = []
    for accumulate in (1, parts):
        model = without_dropout(make_model())
        recipe = varied(correction_rate=0, accumulate=accumulate, class_weights="balanced", prune_cuts=1)
        run = Run(model.train(), texts.data, texts.ids, recipe, CPU)
        loss = run.take_step(np.arange(16))
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        steps.append((loss, gradients, run.pruning.pruner.state()))
    (loss, gradients, observed), (loss_of_parts, gradients_of_parts, observed_in_parts) = steps
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradients_of_parts, gradients, rtol=1e-4, atol=1e-6)
    assert observed
    torch.testing.assert_close(observed_in_parts, observed, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("patience", "judged"), [(0, 8), (1, 4), (2, 5), (4, 8)])
def test_it_stops_after_so_many_epochs_that_were_no_better(
    model: SparseCBM, texts: Any, epochs: Epochs, patience: int, judged: int
) -> None:
    scores = epochs([0.1, 0.2, 0.5, 0.4, 0.5, 0.3, 0.6, 0.1])
    run(model, texts, varied(epochs=8, patience=patience))
    assert len(scores) == judged


def test_epochs_before_the_final_density_cost_no_patience(model: SparseCBM, texts: Any, epochs: Epochs) -> None:
    scores = epochs([0.9, 0.8, 0.7, 0.6, 0.5])
    run(model, texts, varied(epochs=5, patience=1, prune_end=3))
    assert len(scores) == 4


def test_the_history_has_a_row_for_every_epoch(model: SparseCBM, texts: Any) -> None:
    result = train(model, texts.data, texts.ids, texts.data, texts.ids, SHORT)
    assert [(row["epoch"], row["step"]) for row in result.history] == [(1, 3), (2, 6), (3, 9)]
    assert [row["density"] for row in result.history] == [0.5, 0.5, 0.5]
    best = [row for row in result.history if row["best"]][-1]
    assert uncorrected(best) == uncorrected(result.figures)


@pytest.mark.parametrize("mode", ["sequential", "independent"])
def test_in_stages_too_it_learns_what_the_tokens_say(make_model: MakeModel, texts: Any, mode: str) -> None:
    recipe = varied(mode=mode, epochs=40, learning_rate=1e-2, average=0.9, prune_start=16, prune_end=24)
    recipe = recipe.model_copy(update={"head_learning_rate": 3e-2})
    figures = run(make_model(), texts, recipe)
    assert figures["concept"]["accuracy"] > 0.95
    assert figures["label"]["accuracy"] > 0.9


@pytest.mark.parametrize("mode", ["sequential", "independent"])
def test_in_stages_the_label_hears_the_concepts_probabilities_alone(model: SparseCBM, texts: Any, mode: str) -> None:
    figures = run(model, texts, varied(mode=mode))
    assert evaluate(model, texts.data, texts.ids) == figures
    vectors = [model(torch.tensor([ids]), torch.ones(1, 3)).vectors for ids in ([1, 10, 15], [1, 12, 16])]
    assert torch.equal(*vectors)
    assert vectors[0].any()


@pytest.mark.parametrize(("mode", "same"), [("joint", False), ("sequential", True), ("independent", True)])
def test_in_stages_the_concepts_know_nothing_of_the_labels(
    make_model: MakeModel, texts: Any, mode: str, same: bool
) -> None:
    shuffled = replace(texts.data, labels=texts.data.labels[::-1].copy(), label_votes=texts.data.label_votes[::-1])
    concepts = []
    for data in (texts.data, shuffled):
        model = make_model()
        recipe = varied(mode=mode, epochs=2, density=1, average=0)
        train_run = Run(model.train(), data, texts.ids, recipe, CPU)
        torch.manual_seed(0)
        for _ in range(3):
            train_run.take_step(np.arange(16))
        concepts.append({name: one for name, one in model.state_dict().items() if "head" not in name})
        del concepts[-1]["value_vectors"]
    assert (differences(*concepts) == []) is same


def test_in_sequence_epochs_are_judged_by_their_concepts(model: SparseCBM, texts: Any) -> None:
    result = train(model, texts.data, texts.ids, texts.data, texts.ids, varied(mode="sequential"))
    assert not any("label" in row for row in result.history)
    best = [row for row in result.history if row["best"]][-1]
    assert best["concept"]["accuracy"] == max(row["concept"]["accuracy"] for row in result.history)
    assert result.figures["concept"] == best["concept"]
    assert "label" in result.figures


def test_a_plain_bottleneck_learns_what_the_tokens_say_and_its_corrections_reach_all(
    make_model: MakeModel, texts: Any
) -> None:
    model = make_model(bottleneck="logits")
    recipe = varied(
        bottleneck="logits", correction_rate=0, epochs=40, learning_rate=1e-2, average=0.9, prune_start=16, prune_end=24
    )
    figures = run(model, texts, recipe)
    assert figures["concept"]["accuracy"] > 0.8
    assert figures["label"]["accuracy"] > 0.8
    assert model.reach == 1


def test_a_classifier_learns_the_label_and_no_concept(make_model: MakeModel, texts: Any) -> None:
    recipe = varied(
        concept_weight=0, correction_rate=0, strength_dropout=0, density=1, epochs=40, learning_rate=1e-2, average=0.9
    )
    result = train(make_model(), texts.data, texts.ids, texts.data, texts.ids, recipe)
    assert result.figures["label"]["accuracy"] > 0.9
    assert result.figures["concept"]["accuracy"] < 0.8
    assert result.figures["label"]["accuracy"] == max(row["label"]["accuracy"] for row in result.history)


def test_balanced_weights_change_what_is_learned(make_model: MakeModel, texts: Any) -> None:
    texts.data.labels[:30], texts.data.label_votes[:30] = 0, [1, 0, 0]
    plain, balanced = make_model(), make_model()
    run(plain, texts)
    run(balanced, texts, varied(class_weights="balanced"))
    assert "head_weight" in differences(plain.state_dict(), balanced.state_dict())


@pytest.mark.parametrize("split", ["training", "validation"])
def test_an_empty_split_is_refused(model: SparseCBM, texts: Any, split: str) -> None:
    empty = replace(texts.data, texts=())
    splits = {"training": texts.data, "validation": texts.data, split: empty}
    with pytest.raises(DataError, match=rf"^The {split} split is empty"):
        train(model, splits["training"], texts.ids, splits["validation"], texts.ids, SHORT)


def test_the_reported_learning_rate_rises_then_falls(model: SparseCBM, texts: Any) -> None:
    reports: list[Progress] = []
    run(model, texts, varied(warmup=0.34), report=reports.append)
    rates = [report.learning_rate for report in reports if report.figures is None]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3 / 6)


@pytest.mark.parametrize("granularity", ["units", "weights"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"importance": "first_order", "threshold": "global"},
        {"importance": "magnitude", "schedule": "linear"},
        {"fisher_block": 1, "accumulate": 2},
    ],
    ids=["obs", "first order", "magnitude", "diagonal"],
)
def test_the_final_densities_are_reached_by_every_way_of_pruning(
    make_model: MakeModel, texts: Any, granularity: str, settings: dict[str, Any]
) -> None:
    model = make_model(trunk=1, granularity=granularity)
    run(model, texts, varied(granularity=granularity, trunk_density=0.5, **settings))
    assert (model.density(), model.trunk_masks.density()) == (0.5, 0.5)


def test_pruned_weights_learn_what_the_tokens_say_too(make_model: MakeModel, texts: Any) -> None:
    recipe = varied(
        granularity="weights", epochs=40, learning_rate=1e-2, average=0.9, prune_start=16, prune_end=24, density=0.3
    )
    model = make_model(trunk=0, granularity="weights")
    figures = run(model, texts, recipe)
    assert figures["concept"]["accuracy"] > 0.95
    assert figures["label"]["accuracy"] > 0.9
    assert model.density() == pytest.approx(0.3, abs=1e-3)
