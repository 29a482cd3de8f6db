"""The build's commands, which `successor` finds through the entry-point group `successor.commands`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from model_store.builder.demo import run_demo
from model_store.builder.errors import BuildExtraError, NotFetchedError
from model_store.builder.fetch import cache_folder
from model_store.builder.pipeline import Build
from model_store.builder.pipeline import build as build_recipe
from model_store.builder.plan import make_plan
from model_store.builder.progress import ConsoleProgress
from model_store.builder.recipe import Recipe, load_recipe, to_yaml
from model_store.builder.runner import Runner
from model_store.manifest import DEFAULT_STORE
from model_store.store import ModelStore


def build(  # noqa: PLR0913 - each argument is one of the command's options
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or the name of one that ships: sentiment.")],
    *,
    store: Annotated[Path, typer.Option(envvar="SUCCESSOR_STORE_DIR", help="The store's folder.")] = DEFAULT_STORE,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one key: --set steps.0.epochs=3")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Where steps are kept; by default in the cache.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the whole recipe, do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Build a successor from a recipe, and publish it with its predecessor if the gate passes.

    A build that was stopped goes on where it was when it is run again.

    Example: successor build sentiment --store artifacts/store --set steps.1.epochs=5
    """
    whole = load_recipe(recipe, changes or ())
    folder = work or cache_folder() / "builds"
    progress = ConsoleProgress()
    if dry_run:
        _print_dry_run(whole, Runner(folder, progress), as_json=as_json)
        return
    done = build_recipe(whole, ModelStore(store), folder, progress)
    _print_build(done, as_json=as_json)


def demo(
    *,
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("artifacts/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Build, publish, serve and compare on real weights and texts: eight to seventeen minutes on two cores.

    Example: successor demo --folder artifacts/demo
    """
    run_demo(folder, ConsoleProgress(), as_json=as_json)


def _print_dry_run(recipe: Recipe, runner: Runner, *, as_json: bool) -> None:
    found: list[bool | None]
    try:
        plan = make_plan(recipe, offline=True)
    except (NotFetchedError, BuildExtraError) as error:
        found, note = [None] * len(recipe.steps), f"data and weights are not checked together: {error}"
    else:
        found, note = [*plan.kept(runner)], plan.summary
    names = [step.operator for step in recipe.steps]
    if as_json:
        steps = [{"operator": name, "kept": kept} for name, kept in zip(names, found, strict=True)]
        typer.echo(json.dumps({"recipe": recipe.model_dump(mode="json"), "steps": steps, "note": note}))
        return
    typer.echo(to_yaml(recipe), nl=False)
    for name, kept in zip(names, found, strict=True):
        if kept is not None:
            typer.echo(f"# {name}: {'already done' if kept else 'to be done'}")
    typer.echo(f"# {note}")


def _print_build(done: Build, *, as_json: bool) -> None:
    if as_json:
        result = {
            "predecessor": str(done.predecessor),
            "successor": str(done.successor),
            "measurements": done.measurements,
            "gate": [check.model_dump() | {"passed": check.passed} for check in done.checks],
            "seconds": done.seconds,
            "report": str(done.report),
        }
        typer.echo(json.dumps(result))
        return
    figures = done.measurements
    typer.echo(
        f"published {done.predecessor} and {done.successor}: retention {figures['retention']:.3f}, alone"
        f" {figures['speedup_alone']:.1f} times as fast, {figures['size_ratio']:.1f} times smaller"
    )
    typer.echo(f"report: {done.report.with_suffix('.md')}")
