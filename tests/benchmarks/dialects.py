"""The other dialects' rates beside the native one's, on one server, in turns within each round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.effort import Effort
from tests.benchmarks.figures import Figure, Report, at_least, at_most, ratio_of_rounds
from tests.benchmarks.servers import service
from tests.benchmarks.subjects import Subject
from tests.benchmarks.throughput import take_turns
from tests.benchmarks.wrk import drive

DIALECT_BAR = 0.95
_CONNECTIONS = 16


def measure_dialects(subject: Subject, effort: Effort, report: Report, logs: Path) -> None:
    """Report each dialect's texts a second, and its share of the native dialect's."""
    model = str(subject.model)
    requests: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
        "native": ("/v1/classify", lambda text: {"model": model, "input": text}),
        "open inference": (
            f"/v2/models/{model}/infer",
            lambda text: {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]},
        ),
        "text embeddings inference": ("/predict", lambda text: {"inputs": text}),
        "hugging face": (f"/models/{model}", lambda text: {"inputs": text}),
    }
    failed = 0
    with service(subject, logs, default_model=model) as served:

        def driven(name: str) -> float:
            nonlocal failed
            path, body = requests[name]
            bodies = [body(text) for text in subject.texts]
            seen = drive(served.server.url, path, bodies, _CONNECTIONS, effort.round_seconds)
            failed += seen.failed
            return seen.answers_a_second

        rates = take_turns({name: lambda name=name: driven(name) for name in requests}, effort.rounds)  # type: ignore[misc]
    for name, values in rates.items():
        interval = (min(values), max(values))
        report.add(
            Figure(subject.label, f"{name} dialect, {_CONNECTIONS}", float(np.mean(values)), "texts/s", interval)
        )
    for name in [name for name in rates if name != "native"]:
        ratio = ratio_of_rounds(rates[name], rates["native"])
        bar = at_least(DIALECT_BAR)
        report.add(Figure(subject.label, f"{name} ÷ native dialect", ratio.value, interval=ratio.interval, bar=bar))
    report.add(Figure(subject.label, "failed requests of all dialects", failed, bar=at_most(0)))
