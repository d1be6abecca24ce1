"""Recipes: defaults, files, flags, and settings that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsecbm.errors import TrainingError
from sparsecbm.recipe import Recipe, read_recipe


def test_flags_come_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("epochs: 20\ndensity: 0.5\n", encoding="utf-8")
    recipe = read_recipe(path, density=0.4, seed=None)
    assert (recipe.epochs, recipe.density, recipe.seed) == (20, 0.4, 0)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.touch()
    assert read_recipe(path) == Recipe()


def test_nothing_pruned_needs_no_epoch_after_pruning() -> None:
    assert read_recipe(density=1.0, epochs=3).epochs == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0.0}, "--density: Input should be greater than 0."),
        ({"density": 1.5}, "--density: Input should be less than or equal to 1."),
        ({"density": float("nan")}, "--density: Input should be a finite number."),
        ({"epochs": 0}, "--epochs: Input should be greater than or equal to 1."),
        ({"batch_size": 0}, "--batch-size: Input should be greater than or equal to 1."),
        ({"prune_start": -1.0}, "--prune-start: Input should be greater than or equal to 0."),
        ({"prune_start": 7.0}, "The recipe: pruning must not end before it starts: prune_start is 7.0"),
        ({"prune_end": 11.5}, "The recipe: at least one epoch must follow pruning"),
        ({"learning_rate": 0.0}, "--learning-rate: Input should be greater than 0."),
        ({"vote_weight": 1.5}, "--vote-weight: Input should be less than or equal to 1."),
        ({"average": 1.0}, "--average: Input should be less than 1."),
        ({"granularity": "layers"}, "--granularity: Input should be 'units' or 'weights'."),
        ({"importance": "random"}, "--importance: Input should be 'obs', 'magnitude' or 'first_order'."),
        ({"threshold": "none"}, "--threshold: Input should be 'layer' or 'global'."),
        ({"schedule": "step"}, "--schedule: Input should be 'cubic' or 'linear'."),
        ({"fisher_block": -1}, "--fisher-block: Input should be greater than or equal to 0."),
        ({"fisher_memory": 0.0}, "--fisher-memory: Input should be greater than 0."),
        ({"trunk_density": 0.0}, "--trunk-density: Input should be greater than 0."),
        ({"trunk_density": 0.5, "trunk": 0}, "The recipe: trunk_density is 0.5, but there is no trunk to prune"),
        ({"density": 1.0, "trunk_density": 0.5, "epochs": 3}, "The recipe: at least one epoch must follow pruning"),
        ({"mode": "both"}, "--mode: Input should be 'joint', 'sequential' or 'independent'."),
        ({"patience": -1}, "--patience: Input should be greater than or equal to 0."),
        ({"accumulate": 0}, "--accumulate: Input should be greater than or equal to 1."),
        ({"batch_size": 4, "accumulate": 5}, "The recipe: a batch of 4 can't be split into 5 parts: lower accumulate"),
        ({"class_weights": "inverse"}, "--class-weights: Input should be 'none' or 'balanced'."),
        ({"bottleneck": "values"}, "--bottleneck: Input should be 'vectors' or 'logits'."),
        ({"concept_weight": 0, "mode": "sequential"}, "The recipe: with a concept_weight of 0 the label alone is"),
        ({"concept_weight": 0, "label_weight": 0}, "The recipe: with a concept_weight of 0 the label alone is learned"),
        ({"precision": "fp8"}, "--precision: Input should be 'auto', 'fp32' or 'bf16'."),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        read_recipe(**given)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch: 3", "{path}, at epoch: Extra inputs are not permitted."),
        ("epochs: many", "{path}, at epochs: Input should be a valid integer"),
        ("- epochs", "{path} must hold settings by name, such as 'epochs: 12'."),
        ("epochs: [", "{path} can't be read as YAML: "),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(TrainingError) as caught:
        read_recipe(path)
    assert caught.value.message.startswith(message.format(path=path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^There is no recipe at .*nowhere\.yaml\.$"):
        read_recipe(tmp_path / "nowhere.yaml")
