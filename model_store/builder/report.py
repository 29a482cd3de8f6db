"""What a build found, for people and for programs: report.json, report.md and two plots, kept in the version."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.builder.data import TaskData
from model_store.builder.evaluate import agreement, targets_of
from model_store.builder.metrics import Predictions
from model_store.manifest import Check
from model_store.statistics import Estimate, mcnemar, paired_bootstrap

REPORT_FILES = ("report.json", "report.md", "quality.png", "training.png")
_MODELS = ("predecessor", "successor", "tfidf")
# So many steps' losses are drawn as their mean.
_SMOOTHED = 5


def quality_figures(data: TaskData, predictions: dict[str, Predictions]) -> dict[str, Any]:
    """Metrics of predecessor, successor and tf-idf on test, with paired-bootstrap intervals."""
    targets = targets_of(data.splits["test"])

    score = data.metric

    def ratio(second: Predictions, first: Predictions, wanted: Predictions) -> float:
        base = score(first, wanted)
        return score(second, wanted) / base if base > 0 else math.nan

    def difference(first: Predictions, second: Predictions, wanted: Predictions) -> float:
        return score(first, wanted) - score(second, wanted)

    old, new, baseline = (predictions[name] for name in _MODELS)
    estimates = {name: paired_bootstrap(score, predictions[name], targets) for name in _MODELS}
    estimates["retention"] = _zero_if_undefined(paired_bootstrap(ratio, new, old, targets))
    estimates["predecessor_margin"] = paired_bootstrap(difference, old, baseline, targets)
    estimates["successor_margin"] = paired_bootstrap(difference, new, baseline, targets)
    figures: dict[str, Any] = {
        "metric": data.metric.name,
        "estimates": {name: asdict(estimate) for name, estimate in estimates.items()},
        "agreement": agreement(data.problem, old, new),
    }
    figures["further"] = {
        metric.name: {name: metric(predictions[name], targets) for name in _MODELS} for metric in data.metrics[1:]
    }
    if data.problem == "single_label":
        right = old == targets, new == targets
        figures["mcnemar_p"] = mcnemar(int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum()))
    return figures


def _zero_if_undefined(retention: Estimate) -> Estimate:
    """Of a predecessor that is worth nothing, nothing is retained."""
    return retention if math.isfinite(retention.value) else Estimate(0.0, 0.0, 0.0)


def write_report(folder: Path, report: dict[str, Any], checks: Sequence[Check]) -> dict[str, Path]:
    """Write the report's files into `folder`; their names and paths."""
    report = report | {"gate": [check.model_dump() | {"passed": check.passed} for check in checks]}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_markdown(report), encoding="utf-8")
    _plot_quality(folder / "quality.png", report["quality"])
    _plot_training(folder / "training.png", report["steps"])
    return {name: folder / name for name in REPORT_FILES}


def _markdown(report: dict[str, Any]) -> str:
    quality, rows = report["quality"], report["data"]["splits"]
    speedup = quality["speedup_alone"]
    lines = [
        f"# {report['name']}: successor of {report['predecessor_name']}",
        "",
        f"{report['data']['source']} (licence: {report['data']['licence']}): "
        + ", ".join(f"{split} {rows[split]['rows']} rows" for split in rows)
        + f"; dropped for overlap: {sum(entry['dropped_overlap'] for entry in rows.values())}.",
        "",
        f"## Quality on test ({quality['metric']}, 95 % intervals)",
        "",
        markdown_table(
            ["", "value", "low", "high"],
            [[name, *map(_number, entry.values())] for name, entry in quality["estimates"].items()],
        ),
        "",
        f"Agreement of predecessor and successor: {_number(quality['agreement'])}."
        + (f" McNemar's p: {quality['mcnemar_p']:.3g}." if "mcnemar_p" in quality else ""),
        "",
        *(
            f"{name}: " + ", ".join(f"{model} {_number(value)}" for model, value in values.items()) + ".\n"
            for name, values in quality["further"].items()
        ),
        "## Files",
        "",
        f"Alone, text by text in turns, the served successor is {speedup['value']:.2f} times as fast as the predecessor"
        f" [{speedup['low']:.2f}, {speedup['high']:.2f}].",
        "",
        markdown_table(
            ["model", "file", "made by", "MB", "dev", "agreement with float32", "batch invariant", "p50 ms, 1 thread"],
            [[entry["model"], entry["file"], entry["method"], *_worth(entry)] for entry in report["files"]],
        ),
    ]
    if report["candidates"]:
        lines += ["", "## Quantised candidates", "", _candidates(report["candidates"])]
    lines += [
        "",
        "## Gate",
        "",
        markdown_table(["check", "value", "bound", "passed"], [_check(entry) for entry in report["gate"]]),
    ]
    steps = [[step["model"], step["operator"], f"{step['seconds']:.1f}"] for step in report["steps"]]
    lines += ["", "## Steps", "", markdown_table(["model", "step", "seconds"], steps)]
    lines += ["", f"Measured on {report['machine']}. ![quality](quality.png) ![training](training.png)", ""]
    return "\n".join(lines)


def _worth(entry: dict[str, Any]) -> list[str]:
    """What a file is worth: the cells that the tables of files and of candidates share."""
    return [
        f"{entry['bytes'] / 1e6:.1f}",
        _number(entry["dev_metric"]),
        _number(entry["agreement"]),
        "yes" if entry["batch_invariant"] else "no",
        "–" if entry["p50_ms"] is None else f"{entry['p50_ms']:.2f}",
    ]


def _candidates(candidates: list[dict[str, Any]]) -> str:
    return markdown_table(
        [
            "candidate",
            "MB",
            "dev",
            "agreement",
            "batch invariant",
            "p50 ms",
            "ms a text under load",
            "rejected because",
        ],
        [[entry["method"], *_worth(entry), f"{entry['busy_ms']:.2f}", entry["rejected"]] for entry in candidates],
    )


def _check(entry: dict[str, Any]) -> list[str]:
    sign = "≥" if entry["direction"] == "at_least" else "≤"
    return [entry["name"], f"{entry['value']:.6g}", f"{sign} {entry['bound']:.6g}", "yes" if entry["passed"] else "no"]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:.4f}"


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of so many inches, and its axes side by side."""
    # The object interface leaves the process's global plotting state and display alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [*figure.subplots(1, columns, squeeze=False)[0]]


def _plot_quality(path: Path, quality: dict[str, Any]) -> None:
    figure, (axes,) = new_figure(6, 2.4)
    for place, name in enumerate(reversed(_MODELS)):
        entry = quality["estimates"][name]
        spread = [[entry["value"] - entry["low"]], [entry["high"] - entry["value"]]]
        axes.errorbar([entry["value"]], [place], xerr=np.maximum(spread, 0), fmt="o", capsize=4)
    axes.set_yticks(range(len(_MODELS)), reversed(_MODELS))
    axes.set_xlabel(f"{quality['metric']} on test, 95 % interval")
    figure.savefig(path, dpi=120)


def _plot_training(path: Path, steps: list[dict[str, Any]]) -> None:
    figure, (axes,) = new_figure(7, 3.5)
    for step in steps:
        history = [entry for entry in step["figures"].get("history", []) if "loss" in entry]
        if not history:
            continue
        positions = [entry["step"] for entry in history]
        axes.plot(positions, _smooth([entry["loss"] for entry in history]), label=f"{step['operator']}: loss")
        rates = [entry.get("replacing_rate") for entry in history]
        if rates[0] is not None:
            axes.plot(positions, rates, linestyle=":", label=f"{step['operator']}: replacing rate")
        dev = [entry for entry in step["figures"]["history"] if "eval_metric" in entry]
        axes.plot(
            [e["step"] for e in dev], [e["eval_metric"] for e in dev], marker="o", label=f"{step['operator']}: dev"
        )
    axes.set_xlabel("optimiser step")
    if axes.lines:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _smooth(values: list[float]) -> NDArray[np.float64]:
    padded = np.pad(np.asarray(values), _SMOOTHED // 2, mode="edge")
    return np.convolve(padded, np.ones(_SMOOTHED) / _SMOOTHED, mode="valid")
