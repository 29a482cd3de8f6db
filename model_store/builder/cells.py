"""Computes a study's trials and cells: trains, exports, measures, and looks at the test split once a cell."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from model_store.builder.artifacts import open_candidate, read_artifacts
from model_store.builder.data import sample
from model_store.builder.errors import RecipeError
from model_store.builder.evaluate import (
    predictions_of,
    run_classifier,
    targets_of,
    tfidf_predictions,
    times_alone,
)
from model_store.builder.plan import Chain, Plan, check_installation, make_plan
from model_store.builder.progress import Progress
from model_store.builder.recipe import Recipe
from model_store.builder.records import (
    CellRecord,
    Interval,
    StepRecord,
    TaskRecord,
    Times,
    TrialRecord,
    compacted,
    expanded,
)
from model_store.builder.results import Origin, Results, searched_before, unit_key
from model_store.builder.runner import Runner, using
from model_store.builder.study import PREDECESSOR, Cell, Study, Trial, of_arm, steps_to
from model_store.machine import describe_machine
from model_store.statistics import ratio_of_medians

TIMED_TEXTS = 50
TIMED_ROUNDS = 5


class Bench:
    """Where cells are computed; trained models stay in the work folder only as long as a missing cell needs them."""

    def __init__(self, study: Study, results: Results, work: Path, progress: Progress) -> None:
        self._study, self._results, self._progress = study, results, progress
        self._runner = Runner(work, progress)
        self._plans: dict[str, Plan] = {}  # one for each task, made when it is first needed

    def using(self, *, alone: bool) -> AbstractContextManager[None]:
        """Hold the work folder: alone, or together with other processes that fill the same study.

        Raises:
            WorkFolderError: it is held otherwise, or can't be written.
        """
        return using(self._runner.work, alone=alone)

    def check(self, tasks: Iterable[str]) -> None:
        """Read the weights and the tasks' data, and refuse what can be seen to fail before anything is trained.

        Raises:
            BuildError: the message names the arm, where it is one's.
        """
        for task in tasks:
            for arm in self._study.arms_of(task)[1:]:
                try:
                    self._plan(task, self._study.recipe(task, arm, self._study.search_seed, {}))
                except RecipeError as error:
                    raise of_arm(self._study, arm, error) from error

    @contextmanager
    def claimed(self, units: Iterable[Cell | Trial]) -> Iterator[Cell | Trial | None]:
        """The first of these units that rests on nothing missing and that no other process has; it is ours meanwhile.

        None where there is none: others are at work on what the rest waits for.
        """
        for unit in units:
            if self._ready(unit):
                with self._runner.claim(str(unit)) as ours:
                    if ours and not self._results.path(unit).exists():  # nor has another finished it meanwhile
                        yield unit
                        return
        yield None

    def _ready(self, unit: Cell | Trial) -> bool:
        """Its rates are chosen, and the predecessor that it starts from has been trained for a cell of its own."""
        if not self._results.decided(self._study, unit):
            return False
        seed = unit.seed if isinstance(unit, Cell) else self._study.search_seed
        return unit.arm == PREDECESSOR or self._results.path(Cell(unit.task, PREDECESSOR, seed)).exists()

    def compute(self, unit: Cell | Trial) -> CellRecord | TrialRecord:
        """The record of a unit, with the trials that it rests on; nothing of it is looked up but those.

        Raises:
            BuildError: anything expected; the message says what to do.
        """
        check_installation()
        with _torch_threads(self._study.threads):
            self._note_task(unit.task)
            for arm in searched_before(unit):
                self._search(unit.task, arm)
            return self._try(unit) if isinstance(unit, Trial) else self._measure(unit)

    def keep(self, unit: Cell | Trial, record: CellRecord | TrialRecord) -> None:
        """Write a unit's record, then throw away those of its models that nothing needs any more.

        Raises:
            StudyError: by this trial another rate is the best, and there are cells of the one before.
        """
        self._results.write(self._results.path(unit), record)
        if isinstance(unit, Trial):
            self._refuse_others(unit.task)
        self._forget(unit)

    def _forget(self, unit: Cell | Trial) -> None:
        """Throw away the models of a unit that no missing unit needs, of this task or of one that shares them.

        None but those of this unit: other processes may be at others.
        """
        done = {folder for one in self._with_trials(unit) for folder in self._folders(one)}
        for folder in done - {folder for task in self._alike(unit.task) for folder in self._needed(task)}:
            self._runner.forget(folder)

    def _alike(self, task: str) -> list[str]:
        """The tasks whose models may be those of a task: those on the same data."""
        sources = {name: one.data for name, one in self._study.tasks.items()}
        return [name for name, source in sources.items() if source == sources[task]]

    def _search(self, task: str, arm: str) -> None:
        for trial in self._study.trials(task, arm):
            if not self._results.path(trial).exists():
                self._results.write(self._results.path(trial), self._try(trial))
                self._refuse_others(task)

    def _try(self, trial: Trial) -> TrialRecord:
        start = time.monotonic()
        self._progress.note(f"{trial}: a learning rate on dev")
        plan = self._plan(trial.task, self._recipe(trial))
        chain = self._trained(plan, trial.arm)
        history = chain.results[-1].figures["dev"]
        return TrialRecord(
            **self._common(trial, plan),
            dev=max(history) if _keeps_best(plan, trial.arm, self._study) else history[-1],
            dev_history=history,
            seconds=round(time.monotonic() - start, 1),
        )

    def _measure(self, cell: Cell) -> CellRecord:
        start = time.monotonic()
        self._progress.note(f"{cell}: a cell")
        plan = self._plan(cell.task, self._recipe(cell))
        before = self._trained(plan, PREDECESSOR)
        old = plan.run(self._runner, before, plan.exporting)
        new = old if cell.arm == PREDECESSOR else plan.run(self._runner, self._trained(plan, cell.arm), plan.exporting)
        context = plan.context(self._progress, self._runner.work)
        artifacts = [read_artifacts(chain.folder)[0] for chain in (old, new)]
        classifiers = [
            open_candidate(chain.folder, artifact, context)
            for chain, artifact in zip((old, new), artifacts, strict=True)
        ]
        rows = plan.data.splits["test"]
        predictions = predictions_of(plan.data.problem, run_classifier(classifiers[1], [row.item for row in rows]))
        dev = [row.item for row in plan.data.splits["dev"]]
        times = times_alone(classifiers, sample(dev, TIMED_TEXTS), TIMED_ROUNDS)
        decisions = compacted(predictions)
        kept, targets = expanded(decisions), expanded(compacted(targets_of(rows)))
        return CellRecord(
            **self._common(cell, plan),
            dev=artifacts[1].dev_metric,
            # Of what the record holds, which is rounded: it can be counted again from there.
            test={metric.name: metric(kept, targets) for metric in plan.data.metrics},
            bytes=artifacts[1].bytes,
            predecessor_bytes=artifacts[0].bytes,
            parity=artifacts[1].max_logit_difference,
            p50_ms=Times(predecessor=float(np.median(times[0])), this=float(np.median(times[1]))),
            speedup=Interval(**asdict(ratio_of_medians(times[0], times[1]))),
            steps=[
                StepRecord(operator=result.operator, seconds=round(result.seconds, 1), dev=result.figures.get("dev"))
                for result in new.results
            ],
            seconds=round(time.monotonic() - start, 1),
            predictions=decisions,
        )

    def _common(self, unit: Cell | Trial, plan: Plan) -> dict[str, Any]:
        """What trials and cells have in common: what they are, what they were made of and on what."""
        origin = _origin(plan)
        return {
            "unit": str(unit),
            "key": unit_key(self._study, plan.recipe, unit.arm, origin),
            "learning_rates": self._results.rates(self._study, unit),
            "weights_sha256": plan.weights.sha256,
            "data_sha256": plan.data.digest,
            "machine": str(describe_machine()),
            "code_version": plan.lineage.code_version,
            "packages": plan.lineage.packages,
            "threads": self._study.threads,
        }

    def _recipe(self, unit: Cell | Trial) -> Recipe:
        return self._results.recipe(self._study, unit)

    def _plan(self, task: str, recipe: Recipe) -> Plan:
        if task not in self._plans:
            self._plans[task] = make_plan(recipe)
            self._refuse_others(task)
        return self._plans[task].for_recipe(recipe)

    def _refuse_others(self, task: str) -> None:
        self._results.check(self._study, task, _origin(self._plans[task]))

    def _trained(self, plan: Plan, arm: str) -> Chain:
        return plan.run(self._runner, plan.start, steps_to(self._study, plan.recipe, arm))

    def _needed(self, task: str) -> set[Path]:
        """The folders of models that a task's missing units start from, make, or will come to again."""
        missing = self._results.missing(self._study, task)
        return {folder for unit in missing for one in self._with_trials(unit) for folder in self._folders(one)}

    def _with_trials(self, unit: Cell | Trial) -> list[Cell | Trial]:
        """A unit and, of an arm's first cell, the trials of which it takes the best one's model."""
        if isinstance(unit, Trial) or unit.seed != self._study.search_seed:
            return [unit]
        return [unit, *self._study.trials(unit.task, unit.arm)]

    def _folders(self, unit: Cell | Trial) -> set[Path]:
        """Where a unit's models are, or will be: the predecessor's and its own, and what is exported of them."""
        plan = self._plan(unit.task, self._recipe(unit))
        own, before = (steps_to(self._study, plan.recipe, arm) for arm in (unit.arm, PREDECESSOR))
        return {folder for steps in (own, before) for folder in plan.folders(self._runner, (*steps, *plan.exporting))}

    def _note_task(self, task: str) -> None:
        """Write what all cells of a task share: the test targets, by position, and what tf-idf makes of them."""
        path = self._results.task_path(task)
        if path.exists():
            return
        recipe = self._study.recipe(task, PREDECESSOR, self._study.search_seed, {})
        data = self._plan(task, recipe).data
        decided = compacted(tfidf_predictions(data, "test")), compacted(targets_of(data.splits["test"]))
        baseline, targets = map(expanded, decided)
        record = TaskRecord(
            task=task,
            problem=data.problem,
            pair=data.pair,
            licence=data.lineage.licence,
            labels=data.labels,
            metrics=data.metrics,
            splits=data.lineage.splits,
            tfidf={metric.name: metric(baseline, targets) for metric in data.metrics},
            tfidf_predictions=decided[0],
            targets=decided[1],
        )
        self._results.write(path, record)


def _origin(plan: Plan) -> Origin:
    return Origin(plan.weights.sha256, plan.data.digest, plan.inputs.pair)


def _keeps_best(plan: Plan, arm: str, study: Study) -> bool:
    return bool(getattr(steps_to(study, plan.recipe, arm)[-1], "best_on_dev", False))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads: with another number the same training ends a little elsewhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
