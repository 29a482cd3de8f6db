"""Open loop: Poisson arrivals below the engine's capacity against an ideal queue, and three times above it."""

from __future__ import annotations

import heapq
import itertools
import resource
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.comparison import load
from service.comparison.connection import Reply
from tests.benchmarks.effort import Effort
from tests.benchmarks.engine import EngineAlone
from tests.benchmarks.figures import Figure, Report, at_least, at_most
from tests.benchmarks.servers import Target
from tests.benchmarks.throughput import Rates
from tests.benchmarks.wrk import drive, processor_seconds

SHARES = (0.5, 0.7, 0.9)
IDEAL_BAR = 1.5  # at the shares up to 0.7
OVERLOAD = 3.0
DEADLINE_MS = 1_000
_NO_HEADERS: dict[str, str] = {}


def ideal_latencies(arrivals: Sequence[float], services: Sequence[float], servers: int) -> NDArray[np.float64]:
    """Latencies `(requests,)` of a queue without overhead: first come first served, `servers` at work.

    Args:
        arrivals: seconds, ascending.
        services: seconds that each request takes.
        servers: how many requests are served at a time.
    """
    free = [0.0] * servers
    latencies = np.empty(len(arrivals))
    for index, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        ended = max(arrival, heapq.heappop(free)) + service
        heapq.heappush(free, ended)
        latencies[index] = ended - arrival
    return latencies


def measure_arrivals(engine: EngineAlone, served: Target, effort: Effort, report: Report, *, cores: int) -> None:
    """Report p50 and p99 under Poisson arrivals, and their ratios to the ideal queue of the same arrivals.

    Capacity is the ideal queue's own: cores ÷ mean seconds of one text. Batches of several texts may do more than that.
    """
    subject = engine.subject.label
    for share in SHARES:
        times = [engine.service_times(cores) for _ in range(2)]
        rate = share * cores / float(np.median(times, axis=0).mean())
        arrivals = load.poisson_arrivals(rate, effort.arrivals_seconds, seed=int(100 * share))
        replies = load.run(_open_loop(served, arrivals, _NO_HEADERS))
        in_process = engine.latencies(arrivals, cores)
        services = np.median([*times, *(engine.service_times(cores) for _ in range(2))], axis=0)
        bad = sum(reply.status != 200 for reply in replies)
        latencies = np.array([reply.latency for reply in replies if reply.status == 200])
        texts = itertools.islice(itertools.cycle(services.tolist()), len(arrivals))
        ideal = ideal_latencies(arrivals, list(texts), cores)
        at = f"{100 * share:.0f} % of capacity"
        late = float(np.quantile([reply.sent - reply.due for reply in replies], 0.99))
        note = f"{rate:.0f}/s, {len(arrivals)} requests, {bad} failed; generator late by {1000 * late:.2f} ms (p99)"
        for quantile in (0.5, 0.99):
            seen, best = float(np.quantile(latencies, quantile)), float(np.quantile(ideal, quantile))
            name = f"p{100 * quantile:.0f} at {at}"
            report.add(Figure(subject, name, 1000 * seen, "ms", note=f"ideal queue {1000 * best:.1f} ms; {note}"))
            bar = at_most(IDEAL_BAR) if quantile == 0.99 and share <= 0.7 else None
            report.add(Figure(subject, f"{name} ÷ ideal queue", seen / best, bar=bar))
            alone = float(np.quantile(in_process, quantile))
            fed = f"the engine alone, fed the same arrivals in this process: {1000 * alone:.1f} ms"
            report.add(Figure(subject, f"{name} ÷ engine alone", seen / alone, note=fed))


def measure_overload(served: Target, rates: Rates, effort: Effort, report: Report, *, label: str) -> None:
    """Report useful answers, refusals and kept deadlines at three times the engine's capacity."""
    before = _closed_rate(served, effort)
    arrivals = load.poisson_arrivals(OVERLOAD * rates.engine, effort.overload_seconds, seed=300)
    used = processor_seconds(resource.RUSAGE_SELF)
    replies = load.run(_open_loop(served, arrivals, {"request-timeout-ms": str(DEADLINE_MS)}))
    used = processor_seconds(resource.RUSAGE_SELF) - used
    own = (before + _closed_rate(served, effort)) / 2
    accepted = [reply for reply in replies if reply.status in {200, 504}]
    useful = [reply for reply in accepted if reply.status == 200 and 1000 * reply.latency <= DEADLINE_MS]
    refused = [reply for reply in replies if reply.status in {429, 503}]
    others = len(replies) - len(accepted) - len(refused)
    span = max(reply.ended for reply in replies) - min(reply.due for reply in replies)
    cpu = f"{len(replies)} requests; the generator used {used / span:.2f} of a core"
    goodput = len(useful) / span / own
    report.add(Figure(label, "overload: useful answers ÷ own closed loop", goodput, bar=at_least(0.85), note=cpu))
    if refused:
        p99 = 1000 * float(np.quantile([reply.ended - reply.sent for reply in refused], 0.99))
        note = f"{len(refused)} refused"
        report.add(Figure(label, "overload: refusal, p99", p99, "ms", bar=at_most(50), note=note))
    kept = len(useful) / max(1, len(accepted))
    report.add(Figure(label, "overload: accepted that met their deadline", kept, bar=at_least(0.99)))
    report.add(Figure(label, "overload: neither answered nor refused", others, bar=at_most(0)))


def _closed_rate(served: Target, effort: Effort) -> float:
    return drive(served.server.url, served.path, served.bodies, 16, effort.round_seconds).answers_a_second


async def _open_loop(served: Target, arrivals: Sequence[float], headers: dict[str, str]) -> list[Reply]:
    requests = itertools.cycle(served.requests(headers))
    async with load.Client(served.server.url, 64, strict=False) as client:
        return await client.open_loop(requests, arrivals)
