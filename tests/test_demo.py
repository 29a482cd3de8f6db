from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_store.builder.demo import demo_report, run_demo
from model_store.builder.errors import ComparisonFailedError
from tests.tiny_torch import Recorder, tiny_document

KEYS = {
    "predecessor",
    "successor",
    "tfidf_accuracy",
    "retention",
    "speedup",
    "speedup_ci",
    "throughput_ratio",
    "size_ratio",
    "agreement",
    "machine",
    "seconds",
}
SIDE = {"accuracy", "bytes", "p50_ms", "p95_ms", "p99_ms", "throughput", "version"}


def side(p50_ms: float, throughput: float) -> dict[str, Any]:
    one = {"p50_ms": estimate(p50_ms), "p95_ms": estimate(2.0), "p99_ms": estimate(3.0), "throughput": 100.0}
    sixteen = {"p50_ms": estimate(9.0), "p95_ms": estimate(9.0), "p99_ms": estimate(9.0), "throughput": throughput}
    return {"accuracy": estimate(0.8), "bytes": 10, "version": "m@1", "connections": {"1": one, "16": sixteen}}


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_the_report_takes_latency_from_one_connection_and_throughput_from_sixteen() -> None:
    compared = {
        "a": side(8.0, 200.0),
        "b": side(2.0, 600.0),
        "speedup": estimate(4.0),
        "throughput_ratio": estimate(3.0),
        "size_ratio": 5.0,
        "agreement": estimate(0.95),
        "retention": 0.98,
        "machine": {"cpu": "any"},
    }
    report = demo_report({"tfidf": 0.78, "test_rows": 3270.0}, compared, {"theseus": 1.23, "total": 2.0})
    assert set(report) >= KEYS
    assert set(report["predecessor"]) == SIDE
    assert (report["predecessor"]["p50_ms"], report["successor"]["throughput"]) == (8.0, 600.0)
    assert (report["speedup_ci"], report["seconds"]["theseus"], report["test_rows"]) == ([3.9, 4.1], 1.2, 3270)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_document(tmp_path)), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_the_demo_builds_publishes_serves_compares_and_reports(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_demo(tmp_path / "demo", Recorder(), recipe=recipe)
    assert json.loads((tmp_path / "demo" / "report.json").read_text(encoding="utf-8")) == report
    assert set(report) >= KEYS
    assert set(report["seconds"]) >= {"fine_tune", "theseus", "export", "quantize", "evaluate", "compare", "total"}
    labelled = (tmp_path / "demo" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    assert (len(labelled), report["test_rows"]) == (60, 60)
    assert set(json.loads(labelled[0])) == {"text", "label"}
    printed = capsys.readouterr().out
    assert "What was gained and lost" in printed
    assert "successor serve --store" in printed


@pytest.mark.slow
def test_a_comparison_that_fails_is_said_in_one_line(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", os.fspath(script))
    with pytest.raises(ComparisonFailedError, match="the comparison ended with code 3; both models are published in"):
        run_demo(tmp_path / "demo", Recorder(), recipe=recipe)
