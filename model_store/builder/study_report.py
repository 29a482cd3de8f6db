"""What a study found, from its records alone: results.json, table.md and pareto.png."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from model_store.builder.data import metrics_of
from model_store.builder.metrics import Metric, Predictions
from model_store.builder.records import CellRecord, TaskRecord, expanded
from model_store.builder.report import markdown_table, new_figure
from model_store.builder.results import Results, unwritable
from model_store.builder.study import PREDECESSOR, Study
from model_store.statistics import Estimate, Samples, crossed_bootstrap, paired_bootstrap

REPORT_FILES = ("results.json", "table.md", "pareto.png")
Score = Callable[[Samples, Samples], float]


def write_study_report(study: Study, results: Results) -> dict[str, Any]:
    """Write the report's files into the results' folder; its content.

    Raises:
        StudyError: a record is of another study, or none; or the folder can't be written.
    """
    report = study_report(study, results)
    try:
        results.folder.mkdir(parents=True, exist_ok=True)
        (results.folder / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (results.folder / "table.md").write_text(_markdown(report), encoding="utf-8")
        _plot(results.folder / "pareto.png", report)
    except OSError as error:
        raise unwritable(results.folder, error) from error
    return report


def study_report(study: Study, results: Results) -> dict[str, Any]:
    """Every figure of the report; of a task or an arm without a finished cell, nothing.

    Raises:
        StudyError: a record is of another study, or none.
    """
    tasks: dict[str, Any] = {}
    for name in study.tasks:
        task = results.check(study, name)
        cells: dict[str, dict[int, CellRecord]] = {}
        for cell in study.cells():
            record = results.read(results.path(cell), CellRecord) if cell.task == name else None
            if record is not None:
                cells.setdefault(cell.arm, {})[cell.seed] = record
        if task is not None and cells:
            tasks[name] = _task_report(study, name, task, cells)
    done, units = results.missing(study), study.units()
    machines = sorted({m for task in tasks.values() for arm in task["arms"].values() for m in arm["machines"]})
    return {
        "study": study.name,
        "about": study.about,
        "threads": study.threads,
        "finished": len(units) - len(done),
        "units": len(units),
        "machines": machines,
        "tasks": tasks,
    }


def stated_interval(metric: Metric, task: TaskRecord, record: CellRecord) -> tuple[float, float]:
    """The 95 % interval of a cell's metric, over the test rows."""
    return paired_bootstrap(metric, expanded(record.predictions), expanded(task.targets)).interval


def _task_report(study: Study, name: str, task: TaskRecord, cells: dict[str, dict[int, CellRecord]]) -> dict[str, Any]:
    metrics, targets = metrics_of(study.tasks[name].data, task.labels), expanded(task.targets)
    alike: dict[int, list[float]] = {}  # speed-ups of one graph, whoever trained its weights
    for record in (record for records in cells.values() for record in records.values()):
        alike.setdefault(record.bytes, []).append(record.speedup.value)
    rivals = [name for name in study.references if name in cells]
    arms = {}
    for arm, records in cells.items():
        entry: dict[str, Any] = {
            "seeds": sorted(records),
            "test": {
                metric.name: _spread([metric(expanded(record.predictions), targets) for record in records.values()])
                for metric in metrics
            },
            "interval": asdict(_mean_score(metrics[0], targets, records)),
            "dev": _spread([record.dev for record in records.values()]),
            "learning_rates": next(iter(records.values())).learning_rates,
            "speedup": _spread(alike[next(iter(records.values())).bytes]),
            "p50_ms": _spread([record.p50_ms.this for record in records.values()]),
            "bytes": next(iter(records.values())).bytes,
            "machines": sorted({record.machine for record in records.values()}),
        }
        if PREDECESSOR in cells:
            entry["retention"] = _retention(metrics[0], targets, cells[PREDECESSOR], records)
        entry["differences"] = {
            rival: difference
            for rival in (PREDECESSOR, *rivals)
            if rival != arm and rival in cells
            for difference in [_difference(metrics[0], targets, records, cells[rival])]
            if difference is not None
        }
        arms[arm] = entry
    return {
        "metric": metrics[0].name,
        "learning_rates": study.rates_on(name),
        "splits": {split: found.model_dump() for split, found in task.splits.items()},
        "licence": task.licence,
        "tfidf": {metric.name: metric(expanded(task.tfidf_predictions), targets) for metric in metrics},
        "references": rivals,
        "arms": arms,
    }


def _scores(metric: Metric, targets: Predictions, records: dict[int, CellRecord], seeds: list[int]) -> Score:
    """The metric's mean over chosen seeds, on chosen rows."""
    decided = [expanded(records[seed].predictions) for seed in seeds]

    def score(rows: Samples, runs: Samples) -> float:
        wanted = targets[rows]
        each = {run: metric(decided[run][rows], wanted) for run in set(runs.tolist())}
        return float(np.mean([each[run] for run in runs.tolist()]))

    return score


def _mean_score(metric: Metric, targets: Predictions, records: dict[int, CellRecord]) -> Estimate:
    seeds = sorted(records)
    return crossed_bootstrap(_scores(metric, targets, records, seeds), len(targets), len(seeds))


def _difference(
    metric: Metric, targets: Predictions, ours: dict[int, CellRecord], theirs: dict[int, CellRecord]
) -> dict[str, Any] | None:
    """Our mean metric minus theirs over the seeds that both have, on the same resampled rows and seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    us, them = (_scores(metric, targets, records, seeds) for records in (ours, theirs))
    estimate = crossed_bootstrap(lambda rows, runs: us(rows, runs) - them(rows, runs), len(targets), len(seeds))
    return asdict(estimate) | {"seeds": len(seeds)}


def _retention(
    metric: Metric, targets: Predictions, old: dict[int, CellRecord], new: dict[int, CellRecord]
) -> dict[str, Any] | None:
    """R of each seed: the arm's metric ÷ the predecessor's that it was made of; none where that is not above 0."""
    both = sorted(old.keys() & new.keys())
    bases, values = ([metric(expanded(records[seed].predictions), targets) for seed in both] for records in (old, new))
    if not both or min(bases) <= 0:
        return None
    return _spread([value / base for value, base in zip(values, bases, strict=True)])


def _spread(values: list[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": values}


def _markdown(report: dict[str, Any]) -> str:
    lines = [
        f"# {report['study']}",
        "",
        report["about"].strip(),
        "",
        f"{report['finished']} of {report['units']} trials and cells are finished. Mean ± standard deviation over the"
        " seeds; 95 % intervals of a bootstrap over test rows and seeds, the same of both sides of a difference, not"
        " corrected for their number. Of three seeds they are too narrow where the seed matters more than the rows, and"
        " then hold the truth three times in four."
        " Learning rate of each arm: of those tried for its task the best on dev, with the first seed. S: p50 of the"
        " predecessor ÷ this arm's, float32 ONNX both, one thread, taken in turns in one process; mean ± standard"
        " deviation over all cells of the same graph, whose weights make no difference to its speed.",
    ]
    for name, task in report["tasks"].items():
        rows = task["splits"]
        dropped = ", ".join(f"{rows[split]['dropped_overlap']} of {split}" for split in ("train", "dev"))
        sizes = ", ".join(f"{split} {rows[split]['rows']}" for split in rows)
        rates = ", ".join(f"{rate:g}" for rate in task["learning_rates"])
        header = ["arm", "seeds", *task["tfidf"], "95 %", "R", *(f"− {rival}" for rival in task["references"])]
        body = [_row(arm, entry, task) for arm, entry in task["arms"].items()]
        empty = [""] * (len(header) - len(task["tfidf"]) + 1)
        body.append(["tf-idf", "", *(f"{value:.4f}" for value in task["tfidf"].values()), *empty])
        lines += [
            "",
            f"## {name}",
            "",
            f"Rows: {sizes}. Dropped because their text is in a later split: {dropped}. Licence: {task['licence']}."
            f" Learning rates tried: {rates}.",
            "",
            markdown_table([*header, "S", "MB", "rate"], body),
        ]
    lines += ["", "![quality against speed](pareto.png)", "", "Measured on:", ""]
    lines += [f"- {machine}; torch with {report['threads']} thread(s)" for machine in report["machines"]]
    return "\n".join(lines) + "\n"


def _row(arm: str, entry: dict[str, Any], task: dict[str, Any]) -> list[str]:
    interval, retention = entry["interval"], entry.get("retention")
    differences = [entry["differences"].get(rival) for rival in task["references"]]
    own = entry["learning_rates"].get(arm)
    return [
        arm,
        str(len(entry["seeds"])),
        *(_plus_minus(entry["test"][name]) for name in task["tfidf"]),
        f"{interval['low']:.4f} to {interval['high']:.4f}",
        _plus_minus(retention) if retention else "",
        *(f"{d['value']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]" if d else "" for d in differences),
        _plus_minus(entry["speedup"], 2),
        f"{entry['bytes'] / 1e6:.1f}",
        "" if own is None else f"{own:g}",
    ]


def _plus_minus(spread: dict[str, Any], places: int = 4) -> str:
    return f"{spread['mean']:.{places}f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.{places}f}")


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names of the points `(speed, quality)` that no other point is at least as good as in both, by speed."""
    front = [
        name
        for name, (speed, quality) in points.items()
        if not any(
            other_speed >= speed and other_quality >= quality and (other_speed, other_quality) != (speed, quality)
            for other_speed, other_quality in points.values()
        )
    ]
    return sorted(front, key=lambda name: points[name])


def _plot(path: Path, report: dict[str, Any]) -> None:
    tasks = report["tasks"]
    figure, panels = new_figure(max(4.5 * len(tasks), 4.5), 4, max(len(tasks), 1))
    for axes, (name, task) in zip(panels, tasks.items(), strict=False):
        points = {}
        for arm, entry in task["arms"].items():
            speed, quality = entry["speedup"], entry["test"][task["metric"]]
            points[arm] = speed["mean"], quality["mean"]
            spreads = {"xerr": [speed["sd"] or math.nan], "yerr": [quality["sd"] or math.nan]}
            axes.errorbar([speed["mean"]], [quality["mean"]], **spreads, fmt="o", capsize=3, label=arm)
        front = [points[arm] for arm in pareto_front(points)]
        axes.plot([speed for speed, _ in front], [quality for _, quality in front], color="grey", linewidth=1, zorder=0)
        axes.axhline(task["tfidf"][task["metric"]], linestyle=":", color="grey", label="tf-idf")
        axes.set_title(name)
        axes.set_xlabel("S: times as fast as the predecessor")
        axes.set_ylabel(f"{task['metric']} on test")
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
