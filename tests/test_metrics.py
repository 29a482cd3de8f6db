"""Instruments and what a scrape sees."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.errors import OUTCOMES, ROUTING, UNEXPECTED
from service.metrics import BulkHistogram, Metrics


def test_every_instrument_is_exposed_with_its_description() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.for_model("sentiment", 3).queue.observe(0.01)
    metrics.refusals.labels("overloaded").inc()
    families = {family.name: family for family in text_string_to_metric_families(metrics.expose().decode())}
    for name in (
        "request_seconds",
        "queue_seconds",
        "tokenisation_seconds",
        "inference_seconds",
        "batch_texts",
        "batch_tokens",
        "padding_share",
        "texts",
        "refusals",
        "worker_restarts",
        "queue_depth",
        "loaded_versions",
        "resident_memory_bytes",
    ):
        assert families[f"successor_{name}"].documentation
    counts = [one for one in families["successor_queue_seconds"].samples if one.name.endswith("_count")]
    assert [(one.labels, one.value) for one in counts] == [({"model": "sentiment", "version": "3"}, 1.0)]


def test_restarts_are_counted_from_0_so_that_the_first_is_an_increase() -> None:
    families = text_string_to_metric_families(Metrics(CollectorRegistry()).expose().decode())
    (restarts,) = [family for family in families if family.name == "successor_worker_restarts"]
    totals = [sample for sample in restarts.samples if sample.name.endswith("_total")]
    assert {sample.labels["reason"]: sample.value for sample in totals} == {"died": 0, "stuck": 0}


def test_refusals_are_counted_from_0_so_that_the_first_is_an_increase() -> None:
    families = text_string_to_metric_families(Metrics(CollectorRegistry()).expose().decode())
    (refusals,) = [family for family in families if family.name == "successor_refusals"]
    totals = {one.labels["reason"]: one.value for one in refusals.samples if one.name.endswith("_total")}
    assert totals == dict.fromkeys((one.code for one in (*OUTCOMES.values(), *ROUTING.values(), UNEXPECTED)), 0)


def test_a_sample_sets_depth_and_memory() -> None:
    registry = CollectorRegistry()
    Metrics(registry).sample(7)
    assert registry.get_sample_value("successor_queue_depth") == 7
    assert (registry.get_sample_value("successor_resident_memory_bytes") or 0) > 1_000_000


def test_values_put_in_together_count_as_those_put_in_one_by_one() -> None:
    together, apart = CollectorRegistry(), CollectorRegistry()
    values = [0.0, 1.0, 1.0, 1.5, 2.0, 2.5, 4.0, 4.25, 1e9, -1.0]
    BulkHistogram("a", "…", ("of",), buckets=(1, 2, 3, 4), registry=together).labels("one").observe_all(values)
    one_by_one = Histogram("a", "…", ("of",), buckets=(1, 2, 3, 4), registry=apart).labels("one")
    for value in values:
        one_by_one.observe(value)

    def series(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert series(together) == series(apart)


def test_a_scrape_waits_for_what_another_thread_is_putting_in() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    class Slow(BulkHistogram):
        def observe_all(self, values: Sequence[float]) -> None:
            begun.set()
            goes_on.wait()
            super().observe_all(values)

    metrics = Metrics(registry := CollectorRegistry())
    metrics.total = Slow("slow", "…", ("model", "version"), registry=registry)
    metrics.for_model("a", 1).total.observe(0.1)
    with ThreadPoolExecutor(2) as threads:
        threads.submit(metrics.flush)
        begun.wait()
        scrape = threads.submit(metrics.values)
        wait([scrape], timeout=0.1)
        goes_on.set()
    assert scrape.result()["slow_count", "a", "1"] == 1


def test_two_processes_can_each_have_their_own() -> None:
    first, second = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    first.refusals.labels("overloaded").inc()
    assert b'reason="overloaded"} 0.0' in second.expose()


@pytest.mark.slow
def test_processes_that_share_a_folder_add_up(tmp_path: Path) -> None:
    program = (
        "from prometheus_client import CollectorRegistry; from service.metrics import Metrics;"
        "m = Metrics(CollectorRegistry()); m.refusals.labels('overloaded').inc();"
        "m.for_model('a', 1).total.observe(0.1); print(m.expose().decode())"
    )
    for processes in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
        assert f'successor_refusals_total{{reason="overloaded"}} {processes}.0' in done.stdout
        assert f'successor_request_seconds_count{{model="a",version="1"}} {processes}.0' in done.stdout
