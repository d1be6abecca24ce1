"""Metrics of one replica, and of several over one folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.contract import Answer, ConceptAnswer, Flipped, LabelAnswer, Outcome
from serving.engine import BatchStats
from serving.metrics import Metrics
from sparsecbm.bundle import Manifest

ROOT = Path(__file__).parents[2]
REPLICA = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from serving.metrics import Metrics
from sparsecbm.bundle import read_manifest
metrics = Metrics(Path({folder!r}), read_manifest(Path({bundle!r})))
for number in range({count}):
    metrics.request("/v1/predict", 200, 0.25)
print("counted", flush=True)
sys.stdin.readline()
"""


def samples(exposition: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, /, **labels: str) -> float:
    return samples(metrics.exposition(7))[f"sparsecbm_{name}", frozenset(labels.items())]


def answer(label: str, **values: str) -> Answer:
    return Answer.model_construct(
        label=LabelAnswer(value=label, probability=0.9),
        concepts=[
            ConceptAnswer.model_construct(name=name, value=value, probability=0.75) for name, value in values.items()
        ],
    )


def outcome(label_flips: bool, after: Answer, **corrections: str) -> Outcome:
    return Outcome.model_construct(
        level="mask", corrections=corrections, after=after, flipped=Flipped(label=label_flips, concepts=[])
    )


def test_requests_are_counted_by_route_and_code(metrics: Metrics) -> None:
    metrics.request("/v1/predict", 200, 0.1)
    metrics.request("/v1/predict", 200, 0.2)
    metrics.request("/v1/predict", 422, 0.1)
    assert value(metrics, "requests_total", route="/v1/predict", code="200") == 2
    assert value(metrics, "requests_total", route="/v1/predict", code="422") == 1


def test_durations_sum_exactly(metrics: Metrics) -> None:
    for seconds in (0.25, 0.5, 20.0):
        metrics.request("/v1/predict", 200, seconds)
    labels = {"route": "/v1/predict", "code": "200"}
    assert value(metrics, "request_duration_seconds_sum", **labels) == 20.75
    assert value(metrics, "request_duration_seconds_count", **labels) == 3


def test_buckets_are_cumulative(metrics: Metrics) -> None:
    metrics.queued(0.002)
    metrics.queued(30.0)
    assert value(metrics, "queue_duration_seconds_bucket", le="0.0025") == 1
    assert value(metrics, "queue_duration_seconds_bucket", le="10.0") == 1
    assert value(metrics, "queue_duration_seconds_bucket", le="+Inf") == 2


def test_batches_are_counted_in_texts_tokens_and_padding(metrics: Metrics) -> None:
    metrics.batch(BatchStats(texts=4, tokens=75, padded_tokens=100, tokenise_seconds=0.125, inference_seconds=0.5))
    assert value(metrics, "batch_texts_sum") == 4
    assert value(metrics, "batch_padded_tokens_sum") == 100
    assert value(metrics, "batch_padding_share_sum") == 0.25
    assert value(metrics, "tokenise_duration_seconds_sum") == 0.125
    assert value(metrics, "inference_duration_seconds_sum") == 0.5


def test_predictions_are_counted_by_label_value_and_confidence(metrics: Metrics) -> None:
    metrics.predictions([answer("3", food="Positive"), answer("3", food="Negative")])
    assert value(metrics, "predictions_total", label="3") == 2
    assert value(metrics, "concept_values_total", concept="food", value="Negative") == 1
    assert value(metrics, "concept_confidence_sum", concept="food") == 1.5


def test_interventions_are_counted_by_outcome(metrics: Metrics) -> None:
    after = answer("3", food="Positive", noise="unknown")
    metrics.interventions([outcome(False, after, food="Positive", noise="Negative")])
    assert value(metrics, "interventions_total", concept="food", level="mask", outcome="reached") == 1
    assert value(metrics, "interventions_total", concept="noise", level="mask", outcome="missed") == 1


def test_label_flips_are_counted(metrics: Metrics) -> None:
    after = answer("3", food="Positive")
    metrics.interventions([outcome(True, after, food="Positive"), outcome(False, after, food="Positive")])
    assert value(metrics, "label_flips_total", level="mask") == 1


def test_cancelled_texts_are_counted(metrics: Metrics) -> None:
    metrics.cancelled(3)
    assert value(metrics, "cancelled_texts_total") == 3


def test_series_of_the_models_words_start_at_zero(metrics: Metrics, manifest: Manifest) -> None:
    for label in manifest.labels:
        assert value(metrics, "predictions_total", label=label) == 0
    for concept in manifest.concepts:
        for name in concept.values:
            assert value(metrics, "concept_values_total", concept=concept.name, value=name) == 0


def test_ledger_that_can_be_read(metrics: Metrics) -> None:
    assert value(metrics, "ledger_up") == 1
    assert value(metrics, "corrections_awaiting_promotion") == 7


def test_ledger_that_is_away_has_no_count(metrics: Metrics) -> None:
    found = {name: value for (name, _), value in samples(metrics.exposition(None)).items()}
    assert found["sparsecbm_ledger_up"] == 0
    assert "sparsecbm_corrections_awaiting_promotion" not in found


def test_model_and_mask_version_are_told(metrics: Metrics, manifest: Manifest) -> None:
    assert value(metrics, "mask_version_info", version=manifest.version) == 1
    assert value(metrics, "model_info", name="tiny-reviews", version=manifest.version, precision="int8") == 1


@pytest.fixture
def replicas(metrics: Metrics, bundle: Path, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two more replicas over the same folder, which have counted 100 and 1000 requests of 0.25 s."""
    started = []
    for count in (100, 1000):
        code = REPLICA.format(root=str(ROOT), folder=str(tmp_path / "metrics"), bundle=str(bundle), count=count)
        started.append(
            subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_replicas_sum_exactly(metrics: Metrics, replicas: list[subprocess.Popen[str]]) -> None:
    metrics.request("/v1/predict", 200, 0.25)
    labels = {"route": "/v1/predict", "code": "200"}
    assert value(metrics, "requests_total", **labels) == 1101
    assert value(metrics, "request_duration_seconds_sum", **labels) == 1101 * 0.25
    assert value(metrics, "replicas") == 3


def test_dead_replicas_counts_stay(metrics: Metrics, replicas: list[subprocess.Popen[str]]) -> None:
    replicas[1].kill()
    replicas[1].wait()
    assert value(metrics, "requests_total", route="/v1/predict", code="200") == 1100
    assert value(metrics, "replicas") == 2


def test_closed_replica_is_not_live(metrics: Metrics) -> None:
    assert value(metrics, "replicas") == 1
    metrics.close()
    assert value(metrics, "replicas") == 0
