"""`successor compare`."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model_store.extras import remedy
from model_store.machine import describe_machine
from model_store.store import ModelStore
from service.comparison import load
from service.comparison.connection import Origin
from service.comparison.errors import MissingExtraError
from service.comparison.measure import BLOCKS, PAIRS, Plan, Sample, Side, Sides, check_sides, measure
from service.comparison.measure import Progress as Advance
from service.comparison.report import is_special, make_folder, table, write_json, write_report
from service.comparison.results import Comparison, Conditions, summarise
from service.comparison.servers import Server, resolve_served, serving
from service.comparison.texts import Example, check_examples, read_examples
from service.settings import load_settings

_EXTRA = ("httpx", "matplotlib")
# A slow model with many connections is slow; it is not refused.
_PATIENT = dict.fromkeys(("max_wait_ms", "request_timeout_ms"), f"{1e3 * load.LIMIT_SECONDS:.0f}")
# After their start servers measure what calls cost, each while nobody asks it: while the other one is asked.
_SETTLING_SECONDS = 60.0


def compare(  # noqa: PLR0913 - each argument is one of the command's options
    a: Annotated[str, typer.Argument(metavar="A", help="the predecessor: name, name@3 or name@alias")],
    b: Annotated[str, typer.Argument(metavar="B", help="the successor")],
    *,
    store: Annotated[Path | None, typer.Option(help="the model store; each model gets a server of its own")] = None,
    url: Annotated[str | None, typer.Option(help="a running server that has both models loaded")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="SUCCESSOR_API_KEY", help="an API key of that server", show_envvar=True)
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="JSON lines with text, text_pair, label; without it: standard input")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="also write the figures to this file; - is standard output")] = None,
    out: Annotated[Path, typer.Option(help="folder of report, plots and raw samples")] = Path("artifacts/comparison"),
    pairs: Annotated[int, typer.Option(min=2, help="requests to each model at 1 connection")] = PAIRS,
    blocks: Annotated[int, typer.Option(min=2, help="blocks of each model at 16 connections")] = BLOCKS,
) -> None:
    """Drive two models over HTTP with the same texts, interleaved, and report what differs and what doesn't.

    Example: successor compare sentiment-predecessor sentiment --texts test.jsonl
    """
    if store is not None and url is not None:
        raise typer.BadParameter("give --store or --url, not both")
    if texts is None and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("give --texts FILE, or JSON lines on standard input")
    _require_extra()
    console = Console(stderr=json == Path("-"))
    if json is not None and json.is_dir():
        raise typer.BadParameter(f"--json {json} is a folder: name a file")
    for folder in {out, out if json is None or is_special(json) else json.parent}:
        make_folder(folder)
    examples = read_examples(texts or sys.stdin)
    plan = Plan(pairs=pairs, blocks=blocks)
    with ExitStack() as stack:
        sides = (
            _on_server(url, api_key, a, b) if url else _on_own_servers(store or load_settings().store_dir, a, b, stack)
        )
        comparison, samples = _compare(sides, examples, plan)
    console.print(table(comparison))
    for sentence in comparison.conclusions:
        console.print(f"• {sentence}", markup=False)
    write_report(comparison, samples, out)
    console.print(f"Report, plots and raw samples: {out}", soft_wrap=True, markup=False)
    if json == Path("-"):
        sys.stdout.write(comparison.model_dump_json(indent=2) + "\n")
    elif json is not None:
        write_json(comparison, json)


def _compare(sides: Sides, examples: list[Example], plan: Plan) -> tuple[Comparison, list[Sample]]:
    started = time.monotonic()
    check_sides(sides)
    served = sides.a.served
    labels = frozenset(served.labels) | frozenset(sides.b.served.labels)
    check_examples(examples, pair=served.pair, problem=served.problem, labels=labels)
    with _progress() as advance:
        samples = load.run(measure(sides, examples, plan, advance))
    comparison = summarise(
        sides,
        examples,
        samples,
        Conditions(
            machine=describe_machine(),
            resident={"a": sides.a.server.resident_bytes(), "b": sides.b.server.resident_bytes()},
            seconds=time.monotonic() - started,
        ),
    )
    return comparison, samples


def _on_server(url: str, api_key: str | None, a: str, b: str) -> Sides:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise typer.BadParameter("the API key has characters that no key has: see SUCCESSOR_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    server = Server(Origin.parse(url).url, headers=headers)
    models = server.models()
    return Sides(*(Side(reference, resolve_served(models, reference), server) for reference in (a, b)))


def _on_own_servers(root: Path, a: str, b: str, stack: ExitStack) -> Sides:
    """Start a server for each model, so that its resident memory is its own; versions are fixed before they start."""
    store = ModelStore(root)
    versions = [str(store.resolve(reference)) for reference in (a, b)]
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="successor-compare-")))
    sides = []
    for key, reference, version in zip("ab", (a, b), versions, strict=True):
        server = stack.enter_context(serving([version], root, logs / f"{key}.log", **_PATIENT))
        sides.append(Side(reference, resolve_served(server.models(), version), server))
    with Console(stderr=True).status("waiting until both servers have settled"):
        for side in sides:
            side.server.settle(_SETTLING_SECONDS)
    return Sides(*sides)


def _require_extra() -> None:
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{' and '.join(missing)} can't be imported: {remedy('compare')}")


@contextmanager
def _progress() -> Iterator[Advance]:
    """A bar for each phase, with the time left, on standard error; drawn between requests, never by a thread."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    drawn = 0.0
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:

        def advance(phase: str, done: int, total: int) -> None:
            nonlocal drawn
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=total)
            progress.update(tasks[phase], completed=done)
            if time.monotonic() - drawn > 0.5 or done == total:
                drawn = time.monotonic()
                progress.refresh()

        yield advance
