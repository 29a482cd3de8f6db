"""A study's records: one small JSON for each task, trial and cell, and nothing else is needed to go on from them.

`<folder>/tasks/<task>.json` has what is common to a task's cells, `trials/<task>/<arm>/rate<R>.json` a learning rate's
score on dev, `cells/<task>/<arm>/seed<N>.json` a cell: its figures and its decision for every test text.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_store.builder.metrics import Metric, Predictions
from model_store.builder.study import Cell, Study, Trial

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """The folder of a study's records."""

    folder: Path

    def path(self, unit: Cell | Trial) -> Path:
        """Where the record of a unit is, or will be."""
        kind = "cells" if isinstance(unit, Cell) else "trials"
        return self.folder / kind / f"{unit}.json"

    def task_path(self, task: str) -> Path:
        """Where the record of a task is, or will be."""
        return self.folder / "tasks" / f"{task}.json"

    def read(self, path: Path) -> Record | None:
        """A record, or None where it isn't there."""
        try:
            record: Record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return record

    def write(self, path: Path, record: Record) -> None:
        """Keep a record, whole or not at all; lists on one line, so that a difference can be read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in record.items()]
        aside = path.with_suffix(f".{os.getpid()}.partial")
        aside.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        aside.replace(path)

    def dev_scores(self, study: Study, task: str, arm: str) -> dict[float, float]:
        """What each learning rate that has been tried for an arm scored on dev."""
        found = {trial.rate: self.read(self.path(trial)) for trial in study.trials(task, arm)}
        return {rate: float(record["dev"]) for rate, record in found.items() if record is not None}

    def rate(self, study: Study, task: str, arm: str) -> float | None:
        """The learning rate of an arm: the best on dev, of equal ones the first; None while trials are missing."""
        scores = self.dev_scores(study, task, arm)
        rates = study.rates_of(task, arm)
        if len(rates) == 1:
            return rates[0]
        return max(rates, key=scores.__getitem__) if rates and len(scores) == len(rates) else None

    def missing(self, study: Study, task: str | None = None) -> list[Cell | Trial]:
        """What has no record yet, of `task` or of all, in the order of work."""
        return [unit for unit in study.units(task) if not self.path(unit).exists()]

    def seconds_left(self, study: Study, task: str | None = None) -> float | None:
        """How long the missing units of `task`, or of all, will take, judged by those of the same arm and kind.

        None where none is finished.

        A cell of the search's seed takes the model of a trial: it is of another kind than those that train.
        """

        def groups(unit: Cell | Trial) -> tuple[tuple[str, ...], ...]:
            kind = "taken" if isinstance(unit, Cell) and unit.seed == study.search_seed else "trained"
            return (kind, unit.task, unit.arm), (kind, unit.arm), (kind,), ()

        spent: dict[tuple[str, ...], list[float]] = {}
        for unit in study.units():
            record = self.read(self.path(unit))
            if record is not None:
                for group in groups(unit):
                    spent.setdefault(group, []).append(float(record["seconds"]))
        if not spent:
            return None
        alike = (next(group for group in groups(unit) if group in spent) for unit in self.missing(study, task))
        return sum(float(np.mean(spent[group])) for group in alike)


def metrics_of(task: Record) -> list[Metric]:
    """The metrics that a task's record names, the main one first."""
    return [Metric(entry["name"], entry["positive"]) for entry in task["metrics"]]


def compacted(predictions: Predictions) -> list[Any]:
    """Decisions as JSON: positions, numbers to 6 places, or of several labels a text of 0 and 1."""
    if predictions.ndim == 2:
        return ["".join(str(int(entry)) for entry in row) for row in predictions]
    if predictions.dtype.kind == "f":
        return [round(float(value), 6) for value in predictions]
    return [int(value) for value in predictions]


def expanded(compact: list[Any]) -> Predictions:
    """Decisions as `predictions_of` gives them, from a record."""
    if compact and isinstance(compact[0], str):
        return np.asarray([[int(entry) for entry in row] for row in compact])
    return np.asarray(compact)
