"""A correction outlives the server: recorded by one that is then killed, found by the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Server, launching

pytestmark = pytest.mark.slow

BUNDLE = Path(__file__).parents[2] / "models/restaurant-reviews"
REVIEW = (
    "We waited forty minutes for a table although we had booked. The risotto was wonderful, creamy and rich, "
    "but our waiter was rude and the room so loud that we could hardly talk."
)
LEVELS = ("concept", "mask")


@dataclass
class Lives:
    """What a server said before it was killed, and the one after it on the same state."""

    label: str
    corrected: dict[str, Any]  # by level
    metrics: dict[str, float]
    after: Server


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    with launching(tmp_path_factory.mktemp("lives")) as launcher:
        before = launcher.start(BUNDLE)
        [read] = before.predict(REVIEW)["predictions"]
        service = next(concept for concept in read["concepts"] if concept["name"] == "service")
        other = "Positive" if service["value"] == "Negative" else "Negative"
        corrected = {
            level: before.intervene(REVIEW, "service", other, level, f"corrected at {level} level") for level in LEVELS
        }
        metrics = before.metrics()
        before.kill()
        assert before.processes() == []
        yield Lives(read["label"]["value"], corrected, metrics, launcher.start(BUNDLE))


def test_prediction_is_counted(lives: Lives) -> None:
    assert lives.metrics[f'sparsecbm_predictions_total{{label="{lives.label}"}}'] == 1


@pytest.mark.parametrize("level", LEVELS)
def test_correction_is_counted_by_concept_level_and_outcome(lives: Lives, level: str) -> None:
    outcome = "reached" if lives.corrected[level]["reached"] else "missed"
    counted = {
        name: value
        for name, value in lives.metrics.items()
        if name.startswith("sparsecbm_interventions_total") and f'level="{level}"' in name
    }
    assert counted == {f'sparsecbm_interventions_total{{concept="service",level="{level}",outcome="{outcome}"}}': 1}


def test_correction_at_concept_level_sets_the_concept(lives: Lives) -> None:
    assert lives.corrected["concept"]["flipped"]["concepts"] == ["service"]


def test_correction_at_mask_level_edits_units_of_the_concept(lives: Lives) -> None:
    edits = lives.corrected["mask"]["edits"]
    assert {edit["concept"] for edit in edits} == {"service"}


def test_killed_servers_corrections_are_in_the_ledger_newest_first(lives: Lives) -> None:
    page = lives.after.get("/v1/interventions")
    assert [entry["id"] for entry in page["interventions"]] == [lives.corrected[level]["id"] for level in LEVELS[::-1]]


@pytest.mark.parametrize("level", LEVELS)
def test_killed_servers_correction_is_found_by_its_id(lives: Lives, level: str) -> None:
    said = lives.corrected[level]
    entry = lives.after.get(f"/v1/interventions/{said['id']}")
    assert entry["text"] == REVIEW
    assert entry["note"] == f"corrected at {level} level"
    assert entry["outcome"] == {name: value for name, value in said.items() if name not in ("id", "input_id")}


def test_killed_servers_corrections_await_promotion(lives: Lives) -> None:
    assert lives.after.metrics()["sparsecbm_corrections_awaiting_promotion"] == len(LEVELS)
