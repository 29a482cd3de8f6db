"""Instruments and what a scrape sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics


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


def test_a_sample_sets_depth_and_memory() -> None:
    registry = CollectorRegistry()
    Metrics(registry).sample(7)
    assert registry.get_sample_value("successor_queue_depth") == 7
    assert (registry.get_sample_value("successor_resident_memory_bytes") or 0) > 1_000_000


def test_two_processes_can_each_have_their_own() -> None:
    first, second = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    first.refusals.labels("overloaded").inc()
    assert b'reason="overloaded"' not in second.expose()


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
