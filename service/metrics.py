"""Every instrument, declared once, on a registry that is passed in."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.errors import OUTCOMES, ROUTING, UNEXPECTED, outcome_of

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 3, 4, 6, 8, 16, 32, 64)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
_MODEL = ("model", "version")
_RESTART_REASONS = ("died", "stuck")


class BulkHistogram(Histogram):
    """A histogram that takes many values at a time."""

    def observe_all(self, values: Sequence[float]) -> None:
        """Do what `observe` does with each value, in one step for each bucket instead of one for each value."""
        counts = np.bincount(np.searchsorted(self._upper_bounds, values))
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(sum(values))


_Kept = deque[tuple[BulkHistogram, float]]


class Observations:
    """What goes into one histogram, kept until `Metrics.flush`: a request pays for no more than that."""

    def __init__(self, histogram: BulkHistogram, kept: _Kept) -> None:
        self._histogram = histogram
        self._kept = kept

    def observe(self, value: float) -> None:
        """Keep one value."""
        self._kept.append((self._histogram, value))


@dataclass(frozen=True, slots=True)
class ModelInstruments:
    """One version's series, looked up once so that a request pays for no lookup."""

    total: Observations
    queue: Observations
    tokenisation: Observations
    inference: Observations
    batch_texts: Observations
    batch_tokens: Observations
    padding: Observations
    texts: Counter
    failures: Counter
    last: Gauge


class Metrics:
    """All instruments of one server process.

    Args:
        registry: where they are registered, and what `expose` renders.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._kept: _Kept = deque()
        """Any thread appends; who holds the lock takes all and puts it into the histograms."""
        self._flushing = threading.Lock()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> BulkHistogram:
            return BulkHistogram(name, text, _MODEL, buckets=buckets, registry=registry)

        self.total = histogram("successor_request_seconds", "From the request read to its answer", _SECONDS)
        self.queue = histogram("successor_queue_seconds", "A text's wait for a worker", _SECONDS)
        self.tokenisation = histogram("successor_tokenisation_seconds", "Tokenisation of a text", _SECONDS)
        self.inference = histogram("successor_inference_seconds", "A text's batch in the engine", _SECONDS)
        self.batch_texts = histogram("successor_batch_texts", "Texts in a batch", _TEXTS)
        self.batch_tokens = histogram("successor_batch_tokens", "Tokens that a batch computes", _TOKENS)
        self.padding = histogram("successor_padding_share", "Share of those that is padding", _SHARES)
        self.texts = Counter("successor_texts", "Texts answered", _MODEL, registry=registry)
        self.failures = Counter(
            "successor_failed_requests",
            "Requests that found their version and got no answer",
            _MODEL,
            registry=registry,
        )
        self.last = Gauge(
            "successor_last_request_timestamp_seconds",
            "When a version last answered, in seconds since 1970",
            _MODEL,
            registry=registry,
            multiprocess_mode="max",
        )
        self.refusals = Counter("successor_refusals", "Requests refused or failed", ("reason",), registry=registry)
        self.worker_restarts = Counter("successor_worker_restarts", "Workers replaced", ("reason",), registry=registry)
        # From 0 on: the first of them is an increase that an alert can see.
        for reason in _RESTART_REASONS:
            self.worker_restarts.labels(reason)
        for outcome in (*OUTCOMES.values(), *ROUTING.values(), UNEXPECTED):
            self.refusals.labels(outcome.code)
        self.queue_depth = Gauge(
            "successor_queue_depth", "Texts that wait for a worker", registry=registry, multiprocess_mode="livesum"
        )
        self.loaded_versions = Gauge(
            "successor_loaded_versions", "Versions that can answer", registry=registry, multiprocess_mode="livemax"
        )
        self.unserved_references = Gauge(
            "successor_unserved_references",
            "References that can't be served, or only by the version that they meant before",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.resident_bytes = Gauge(
            "successor_resident_memory_bytes", "Resident memory", registry=registry, multiprocess_mode="livesum"
        )
        self._process = psutil.Process()

    def for_model(self, name: str, version: int) -> ModelInstruments:
        """The series of one version."""
        values = (name, str(version))

        def kept(histogram: BulkHistogram) -> Observations:
            return Observations(histogram.labels(*values), self._kept)

        return ModelInstruments(
            total=kept(self.total),
            queue=kept(self.queue),
            tokenisation=kept(self.tokenisation),
            inference=kept(self.inference),
            batch_texts=kept(self.batch_texts),
            batch_tokens=kept(self.batch_tokens),
            padding=kept(self.padding),
            texts=self.texts.labels(*values),
            failures=self.failures.labels(*values),
            last=self.last.labels(*values),
        )

    def count_refusal(self, error: BaseException) -> None:
        """Count a request that gets this error in place of an answer."""
        self.refusals.labels(outcome_of(error).code).inc()

    def expose(self) -> bytes:
        """The Prometheus text of this process, or of all processes in multiprocess mode."""
        return generate_latest(self._collected())

    def values(self) -> dict[tuple[str, str, str], float]:
        """(Series, model, version) → value, of all processes in multiprocess mode; buckets are left out."""
        return {
            (sample.name, sample.labels["model"], sample.labels["version"]): sample.value
            for family in self._collected().collect()
            for sample in family.samples
            if "version" in sample.labels and "le" not in sample.labels
        }

    def flush(self) -> None:
        """Put what was observed into its histograms; safe to call from any thread."""
        values: defaultdict[BulkHistogram, list[float]] = defaultdict(list)
        with self._flushing:
            with contextlib.suppress(IndexError):  # empty
                while True:
                    histogram, value = self._kept.popleft()
                    values[histogram].append(value)
            for histogram, observed in values.items():
                histogram.observe_all(observed)

    def _collected(self) -> CollectorRegistry:
        self.flush()
        if MULTIPROCESS_VARIABLE not in os.environ:
            return self._registry
        every_process = CollectorRegistry()
        MultiProcessCollector(every_process)  # type: ignore[no-untyped-call]
        return every_process

    def sample(self, queue_depth: int) -> None:
        """Set the gauges that are read rather than counted, and flush."""
        self.flush()
        self.queue_depth.set(queue_depth)
        self.resident_bytes.set(self._process.memory_info().rss)
