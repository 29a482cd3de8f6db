"""What a request costs before a service has done anything: the load generator, the system, uvicorn and tokenisation.

An aim says how much a request may cost beside the engine; these figures say how much of that is left for the service.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from model_store.encoding import TextItem
from tests.benchmarks.effort import Effort
from tests.benchmarks.engine import EngineAlone
from tests.benchmarks.figures import Figure, Report
from tests.benchmarks.servers import least_endpoint, server_seconds
from tests.benchmarks.wrk import drive

_CONNECTIONS = 16


def measure_floor(engine: EngineAlone, budget_ms: float, effort: Effort, report: Report, logs: Path) -> None:
    """Report the core-milliseconds of a request without a model, and what is left of a budget.

    Args:
        engine: with the texts.
        budget_ms: core-milliseconds that a request may cost beside the engine.
        effort: for how long.
        report: gets the figures.
        logs: a folder for what the server prints.
    """
    subject = engine.subject
    start = perf_counter()
    for text in subject.texts:
        engine.classifiers[1].encode(TextItem(text))
    tokenisation = (perf_counter() - start) / len(subject.texts)
    with least_endpoint(subject, logs) as least:
        drive(least.server.url, least.path, least.bodies, _CONNECTIONS, 1.0)
        before = server_seconds(least)
        seen = drive(least.server.url, least.path, least.bodies, _CONNECTIONS, effort.round_seconds)
        spent = server_seconds(least) - before
    costs = {
        "load generator": seen.generator_ms,
        "uvicorn": 1000 * spent / (seen.answers_a_second * effort.round_seconds),
        "tokenisation": 1000 * tokenisation,
    }
    for name, cost in costs.items():
        report.add(Figure(subject.label, f"a request without a model: {name}", cost, "core-ms", note="caches are warm"))
    report.add(Figure(subject.label, "budget of a request beside the engine", budget_ms, "core-ms"))
    left = budget_ms - sum(costs.values())
    report.add(Figure(subject.label, "left for the service", left, "core-ms a request"))
