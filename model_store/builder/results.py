"""A study's records: one small JSON for each task, trial and cell, and nothing else is needed to go on from them.

`<folder>/tasks/<task>.json` has what is common to a task's cells, `trials/<task>/<arm>/rate<R>.json` a learning rate's
score on dev, `cells/<task>/<arm>/seed<N>.json` a cell: its figures and its decision for every test text.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from model_store.builder.errors import StudyError
from model_store.builder.metrics import METRICS_OF
from model_store.builder.recipe import Recipe
from model_store.builder.records import CellRecord, Record, TaskRecord, TrialRecord, expanded
from model_store.builder.runner import key_of
from model_store.builder.study import PREDECESSOR, Cell, Study, Trial, steps_to
from model_store.disk import write_whole
from model_store.errors import first_problem

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Origin:
    """What units of a task are made of."""

    weights_sha256: str | None
    """None: not known here, any will do."""
    data_sha256: str
    pair: bool


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

    def read(self, path: Path, kind: type[R]) -> R | None:
        """A record of a kind, or None where it isn't there.

        Raises:
            StudyError: it can't be read, or is something else.
        """
        try:
            return kind.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StudyError(f"{path} can't be read ({error.strerror}): restore or remove it") from error
        except ValidationError as error:
            where, what = first_problem(error)
            place = f"{where}: " if where else ""
            raise StudyError(f"{path} is no {kind.__name__} ({place}{what}): restore or remove it") from error

    def unit(self, unit: Cell | Trial) -> TrialRecord | CellRecord | None:
        """The record of a unit, or None where it isn't there.

        Raises:
            StudyError: it can't be read, or is something else.
        """
        if isinstance(unit, Cell):
            return self.read(self.path(unit), CellRecord)
        return self.read(self.path(unit), TrialRecord)

    def write(self, path: Path, record: Record) -> None:
        """Keep a record, whole or not at all; lists on one line, so that a difference can be read.

        Raises:
            StudyError: it can't be written.
        """
        values = record.model_dump(mode="json")
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def dev_scores(self, study: Study, task: str, arm: str) -> dict[float, float]:
        """What each learning rate that has been tried for an arm scored on dev."""
        found = {trial.rate: self.unit(trial) for trial in study.trials(task, arm)}
        return {rate: record.dev for rate, record in found.items() if record is not None}

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

    def check(self, study: Study, name: str, origin: Origin | None = None) -> TaskRecord | None:
        """A task's record, None where it isn't there; it and its units must be of the study, or can't be compared.

        Args:
            study: what it has.
            name: the task's.
            origin: the weights and the data that are there; None: those that the records name.

        Raises:
            StudyError: it names the record, and what is different.
        """
        task = self.read(self.task_path(name), TaskRecord)
        if task is not None:
            if origin is not None and task.data_sha256 != origin.data_sha256:
                raise _of_another(self.task_path(name), "data")
            if not all(task.fits(decisions) for decisions in (task.targets, task.tfidf_predictions)):
                raise _unfit(self.task_path(name))
            origin = origin or Origin(None, task.data_sha256, task.pair)
        for unit in study.units(name):
            record = self.unit(unit)
            if record is None:
                continue
            if record.unit != str(unit):
                raise StudyError(f"{self.path(unit)} is the record of {record.unit}: restore or remove it")
            if task is not None and isinstance(record, CellRecord):
                self._check_figures(task, self.path(unit), record)
            if origin is not None and self.decided(study, unit):
                self._check_origin(study, unit, record, origin)
        return task

    def _check_origin(self, study: Study, unit: Cell | Trial, record: TrialRecord | CellRecord, origin: Origin) -> None:
        there = replace(origin, weights_sha256=origin.weights_sha256 or record.weights_sha256)
        key = unit_key(study, self.recipe(study, unit), unit.arm, there)
        for what, own, wanted in (
            ("weights", record.weights_sha256, there.weights_sha256),
            ("data", record.data_sha256, there.data_sha256),
            ("steps", record.key, key),
        ):
            if own != wanted:
                raise _of_another(self.path(unit), what)

    @staticmethod
    def _check_figures(task: TaskRecord, path: Path, record: CellRecord) -> None:
        if not task.fits(record.predictions):
            raise _unfit(path)
        predictions, targets = expanded(record.predictions), expanded(task.targets)
        for metric in task.metrics:
            said, value = record.test.get(metric.name), metric(predictions, targets)
            if said is not None and not math.isclose(said, value, abs_tol=1e-9):
                raise StudyError(f"{path} says {metric.name} {said}, its decisions {value}: restore or remove it")

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
            record = self.unit(unit)
            if record is not None:
                for group in groups(unit):
                    spent.setdefault(group, []).append(record.seconds)
        if not spent:
            return None
        alike = (next(group for group in groups(unit) if group in spent) for unit in self.missing(study, task))
        return sum(float(np.mean(spent[group])) for group in alike)


def searched_before(unit: Cell | Trial) -> list[str]:
    """The arms whose learning rates a unit rests on, in the order in which they are searched."""
    if isinstance(unit, Trial):
        return [] if unit.arm == PREDECESSOR else [PREDECESSOR]
    return [PREDECESSOR] if unit.arm == PREDECESSOR else [PREDECESSOR, unit.arm]


def unit_key(study: Study, recipe: Recipe, arm: str, origin: Origin) -> str:
    """Names what a unit is made of, wherever its files lie: another study has other keys.

    Args:
        study: which has it.
        recipe: the unit's.
        arm: the unit's.
        origin: the weights and the data.
    """
    steps = [step.model_dump(mode="json", exclude_defaults=True) for step in steps_to(study, recipe, arm)]
    inputs = {"pair": origin.pair, "max_length": recipe.max_length, "truncation_side": recipe.truncation_side}
    further: list[object] = [] if study.threads == 1 else [study.threads]
    source = recipe.data
    if source.metrics and source.metrics[0] != METRICS_OF[source.problem][0]:  # what the best epoch is chosen by
        further += [source.metrics[0], source.positive_label]
    return key_of(origin.weights_sha256, origin.data_sha256, recipe.seed, inputs, steps, *further)[:16]


def unwritable(folder: Path, error: OSError) -> StudyError:
    """What is said where records or their report can't be written."""
    return StudyError(f"{folder} can't be written ({error.strerror}): choose one with --results")


def _of_another(path: Path, what: str) -> StudyError:
    return StudyError(
        f"{path} was made of other {what} than the study has now: remove it, or name another folder with --results"
    )


def _unfit(path: Path) -> StudyError:
    return StudyError(f"{path} has not one decision of the task for each test row: restore or remove it")
