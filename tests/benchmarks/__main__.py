"""`python -m tests.benchmarks [--json FILE] [--store DIR] [--quick] [--only …] [--strict]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from model_store.disk import write_whole
from model_store.errors import SuccessorError
from model_store.extras import remedy
from model_store.machine import describe_machine, usable_cores
from model_store.store import ModelStore
from service.comparison.servers import exit_on_sigterm
from tests.benchmarks import arrivals, artificial, life_cycle
from tests.benchmarks.dialects import measure_dialects
from tests.benchmarks.effort import FULL, QUICK, Effort
from tests.benchmarks.engine import EngineAlone
from tests.benchmarks.figures import Bar, Report, at_least
from tests.benchmarks.queue_cost import measure_queue_cost
from tests.benchmarks.servers import service
from tests.benchmarks.subjects import Subject, read_texts
from tests.benchmarks.throughput import measure_throughput
from tests.benchmarks.wrk import generator

SUCCESSOR = "sentiment"
SECTIONS = ("throughput", "arrivals", "dialects", "life-cycle", "queue")
# Further sections, which run only when they are asked for: it installs the peers.
PEERS = "peers"
_SIX_LAYERS_BAR = at_least(0.95)
_THREE_LAYERS_BAR = at_least(0.88)


def main() -> int:
    """Run the sections in turn, print the table, and return the exit code."""
    arguments = _parse()
    effort = QUICK if arguments.quick else FULL
    report = Report(Console(soft_wrap=True))
    machine = describe_machine()
    report.console.print(f"{machine}\nThroughput is driven by {generator()}.", highlight=False)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    failure = ""
    try:
        with exit_on_sigterm(), tempfile.TemporaryDirectory(prefix="successor-benchmarks-") as logs:
            _run(arguments, effort, report, Path(logs))
    except SuccessorError as error:
        failure = str(error)
        report.console.print(f"error: {error}", highlight=False, markup=False)
    finally:  # what was measured until then took long
        report.console.print(report.verdicts())
        if arguments.json:
            content = {
                "machine": machine.model_dump(),
                "quick": arguments.quick,
                "figures": report.as_json(),
                "skipped": report.skipped,
                "error": failure or None,
            }
            write_whole(arguments.json, json.dumps(content, indent=2) + "\n")
    return 1 if failure or (arguments.strict and report.failed) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("artifacts/demo/store"), help="where `sentiment` is")
    parser.add_argument("--texts", type=Path, default=Path("artifacts/demo/test.jsonl"), help="real texts, if there")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/benchmarks/store"), help="artificial files")
    parser.add_argument("--environments", type=Path, default=Path("artifacts/benchmarks/peers"), help="of the peers")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--only", choices=(*SECTIONS, PEERS), action="append", help="leave the other sections out")
    parser.add_argument("--quick", action="store_true", help="just enough to see that it works")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure misses its bar")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, effort: Effort, report: Report, logs: Path) -> None:
    only: list[str] = arguments.only or list(SECTIONS)
    if "queue" in only:
        measure_queue_cost(effort, report)
    if set(only) == {"queue"}:
        return
    cores = max(1, int(usable_cores()))
    subjects = _subjects(arguments, read_texts(arguments.texts, effort.texts), report)
    for subject, _ in subjects:
        report.console.print(subject.describe(), highlight=False)
    first, last = subjects[0][0], subjects[-1][0]
    peers = arguments.environments if PEERS in only else None
    if {"throughput", "arrivals", PEERS} & set(only):
        measured = subjects if "throughput" in only else subjects[:1]
        rates = [
            measure_throughput(
                subject,
                effort,
                report,
                logs,
                cores=cores,
                bar=bar,
                plain=subject is first,
                peers=peers if subject is first else None,
            )
            for subject, bar in measured
        ]
        if "arrivals" in only:
            with service(first, logs) as served:
                arrivals.measure_arrivals(EngineAlone(first, cores), served, effort, report, cores=cores)
                arrivals.measure_overload(served, rates[0], effort, report, label=first.label)
    if "dialects" in only:
        for subject in [first] if first is last else [first, last]:
            measure_dialects(subject, effort, report, logs)
    if "life-cycle" in only:
        life_cycle.measure_start(first, effort, report, logs)
        life_cycle.measure_swaps(last, first, effort, report, logs)
        life_cycle.measure_termination(first, effort, report, logs)
        life_cycle.measure_memory(last, effort, report, logs)


def _subjects(arguments: argparse.Namespace, texts: list[str], report: Report) -> list[tuple[Subject, Bar | None]]:
    """The files to measure with their bars: 6 layers first, 3 layers last."""
    subjects: list[tuple[Subject, Bar | None]] = []
    cache = ModelStore(arguments.cache)
    if artificial.available():
        subjects += [
            (artificial.artificial_subject(cache, 6, "per-token", texts), _SIX_LAYERS_BAR),
            (artificial.artificial_subject(cache, 6, "dynamic", texts), None),
        ]
    else:
        report.skip("6 layers", f"torch, transformers and onnx make the file: {remedy('build')}")
    store = ModelStore(arguments.store)
    if SUCCESSOR in store.names():
        subjects.append((Subject("successor of the demo", store, store.resolve(SUCCESSOR), texts), _THREE_LAYERS_BAR))
    elif artificial.available():
        subjects.append((artificial.artificial_subject(cache, 3, "per-token", texts), _THREE_LAYERS_BAR))
    if not subjects:
        raise SuccessorError(f"nothing to measure: run `make demo` first, or name a store that has {SUCCESSOR!r}")
    return subjects


if __name__ == "__main__":
    sys.exit(main())
