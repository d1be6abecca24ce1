"""Prometheus metrics that every replica writes and any replica shows, with exact sums.

A replica keeps its counts in files of the run's metrics folder (prometheus-client's multiprocess mode). A scrape of
any replica adds up all files, so it shows every live replica and what dead ones had counted.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.contract import Answer, Outcome
from sparsecbm.bundle import Manifest
from sparsecbm.errors import InputError, TooLargeError

if TYPE_CHECKING:
    from serving.engine import BatchStats

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_CONFIDENCE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """This replica's metrics, and the view of all replicas'.

    Args:
        folder: the run's metrics folder, shared by its replicas and by nobody else.
        manifest: the served model, whose concepts, values and labels bound the metrics' labels.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._manifest = manifest
        # prometheus-client picks its mode when it is first imported, which may have been before the folder was known.
        os.environ[_FOLDER] = str(folder)
        values.ValueClass = values.MultiProcessValue()
        own = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sparsecbm_{name}", text, labels, registry=own)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"sparsecbm_{name}", text, labels, registry=own, buckets=buckets)

        self._requests = counter("requests", "Requests answered.", "route", "code")
        self._duration = histogram(
            "request_duration_seconds", "From a request's head to its last byte.", _SECONDS, "route", "code"
        )
        self._queue = histogram("queue_duration_seconds", "Wait for a batch to begin.", _SECONDS)
        self._tokenise = histogram("tokenise_duration_seconds", "Tokenising one batch.", _SECONDS)
        self._inference = histogram("inference_duration_seconds", "Running the graph on one batch.", _SECONDS)
        self._texts = histogram("batch_texts", "Texts in one batch.", _TEXTS)
        self._tokens = histogram("batch_padded_tokens", "Tokens in one batch, padding included.", _TOKENS)
        self._padding = histogram("batch_padding_share", "Share of a batch that is padding.", _SHARES)
        self._cancelled = counter("cancelled_texts", "Texts whose client left before their batch began.")
        labels = counter("predictions", "Predictions by label.", "label")
        found = counter("concept_values", "Concept values predicted.", "concept", "value")
        confidence = histogram("concept_confidence", "Probability of the predicted value.", _CONFIDENCE, "concept")
        self._interventions = counter(
            "interventions", "Interventions by corrected concept.", "concept", "level", "outcome"
        )
        flips = counter("label_flips", "Interventions that changed the label.", "level")
        # Every label set that can occur is made here: a series that starts at 0 lets Prometheus see its first step.
        self._labels = {label: labels.labels(label) for label in manifest.labels}
        failed = counter("failed_inputs", "Inputs that could not be answered.", "type")
        self._failed = {error.type: failed.labels(error.type) for error in (InputError, TooLargeError)}
        self._values = {
            (concept.name, value): found.labels(concept.name, value)
            for concept in manifest.concepts
            for value in concept.values
        }
        self._confidence = {concept.name: confidence.labels(concept.name) for concept in manifest.concepts}
        self._flips = {level: flips.labels(level) for level in ("concept", "mask")}
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        # Held for as long as this process lives, however it ends: what scrapes count as a live replica.
        self._presence = (folder / f"replica-{os.getpid()}.lock").open("w")
        fcntl.flock(self._presence, fcntl.LOCK_EX)

    def close(self) -> None:
        """Takes this replica off the live ones; its counts stay."""
        self._presence.close()

    def request(self, route: str, code: int, seconds: float) -> None:
        """Counts an answered request; `route` is a route's template, never a path."""
        children = self._children.get((route, code))
        if children is None:
            labels = (route, str(code))
            children = self._requests.labels(*labels), self._duration.labels(*labels)
            self._children[route, code] = children
        children[0].inc()
        children[1].observe(seconds)

    def queued(self, seconds: float) -> None:
        """Times one job's wait in the queue."""
        self._queue.observe(seconds)

    def cancelled(self, texts: int) -> None:
        """Counts texts that were dropped from the queue because their client left."""
        self._cancelled.inc(texts)

    def batch(self, stats: BatchStats) -> None:
        """Counts one run of the engine's graph."""
        self._tokenise.observe(stats.tokenise_seconds)
        self._inference.observe(stats.inference_seconds)
        self._texts.observe(stats.texts)
        self._tokens.observe(stats.padded_tokens)
        if stats.padded_tokens:
            self._padding.observe(1 - stats.tokens / stats.padded_tokens)

    def predictions(self, answers: Iterable[Answer]) -> None:
        """Counts answers by label and by concept values."""
        for answer in answers:
            self._labels[answer.label.value].inc()
            for concept in answer.concepts:
                self._values[concept.name, concept.value].inc()
                self._confidence[concept.name].observe(concept.probability)

    def failed_input(self, error: InputError) -> None:
        """Counts an input that could not be answered, by its error's type."""
        self._failed[error.type].inc()

    def interventions(self, outcomes: Iterable[Outcome]) -> None:
        """Counts interventions by concept and by whether the concept then had the value asked for."""
        for outcome in outcomes:
            after = {concept.name: concept.value for concept in outcome.after.concepts}
            for concept, value in outcome.corrections.items():
                reached = "reached" if after.get(concept) == value else "missed"
                self._interventions.labels(concept, outcome.level, reached).inc()
            if outcome.flipped.label:
                self._flips[outcome.level].inc()

    def exposition(self, corrections: int | None) -> bytes:
        """All replicas' metrics in Prometheus' text format.

        Args:
            corrections: how many the ledger holds, or None where it can't be read.
        """
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._folder))
        registry.register(_Now(self._folder, self._manifest, corrections))
        return generate_latest(registry)


class _Now(Collector):
    """What is true at the moment of the scrape rather than counted up."""

    def __init__(self, folder: Path, manifest: Manifest, corrections: int | None) -> None:
        self._folder = folder
        self._manifest = manifest
        self._corrections = corrections

    def collect(self) -> Iterator[Metric]:
        manifest = self._manifest
        yield _gauge("replicas", "Replicas that are alive.", _live(self._folder))
        yield _gauge("ledger_up", "Whether the ledger can be read.", self._corrections is not None)
        if self._corrections is not None:
            text = "Corrections in the ledger that no mask version holds yet."
            yield _gauge("corrections_awaiting_promotion", text, self._corrections)
        yield _info(
            "model",
            "The served model.",
            name=manifest.name,
            version=manifest.version,
            precision=manifest.precision,
        )
        # Masks are the bundle's own until a promotion makes another version of them.
        yield _info("mask_version", "The active mask version.", version=manifest.version)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sparsecbm_{name}", text, value)


def _info(metric: str, text: str, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"sparsecbm_{metric}_info", text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _live(folder: Path) -> int:
    live = 0
    for path in folder.glob("replica-*.lock"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                live += 1
    return live
