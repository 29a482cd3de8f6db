"""The command `successor study`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from model_store.builder.cells import Bench
from model_store.builder.data import metrics_of
from model_store.builder.documents import Document
from model_store.builder.errors import StudyError
from model_store.builder.fetch import cache_folder
from model_store.builder.progress import ConsoleProgress, Progress
from model_store.builder.records import CellRecord, expanded
from model_store.builder.results import Results
from model_store.builder.runner import key_of
from model_store.builder.study import STUDIES, Study, study_of
from model_store.builder.study_report import stated_interval, write_study_report

# How often a process that has nothing to do looks whether there is something.
_WAIT_S = 2.0


def study(  # noqa: PLR0913 - each argument is one of the command's options
    study: Annotated[
        str, typer.Argument(help="A study's file, or the name of one that ships: theseus-6-to-3, theseus-12-to-6.")
    ],
    *,
    cell: Annotated[
        str | None,
        typer.Option(metavar="TASK/ARM/SEED", help="Compute this cell alone, and compare it with its record."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Only this task."),
    ] = None,
    next_only: Annotated[
        bool, typer.Option("--next", help="Compute the next missing trial or cell, then stop.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report", help="Write the report of what there is; needs no data.")
    ] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one key: --set data_folder=/my/data")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="The records' folder; by default beside the study's file, or of one that ships and has none there"
            " artifacts/studies/NAME."
        ),
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Where models are kept meanwhile; by default in the cache.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the study and its records, say what is left, do nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare ways to make a successor over tasks and seeds; goes on from the records that are there.

    Start it once for each core: processes of one study share the work, whatever each does or loses.

    Example: successor study theseus-6-to-3 --set data_folder=tasks --cell sst2/theseus/seed1
    """
    document = STUDIES.read(study, Study.model_fields, changes or ())
    whole = study_of(document)
    if task is not None and task not in whole.tasks:
        raise StudyError(f"--task: no task {task!r}: there are {', '.join(whole.tasks)}")
    if (cell is not None) + next_only + report_only + dry_run > 1:
        raise StudyError("--cell, --next, --report and --dry-run are four things to do: give one")
    records = Results(results or _records_folder(document))
    if dry_run:
        _say_what_is_left(whole, records, task, as_json=as_json)
        return
    progress = ConsoleProgress()
    # A folder for each folder of records: a process throws away models that no record of its own still needs.
    place = (work or cache_folder() / "studies" / whole.name) / key_of(str(records.folder.resolve()))[:12]
    if cell is not None:
        _one_cell(whole, records, place, progress, cell, as_json=as_json)
        return
    bench = Bench(whole, records, place, progress)
    if not report_only:
        _fill(whole, records, bench, progress, task, next_only=next_only)
    report = write_study_report(whole, records)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        typer.echo(f"{report['finished']} of {report['units']} finished; the table is {records.folder / 'table.md'}")


def _records_folder(document: Document) -> Path:
    """Where a study's records are: beside its file, but nothing is written beside an installed one."""
    beside = document.file.with_suffix("")
    if beside == document.file:
        raise StudyError(f"{document.file} has no ending like .yaml: say with --results where its records are")
    return Path("artifacts", "studies", beside.name) if document.ships and not beside.is_dir() else beside


def _say_what_is_left(study: Study, records: Results, task: str | None, *, as_json: bool) -> None:
    for one in study.tasks:
        records.check(study, one)
    units, missing = study.units(task), [str(unit) for unit in records.missing(study, task)]
    left = records.seconds_left(study, task)
    if as_json:
        status = {"finished": len(units) - len(missing), "units": len(units), "missing": missing, "seconds_left": left}
        typer.echo(json.dumps(status))
        return
    typer.echo(
        f"{len(units) - len(missing)} of {len(units)} finished{_left(left)}; the records are in {records.folder}"
    )
    for unit in missing:
        typer.echo(f"missing: {unit}")


def _fill(  # noqa: PLR0913 - the command's parts
    study: Study, records: Results, bench: Bench, progress: Progress, task: str | None, *, next_only: bool
) -> None:
    waiting = False
    with bench.using(alone=False):
        bench.check({unit.task: None for unit in records.missing(study, task)})
        while missing := records.missing(study, task):
            with bench.claimed(missing) as unit:
                if unit is None:
                    if not waiting:
                        progress.note(f"{study.name}: other processes are at what is left; waiting for them")
                    waiting = True
                else:
                    waiting = False
                    left = records.seconds_left(study, task)
                    total = len(study.units(task))
                    progress.note(f"{study.name}: {total - len(missing)} of {total} done{_left(left)}; next is {unit}")
                    bench.keep(unit, bench.compute(unit))
                    if next_only:
                        return
            if waiting:
                time.sleep(_WAIT_S)


def _one_cell(  # noqa: PLR0913 - the command's parts
    study: Study, records: Results, work: Path, progress: Progress, text: str, *, as_json: bool
) -> None:
    cell = study.cell(text)
    before = records.read(records.path(cell), CellRecord)
    # What is doubted is not compared with the models that it came from.
    doubts = work / "doubts" if before is not None else work
    bench = Bench(study, records, doubts, progress)
    with bench.using(alone=True):
        again = bench.compute(cell)
        if before is None:
            bench.keep(cell, again)
        else:
            shutil.rmtree(doubts)
    task = records.check(study, cell.task)
    assert task is not None and isinstance(again, CellRecord)  # noqa: S101, PT018 - a cell was computed
    metric = metrics_of(study.tasks[cell.task].data, task.labels)[0]
    result: dict[str, Any] = {
        "cell": text,
        "metric": metric.name,
        "value": again.test[metric.name],
        "speedup": again.speedup.value,
    }
    if before is not None:
        low, high = stated_interval(metric, task, before)
        recorded = metric(expanded(before.predictions), expanded(task.targets))
        result |= {"recorded": recorded, "low": low, "high": high}
        same = sum(a == b for a, b in zip(before.predictions, again.predictions, strict=True))
        result["same_decisions"] = same / len(again.predictions)
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(f"{text}: {metric.name} {result['value']:.4f} on test, {result['speedup']:.2f} times as fast")
    if before is not None:
        inside = result["low"] <= result["value"] <= result["high"]
        typer.echo(
            f"recorded: {result['recorded']:.4f}, 95 % interval {result['low']:.4f} to {result['high']:.4f}:"
            f" {'inside' if inside else 'OUTSIDE'}; {result['same_decisions']:.1%} of the decisions are the same"
        )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours, rest = divmod(round(seconds / 60), 60)
    return f", about {f'{hours} h {rest} min' if hours else f'{rest} min'} of work left"
