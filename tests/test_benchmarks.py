from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from model_store.manifest import ModelId
from model_store.store import ModelStore
from tests.benchmarks.arrivals import ideal_latencies
from tests.benchmarks.ceiling import ClosedLoop, share_of_engine
from tests.benchmarks.dialects import measure_dialects
from tests.benchmarks.effort import QUICK
from tests.benchmarks.engine import Arrangement, EngineAlone, arrangements
from tests.benchmarks.figures import Figure, Report, at_least, at_most, ratio_of_rounds
from tests.benchmarks.life_cycle import growth_over
from tests.benchmarks.subjects import Subject, read_texts, republish
from tests.benchmarks.wrk import drive
from tests.serving import served
from tests.stub_server import StubServer, labelled
from tests.tiny import make_tiny_version

TEXTS = ["the film is good", "dull", "it is a warm and great story"]


def test_an_ideal_queue_serves_in_order_with_as_many_servers_as_there_are() -> None:
    latencies = ideal_latencies([0.0, 0.0, 0.0, 1.0, 9.0], [2.0, 4.0, 3.0, 1.0, 1.0], servers=2)
    assert latencies.tolist() == [2.0, 4.0, 5.0, 4.0, 1.0]


def test_an_ideal_queue_at_half_load_waits_as_theory_says() -> None:
    generator = np.random.default_rng(0)
    arrivals = np.cumsum(generator.exponential(2.0, 100_000))
    latencies = ideal_latencies(arrivals.tolist(), generator.exponential(1.0, 100_000).tolist(), servers=1)
    assert latencies.mean() == pytest.approx(2.0, rel=0.05)  # M/M/1: 1 / (1 - 0.5)


def test_a_file_whose_answers_depend_on_the_batch_is_run_one_text_at_a_time() -> None:
    assert {arrangement.batch for arrangement in arrangements(2, batched=False)} == {1}
    assert len(arrangements(2, batched=True)) == 14
    assert len(arrangements(1, batched=True)) == 7


def test_sorted_batches_come_in_no_order_so_that_any_part_of_a_turn_is_like_the_whole(
    store: ModelStore, tiny: ModelId
) -> None:
    texts = [" ".join(["film"] * (1 + 7 * number % 40)) for number in range(160)]
    engine = EngineAlone(Subject("tiny", store, tiny, texts), cores=1)
    batches = engine._batches(Arrangement(1, 1, 4, by_length=True))
    assert sorted(itertools.chain(*batches)) == list(range(160))
    lengths = [[len(engine.subject.encoded[index]) for index in batch] for batch in batches]
    assert max(max(batch) - min(batch) for batch in lengths) <= 1
    half = np.concatenate(lengths[: len(lengths) // 2])
    assert np.mean(half) == pytest.approx(np.mean(np.concatenate(lengths)), rel=0.15)


def test_the_engine_alone_gives_the_same_answers_in_batches(store: ModelStore, tiny: ModelId) -> None:
    engine = EngineAlone(Subject("tiny", store, tiny, TEXTS), cores=2)
    for arrangement in engine.allowed:
        assert engine.largest_difference(arrangement, 3) <= 1e-6
        assert engine.texts_a_second(arrangement, 0.01, tokenise=True) > 0
    assert (engine.service_times(2) > 0).all()


def test_the_engine_alone_answers_what_arrives_in_order(store: ModelStore, tiny: ModelId) -> None:
    engine = EngineAlone(Subject("tiny", store, tiny, TEXTS), cores=2)
    arrivals = [0.0, 0.0, 0.01, 0.02]
    latencies = engine.latencies(arrivals, callers=2)
    assert latencies.shape == (4,)
    assert (latencies > 0).all()


def test_without_overhead_a_closed_loop_of_equal_texts_reaches_every_workers_full_rate() -> None:
    model = served(max_batch_texts=1)
    loop = ClosedLoop(model, [20], connections=8, workers=2)
    assert loop.rate(1_000) == pytest.approx(2 / model.cost.predict(1, 20), rel=0.01)


def test_with_few_connections_part_of_the_engine_alone_is_out_of_reach(store: ModelStore, tiny: ModelId) -> None:
    engine = EngineAlone(Subject("tiny", store, tiny, TEXTS), cores=1)
    assert 0 < share_of_engine(engine, connections=1, callers=1) <= 1.01
    few, many = (
        ClosedLoop(served(), list(range(4, 60)), connections=count, workers=2).rate(1_000) for count in (4, 64)
    )
    assert few < many


def test_a_difference_between_batches_is_found(store: ModelStore) -> None:
    model = make_tiny_version(store, "leaky", batch_invariant=False)
    engine = EngineAlone(Subject("leaky", store, model, TEXTS), cores=2)
    assert {arrangement.batch for arrangement in engine.allowed} == {1}
    together = Arrangement(callers=1, threads=1, batch=3, by_length=False)
    assert engine.largest_difference(together, 3) > 0.01


def test_a_version_is_republished_under_another_name_with_the_next_number(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    target = ModelStore(tmp_path / "target")
    assert [str(republish(store, tiny, target, "other")) for _ in range(2)] == ["other@1", "other@2"]
    assert target.open(target.resolve("other@2")).manifest.artifacts == store.manifest(tiny).artifacts


def test_texts_are_read_where_there_are_some_and_made_up_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert sorted(read_texts(file, 10)) == sorted(TEXTS)
    made_up = read_texts(tmp_path / "none", 50)
    assert made_up == read_texts(tmp_path / "none", 50)
    assert len(made_up) == 50


def test_a_figure_passes_on_the_right_side_of_its_bar_and_nan_never_does() -> None:
    report = Report(Console(file=io.StringIO()))
    for value, bar in ((2.0, at_least(1)), (2.0, at_most(1)), (float("nan"), at_most(1)), (1.0, None)):
        report.add(Figure("subject", "name", value, bar=bar))
    assert [figure.verdict for figure in report.figures] == ["pass", "FAIL", "FAIL", ""]
    assert len(report.failed) == 2
    assert report.verdicts().row_count == 3


def test_a_ratio_of_rounds_is_the_middle_of_their_ratios() -> None:
    ratio = ratio_of_rounds([2.0, 8.0], [1.0, 2.0])
    assert ratio.value == pytest.approx(8**0.5)
    assert ratio.low < 2
    assert ratio.high > 4


@pytest.mark.parametrize("installed", [True, False])
def test_a_server_is_driven_with_every_text_and_failures_are_counted(
    installed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not installed:
        monkeypatch.setenv("PATH", str(tmp_path))
    bodies = [{"input": text} for text in TEXTS]
    with StubServer(classify=lambda body: labelled("x") if body["input"] != "dull" else (429, {})) as server:
        driven = drive(server.url, "/v1/classify", bodies, 2, 1)
    assert driven.answers_a_second > 0
    assert driven.failed > 0
    assert {body["input"] for body in server.asked} == set(TEXTS)


@pytest.mark.slow
def test_a_section_runs_by_itself_and_writes_its_figures(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks",
        "--quick",
        "--only",
        "queue",
        "--json",
        str(tmp_path / "f.json"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "f.json").read_text())
    assert [figure["subject"] for figure in content["figures"]] == ["queue, padded file"] * 3 + [
        "queue, file without padding"
    ] * 3
    assert content["skipped"] == {}
    assert content["machine"]["cores"] >= 1


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_memory_that_grows_is_told_from_memory_that_wavers(leak: float) -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.08, 38)
    growth, low, high = growth_over([(1 + leak * place / 37) * 250e6 * share for place, share in enumerate(noise)])
    assert low <= leak <= high
    assert high - low < 0.25
    assert growth == pytest.approx(leak, abs=0.06)


def test_memory_that_grows_by_the_same_each_time_grows_by_what_it_says() -> None:
    assert growth_over([200.0, 210.0, 220.0]) == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.slow
def test_dialects_are_measured_beside_the_native_one(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    report = Report(Console(file=io.StringIO()))
    effort = replace(QUICK, rounds=2, round_seconds=1.0)
    measure_dialects(Subject("tiny", store, tiny, TEXTS), effort, report, tmp_path)
    figures = {figure.name: figure for figure in report.figures}
    for name in ("open inference", "text embeddings inference", "hugging face"):
        ratio = figures[f"{name} ÷ native dialect"]
        assert ratio.value > 0
        assert ratio.bar == at_least(0.95)
    assert figures["failed requests of all dialects"].value == 0
