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

from model_store.builder.errors import StudyError
from model_store.builder.metrics import METRICS_OF, Metric, Predictions
from model_store.builder.recipe import Recipe
from model_store.builder.runner import key_of
from model_store.builder.study import PREDECESSOR, Cell, Study, Trial, steps_to

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
        """A record, or None where it isn't there.

        Raises:
            StudyError: it can't be read, or is something else.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise StudyError(f"{path} can't be read as a record ({error}): restore or remove it") from error
        if not isinstance(record, dict):
            raise StudyError(f"{path} is no record, a JSON object: restore or remove it")
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

    def rates(self, study: Study, unit: Cell | Trial) -> dict[str, float]:
        """The learning rates that a unit is made with, as far as they are chosen: the predecessor's and its own."""
        chosen = {arm: self.rate(study, unit.task, arm) for arm in dict.fromkeys((PREDECESSOR, unit.arm))}
        if isinstance(unit, Trial):
            chosen[unit.arm] = unit.rate
        return {arm: rate for arm, rate in chosen.items() if rate is not None}

    def decided(self, study: Study, unit: Cell | Trial) -> bool:
        """The rates that it rests on are chosen: none was added to the study, and no trial's record is gone."""
        return all(
            self.rate(study, unit.task, arm) is not None
            for arm in searched_before(unit)
            if study.rates_of(unit.task, arm)
        )

    def recipe(self, study: Study, unit: Cell | Trial) -> Recipe:
        """What a unit is made by."""
        seed = unit.seed if isinstance(unit, Cell) else study.search_seed
        return study.recipe(unit.task, unit.arm, seed, self.rates(study, unit))

    def check(self, study: Study, task: str, *, pair: bool, sha256s: tuple[str, str] | None = None) -> None:
        """Refuse a task's records if one was made of something else than the study has now: they can't be compared.

        Args:
            study: what it has.
            task: its name.
            pair: it is of pairs.
            sha256s: of the weights and the data that are there; None: those that each record names.

        Raises:
            StudyError: it names the record, and what is different.
        """
        for unit in study.units(task):
            record = self.read(self.path(unit)) if self.decided(study, unit) else None
            if record is None:
                continue
            own = (record.get("weights_sha256", ""), record.get("data_sha256", ""))
            there = sha256s or own
            different = [
                what
                for what, same in (
                    ("weights", own[0] == there[0]),
                    ("data", own[1] == there[1]),
                    (
                        "steps",
                        record.get("key") == unit_key(study, self.recipe(study, unit), unit.arm, there, pair=pair),
                    ),
                )
                if not same
            ]
            if different:
                raise StudyError(
                    f"{self.path(unit)} was made of other {different[0]} than the study has now: remove it,"
                    " or name another folder with --results"
                )

    def task(self, study: Study, name: str) -> Record | None:
        """A task's record, None where it isn't there; all records of the task are checked.

        Raises:
            StudyError: one is of another study, or none.
        """
        task = self.read(self.task_path(name))
        if task is not None:
            self.check(study, name, pair=task["pair"])
        return task

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


def searched_before(unit: Cell | Trial) -> list[str]:
    """The arms whose learning rates a unit rests on, in the order in which they are searched."""
    if isinstance(unit, Trial):
        return [] if unit.arm == PREDECESSOR else [PREDECESSOR]
    return [PREDECESSOR] if unit.arm == PREDECESSOR else [PREDECESSOR, unit.arm]


def unit_key(study: Study, recipe: Recipe, arm: str, sha256s: tuple[str, str], *, pair: bool) -> str:
    """Names what a unit is made of, wherever its files lie: another study has other keys.

    Args:
        study: which has it.
        recipe: the unit's.
        arm: the unit's.
        sha256s: of the weights and of the data.
        pair: the data is of pairs.
    """
    steps = [step.model_dump(mode="json", exclude_defaults=True) for step in steps_to(study, recipe, arm)]
    inputs = {"pair": pair, "max_length": recipe.max_length, "truncation_side": recipe.truncation_side}
    further: list[object] = [] if study.threads == 1 else [study.threads]
    source = recipe.data
    if source.metrics and source.metrics[0] != METRICS_OF[source.problem][0]:  # what the best epoch is chosen by
        further += [source.metrics[0], source.positive_label]
    return key_of(*sha256s, recipe.seed, inputs, steps, *further)[:16]


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
