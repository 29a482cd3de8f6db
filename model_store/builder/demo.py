"""The demo: the shipped recipe `sentiment` built and published, then both models served and compared over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model_store.builder.data import json_records
from model_store.builder.errors import ComparisonFailedError
from model_store.builder.pipeline import Build, build
from model_store.builder.progress import Progress
from model_store.builder.recipe import load_recipe
from model_store.store import ModelStore

RECIPE = "sentiment"
STANDARD_ERROR = 2


def run_demo(folder: Path, progress: Progress, *, as_json: bool = False, recipe: str = RECIPE) -> dict[str, Any]:
    """Build, compare and report into `folder`; print what was gained and lost, and return the report.

    Raises:
        BuildError: the build or the comparison failed.
    """
    start = time.monotonic()
    done = build(load_recipe(recipe), ModelStore(folder / "store"), folder / "work", progress)
    texts = folder / "test.jsonl"
    with texts.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in json_records(done.data, "test"))
    comparing = time.monotonic()
    progress.note(
        f"comparing {done.predecessor} and {done.successor} over HTTP on {done.measurements['test_rows']:.0f} texts"
    )
    compared = _compare(done, folder, texts)
    seconds = done.seconds | {"compare": time.monotonic() - comparing, "total": time.monotonic() - start}
    report = demo_report(done.measurements, compared, seconds)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print_report(report, folder)
    return report


def demo_report(measurements: dict[str, float], compared: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """The demo's figures; quality, time and agreement are those of the served files over HTTP."""
    return {
        "predecessor": _side(compared["a"]),
        "successor": _side(compared["b"]),
        "tfidf_accuracy": measurements["tfidf"],
        "retention": compared["retention"],
        "speedup": compared["speedup"]["value"],
        "speedup_ci": [compared["speedup"]["low"], compared["speedup"]["high"]],
        "throughput_ratio": compared["throughput_ratio"]["value"],
        "throughput_ratio_ci": [compared["throughput_ratio"]["low"], compared["throughput_ratio"]["high"]],
        "size_ratio": compared["size_ratio"],
        "agreement": compared["agreement"]["value"],
        "test_rows": int(measurements["test_rows"]),
        "machine": compared["machine"],
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }


def _side(compared: dict[str, Any]) -> dict[str, Any]:
    """One model: latency at one connection, throughput (texts a second) at sixteen."""
    alone, loaded = compared["connections"]["1"], compared["connections"]["16"]
    return {
        "accuracy": compared["accuracy"]["value"],
        "bytes": compared["bytes"],
        "p50_ms": alone["p50_ms"]["value"],
        "p95_ms": alone["p95_ms"]["value"],
        "p99_ms": alone["p99_ms"]["value"],
        "throughput": loaded["throughput"],
        "version": compared["version"],
    }


def _compare(done: Build, folder: Path, texts: Path) -> dict[str, Any]:
    result = folder / "compare" / "result.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "service.cli", "compare", str(done.predecessor), str(done.successor)]
    command += ["--store", str(folder / "store"), "--texts", str(texts)]
    command += ["--json", str(result), "--out", str(result.parent)]
    # Its table goes to stderr, where all progress goes: stdout is for the demo's own result.
    code = subprocess.run(command, stdout=STANDARD_ERROR, check=False).returncode
    if code != 0:
        raise ComparisonFailedError(
            f"the comparison ended with code {code}; both models are published in {folder / 'store'}"
        )
    compared: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return compared


def _print_report(report: dict[str, Any], folder: Path) -> None:
    old, new = report["predecessor"], report["successor"]
    table = Table(title="What was gained and lost")
    for column in ("", "predecessor", "successor", ""):
        table.add_column(column, justify="right" if column else "left")
    retained = f"{report['retention']:.1%} retained; tf-idf {report['tfidf_accuracy']:.1%}"
    low, high = report["speedup_ci"]
    table.add_row("accuracy", f"{old['accuracy']:.1%}", f"{new['accuracy']:.1%}", retained)
    faster = f"{report['speedup']:.2f}× faster [{low:.2f}, {high:.2f}]"
    table.add_row("p50, 1 connection", f"{old['p50_ms']:.2f} ms", f"{new['p50_ms']:.2f} ms", faster)
    table.add_row("p99, 1 connection", f"{old['p99_ms']:.2f} ms", f"{new['p99_ms']:.2f} ms", "")
    more = f"{report['throughput_ratio']:.2f}× as many"
    table.add_row("texts/s, 16 connections", f"{old['throughput']:.0f}", f"{new['throughput']:.0f}", more)
    smaller = f"{report['size_ratio']:.2f}× smaller"
    table.add_row("model file", f"{old['bytes'] / 1e6:.1f} MB", f"{new['bytes'] / 1e6:.1f} MB", smaller)
    table.add_row("same answer", "", "", f"{report['agreement']:.1%} of {report['test_rows']} texts")
    console = Console()
    console.print(table)
    console.print(
        f"\nThe whole took {report['seconds']['total']:.0f} s; figures are in {folder / 'report.json'}. Next:\n"
        f"  successor models list --store {folder / 'store'}\n"
        f"  successor serve --store {folder / 'store'}\n"
        "  curl -s localhost:8000/v1/classify -H 'content-type: application/json' "
        '-d \'{"model": "sentiment", "input": "A warm, funny film."}\'',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
