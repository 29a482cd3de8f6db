"""The method, top to bottom: data → predecessor → steps → gate → publish."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from model_store.builder.data import TaskData
from model_store.builder.errors import WorkFolderError
from model_store.builder.gate import check_all, enforce
from model_store.builder.judgement import evaluate_on_test, measurements_of, report_of
from model_store.builder.plan import Chain, Plan, check_installation, make_plan
from model_store.builder.progress import Progress
from model_store.builder.publication import Publication
from model_store.builder.recipe import Recipe
from model_store.builder.report import write_report
from model_store.builder.runner import Runner, using
from model_store.manifest import Check, ModelId
from model_store.store import ModelStore


@dataclass(frozen=True, slots=True)
class Build:
    """A finished build."""

    predecessor: ModelId
    successor: ModelId
    measurements: dict[str, float]
    checks: tuple[Check, ...]
    seconds: dict[str, float]
    report: Path
    data: TaskData


def build(recipe: Recipe, store: ModelStore, work: Path, progress: Progress) -> Build:
    """Build and publish what a recipe describes; nothing is published unless the gate passes.

    Raises:
        BuildError: anything expected; the message says what to do.
        StoreError: the store could not be written.
    """
    check_installation()
    with using(work, alone=True):
        plan = make_plan(recipe)
        progress.note(plan.summary)
        runner = Runner(work, progress)
        _check_architecture(plan, runner)
        first = recipe.own_predecessor_steps
        trained = plan.run(runner, plan.start, recipe.steps[:first])
        predecessor = plan.run(runner, trained, plan.exporting)
        successor = plan.run(runner, trained, recipe.steps[first:])
        return _judge_and_publish(plan, runner, store, predecessor, successor)


def _check_architecture(plan: Plan, runner: Runner) -> None:
    from model_store.builder.rehearsal import check_architecture

    try:
        with tempfile.TemporaryDirectory(dir=runner.work) as scratch:
            check_architecture(plan.weights.folder, plan.recipe.steps, plan.context(runner.progress, Path(scratch)))
    except OSError as error:
        raise WorkFolderError(
            f"the steps could not be tried ({error}): see that {runner.work} has room and can be written, and start"
            " again"
        ) from error


def _judge_and_publish(plan: Plan, runner: Runner, store: ModelStore, predecessor: Chain, successor: Chain) -> Build:
    tested = evaluate_on_test(plan, runner, predecessor, successor)
    measurements = measurements_of(plan, predecessor, successor, tested)
    checks = check_all(plan.recipe.gate, measurements)
    folder = runner.work / "reports" / f"{plan.recipe.name}-{tested.key[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    files = write_report(folder, report_of(plan, predecessor, successor, tested), checks)
    enforce(checks, folder)
    publication = Publication(plan, store, measurements, checks, files)
    old = publication.predecessor(predecessor.folder)
    new = publication.successor(successor.folder, old)
    seconds: dict[str, float] = {}
    for result in {result.key: result for result in (*predecessor.results, *successor.results, tested)}.values():
        seconds[result.operator] = seconds.get(result.operator, 0.0) + result.seconds
    return Build(old, new, measurements, checks, seconds, folder / "report.json", plan.data)
