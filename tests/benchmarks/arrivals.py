"""Open loop: Poisson arrivals below the engine's capacity against an ideal queue, and three times above it."""

from __future__ import annotations

import heapq
import itertools
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.comparison import load
from service.comparison.connection import Reply
from tests.benchmarks.effort import Effort
from tests.benchmarks.engine import EngineAlone
from tests.benchmarks.figures import Figure, Report, at_least, at_most, ratio_of_rounds
from tests.benchmarks.open_loop import open_loop, poisson_arrivals
from tests.benchmarks.servers import Target
from tests.benchmarks.throughput import Rates
from tests.benchmarks.wrk import drive, processor_seconds

SHARES = (0.5, 0.7, 0.9)
IDEAL_BAR = 1.5  # at the shares up to 0.7
OVERLOAD = 3.0
DEADLINE_MS = 1_000
_NO_HEADERS: dict[str, str] = {}
# Open before an overload begins, so that it is one of requests, not of handshakes.
_CONNECTIONS = 512


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
    Service, engine and the calls' times take turns, since the machine's speed may change within a minute.
    """
    for share in SHARES:
        seen = _Arrivals([engine.service_times(cores)])
        for number in range(effort.arrivals_rounds):
            rate = share * cores / float(np.mean(seen.times[-1]))
            arrivals = poisson_arrivals(rate, effort.arrivals_seconds, seed=int(100 * share) + number)
            seen.replies += load.run(_drive_open_loop(served, arrivals, _NO_HEADERS))
            seen.in_process.append(engine.latencies(arrivals, cores))
            seen.times.append(engine.service_times(cores))
            seen.arrivals.append(arrivals)
            seen.rates.append(rate)
        seen.report(share, cores, engine.subject.label, report)


@dataclass(slots=True)
class _Arrivals:
    """What all rounds of one share gave."""

    times: list[NDArray[np.float64]]
    """Seconds of each text's call, before the first round and after each."""
    replies: list[Reply] = field(default_factory=list)
    in_process: list[NDArray[np.float64]] = field(default_factory=list)
    arrivals: list[list[float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def ideal(self, servers: int) -> NDArray[np.float64]:
        """Latencies of an ideal queue of the same arrivals.

        A text takes its median over all rounds, since a call that was held up says nothing of its text, at the speed
        that the machine had around the round.
        """
        typical = np.median(self.times, axis=0)
        speeds = [float(np.median(times / typical)) for times in self.times]
        return np.concatenate(
            [
                ideal_latencies(
                    arrivals,
                    [*itertools.islice(itertools.cycle(typical * (before + after) / 2), len(arrivals))],
                    servers,
                )
                for arrivals, (before, after) in zip(self.arrivals, itertools.pairwise(speeds), strict=True)
            ]
        )

    def report(self, share: float, servers: int, subject: str, report: Report) -> None:
        """Add the figures of the rounds together."""
        # What was not answered took for ever: else refusing the slowest would make it faster.
        latencies = np.array([reply.latency if reply.status == 200 else np.inf for reply in self.replies])
        failed = int(np.isinf(latencies).sum())
        late = 1000 * float(np.quantile([reply.sent - reply.due for reply in self.replies], 0.99))
        note = f"{np.mean(self.rates):.0f}/s, {len(self.replies)} requests, {failed} failed"
        note += f"; generator late by {late:.2f} ms (p99)"
        compared = (latencies, self.ideal(servers), np.concatenate(self.in_process))
        for quantile in (0.5, 0.99):
            seen, best, alone = (1000 * float(np.quantile(times, quantile)) for times in compared)
            name = f"p{100 * quantile:.0f} at {100 * share:.0f} % of capacity"
            report.add(Figure(subject, name, seen, "ms", note=f"ideal queue {best:.1f} ms; {note}"))
            bar = at_most(IDEAL_BAR) if quantile == 0.99 and share <= 0.7 else None
            report.add(Figure(subject, f"{name} ÷ ideal queue", seen / best, bar=bar))
            fed = f"the engine alone, fed the same arrivals in this process: {alone:.1f} ms"
            report.add(Figure(subject, f"{name} ÷ engine alone", seen / alone, note=fed))


def measure_overload(served: Target, rates: Rates, effort: Effort, report: Report, *, label: str) -> None:
    """Report useful answers, refusals and kept deadlines at three times the engine's capacity, in turns with a load.

    The load is a closed loop of 16 connections, whose rate useful answers are compared with.
    """
    own, headers = [_closed_rate(served, effort)], {"request-timeout-ms": str(DEADLINE_MS)}
    useful_rates: list[float] = []
    replies: list[Reply] = []
    generator_seconds = seconds = 0.0
    useful = 0
    for number in range(effort.rounds):
        arrivals = poisson_arrivals(OVERLOAD * rates.engine, effort.overload_seconds, seed=300 + number)
        used = processor_seconds(resource.RUSAGE_SELF)
        seen = load.run(_drive_open_loop(served, arrivals, headers, connections=_CONNECTIONS))
        generator_seconds += processor_seconds(resource.RUSAGE_SELF) - used
        own.append(_closed_rate(served, effort))
        in_time = sum(reply.status == 200 and 1000 * reply.latency <= DEADLINE_MS for reply in seen)
        span = max(reply.ended for reply in seen) - min(reply.due for reply in seen)
        useful_rates.append(in_time / span)
        useful, seconds, replies = useful + in_time, seconds + span, replies + seen
    accepted = sum(reply.status in {200, 504} for reply in replies)
    refused = [reply for reply in replies if reply.status in {429, 503}]
    cpu = f"{len(replies)} requests; the generator used {generator_seconds / seconds:.2f} of a core"
    goodput = ratio_of_rounds(useful_rates, [(before + after) / 2 for before, after in itertools.pairwise(own)])
    name = "overload: useful answers ÷ own closed loop"
    report.add(Figure(label, name, goodput.value, interval=goodput.interval, bar=at_least(0.85), note=cpu))
    if refused:
        p99 = 1000 * float(np.quantile([reply.ended - reply.sent for reply in refused], 0.99))
        note = f"{len(refused)} refused"
        report.add(Figure(label, "overload: refusal, p99", p99, "ms", bar=at_most(50), note=note))
    report.add(
        Figure(label, "overload: accepted that met their deadline", useful / max(1, accepted), bar=at_least(0.99))
    )
    others = len(replies) - accepted - len(refused)
    report.add(Figure(label, "overload: neither answered nor refused", others, bar=at_most(0)))


def _closed_rate(served: Target, effort: Effort) -> float:
    return drive(served.server.url, served.path, served.bodies, 16, effort.round_seconds).answers_a_second


async def _drive_open_loop(
    served: Target, arrivals: Sequence[float], headers: dict[str, str], *, connections: int = 64
) -> list[Reply]:
    requests = itertools.cycle(served.requests(headers))
    async with load.Client(served.server.url, connections, strict=False) as client:
        return await open_loop(client, requests, arrivals)
