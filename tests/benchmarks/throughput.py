"""Answers a second and lone latency: engine alone, the service, and the plain endpoint, in turns within each round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from model_store.encoding import TextItem
from tests.benchmarks.ceiling import share_of_engine
from tests.benchmarks.effort import Effort
from tests.benchmarks.engine import SAME_LOGITS, Arrangement, EngineAlone
from tests.benchmarks.figures import Bar, Figure, Report, at_least, at_most, ratio_of_rounds
from tests.benchmarks.floor import measure_floor
from tests.benchmarks.peers.contest import CONNECTIONS, Contest
from tests.benchmarks.peers.screening import start_each_at_its_best
from tests.benchmarks.servers import Target, least_endpoint, plain_endpoint, service
from tests.benchmarks.subjects import Subject
from tests.benchmarks.wrk import drive

PLAIN_BAR = 1.15
LONE_BAR = 1.15
LONE_EXTRA_MS = 0.7
_LONE_BLOCK = 100


@dataclass(frozen=True, slots=True)
class Rates:
    """What later measurements need: texts a second of the engine alone at its best, and of the service."""

    engine: float
    service: float


def find_best(engine: EngineAlone, effort: Effort, report: Report) -> Arrangement:
    """Try every allowed arrangement, in two turns, and return the one with the highest rate."""
    rates = dict.fromkeys(engine.allowed, 0.0)
    for _ in range(2):
        for arrangement in engine.allowed:
            rates[arrangement] += engine.texts_a_second(arrangement, effort.screening_seconds) / 2
    label = engine.subject.label
    for arrangement, rate in rates.items():
        report.add(Figure(label, "engine alone, first look", rate, "texts/s", note=str(arrangement)))
    best = max(rates, key=lambda arrangement: rates[arrangement])
    difference = engine.largest_difference(best, 64)
    report.add(Figure(label, "largest difference of logits from one text at a time", difference, note=str(best)))
    if difference <= SAME_LOGITS:
        return best
    report.skip(f"{label}, {best}", f"its answers differ by {difference:.2g}; one text at a time instead")
    return max(
        (arrangement for arrangement in rates if arrangement.batch == 1), key=lambda arrangement: rates[arrangement]
    )


def measure_throughput(
    subject: Subject,
    effort: Effort,
    report: Report,
    logs: Path,
    *,
    cores: int,
    bar: Bar | None,
    plain: bool,
    peers: Path | None = None,
) -> Rates:
    """Report the rates of everybody and their ratios.

    Args:
        subject: file and texts.
        effort: for how long.
        report: gets the figures.
        logs: a folder for what the servers print.
        cores: of the machine.
        bar: the service's share of the engine's rate.
        plain: whether the plain endpoint takes part.
        peers: the folder of the peers' environments, where they take part.
    """
    engine = EngineAlone(subject, cores)
    best = find_best(engine, effort, report)
    with ExitStack() as stack:
        contest = None
        if peers is not None:
            running_peers = start_each_at_its_best(
                stack, subject, effort, report, logs, environments=peers, cores=cores
            )
            contest = Contest(running_peers, effort.round_seconds)
        served = stack.enter_context(service(subject, logs))
        others = [
            stack.enter_context(plain_endpoint(subject, threads, logs))
            for threads in (sorted({1, cores}) if plain else ())
        ]
        failed = 0

        def driven(target: Target, connections: int) -> float:
            nonlocal failed
            seen = drive(target.server.url, target.path, target.bodies, connections, effort.round_seconds)
            failed += seen.failed
            return seen.answers_a_second

        contestants: dict[str, Callable[[], float]] = {
            "engine": lambda: engine.texts_a_second(best, effort.round_seconds),
            "engine with tokenisation": lambda: engine.texts_a_second(best, effort.round_seconds, tokenise=True),
            **{f"service, {count}": lambda count=count: driven(served, count) for count in (1, 16, 64)},  # type: ignore[misc]
            **{other.name: lambda other=other: driven(other, 16) for other in others},  # type: ignore[misc]
            **(contest.contestants() if contest is not None else {}),
        }
        rates = take_turns(contestants, effort.rounds)
        _report_rates(subject, rates, best, bar, report)
        if contest is not None:
            contest.report(subject.label, rates, report)
        report.add(Figure(subject.label, "failed requests", failed, bar=at_most(0)))
        for connections in (16, 64):
            share = share_of_engine(engine, connections, cores)
            name = f"a service without overhead at {connections} connections ÷ engine"
            report.add(Figure(subject.label, name, share, note="simulated with measured calls"))
        with least_endpoint(subject, logs, cores) as least:
            _measure_lone_latency(engine, [served, least], effort, report)
    rate = float(np.mean(rates["engine"]))
    if bar is not None:
        measure_floor(engine, 1000 * (1 / bar.bound - 1) * cores / rate, effort, report, logs)
    return Rates(rate, float(np.mean(rates["service, 16"])))


def take_turns(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let each one run once a round, in an order that turns around, after one round that is not kept."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        names = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        for name in names:
            rate = contestants[name]()
            if number >= 0:
                rates[name].append(rate)
    return rates


def _report_rates(
    subject: Subject, rates: dict[str, list[float]], best: Arrangement, bar: Bar | None, report: Report
) -> None:
    for name, values in rates.items():
        unit, note = "texts/s", str(best) if name.startswith("engine") else ""
        report.add(Figure(subject.label, name, float(np.mean(values)), unit, (min(values), max(values)), note=note))
    for connections in CONNECTIONS:
        service_rates = rates[f"service, {connections}"]
        for against, limit in (("engine", bar), ("engine with tokenisation", None)):
            ratio = ratio_of_rounds(service_rates, rates[against])
            name = f"service at {connections} connections ÷ {against}"
            report.add(Figure(subject.label, name, ratio.value, interval=ratio.interval, bar=limit))
    plain = {name: values for name, values in rates.items() if name.startswith("plain")}
    if plain:
        better = max(plain, key=lambda name: float(np.mean(plain[name])))
        ratio = ratio_of_rounds(rates["service, 16"], plain[better])
        name = f"service at 16 connections ÷ {better}"
        report.add(Figure(subject.label, name, ratio.value, interval=ratio.interval, bar=at_least(PLAIN_BAR)))


def _measure_lone_latency(engine: EngineAlone, targets: Sequence[Target], effort: Effort, report: Report) -> None:
    """Median of a lone request over HTTP against the fastest single call in this process, on the same texts in turns.

    Turns are blocks: a request that follows a call into another copy of the weights would find none of its own in the
    processor's caches.
    """
    label, texts = engine.subject.label, engine.subject.texts
    medians: dict[str, list[float]] = {}
    failed = 0
    for block in range(-1, effort.lone_blocks):
        indices = [(block * _LONE_BLOCK + step) % len(texts) for step in range(_LONE_BLOCK)]
        encode = [_timed(partial(engine.classifiers[1].encode, TextItem(texts[index]))) for index in indices]
        taken = {"tokenisation": 1000 * float(np.median(encode))}
        for target in targets:
            bodies = [target.bodies[index] for index in indices]
            seen = drive(target.server.url, target.path, bodies, 1, 1.0)
            failed += seen.failed
            taken[target.name] = seen.p50_ms
        for threads, classifier in engine.classifiers.items():
            calls = [_timed(partial(classifier.run, [engine.subject.encoded[index]])) for index in indices]
            taken[f"call with {threads} threads"] = 1000 * float(np.median(calls))
        if block >= 0:
            for name, median in taken.items():
                medians.setdefault(name, []).append(median)
    typical = {name: float(np.median(values)) for name, values in medians.items()}
    for name, value in typical.items():
        report.add(Figure(label, f"lone latency, p50, {name}", value, "ms", (min(medians[name]), max(medians[name]))))
    fastest = min((name for name in typical if name.startswith("call")), key=lambda name: typical[name])
    report.add(Figure(label, "lone latency, failed requests", failed, bar=at_most(0)))
    served, *others = (target.name for target in targets)
    for name in (served, *others):
        ratio = ratio_of_rounds(medians[name], medians[fastest])
        bar = at_most(round(max(LONE_BAR, 1 + LONE_EXTRA_MS / typical[fastest]), 3)) if name == served else None
        figure = f"p50 at 1 connection of the {name} ÷ {fastest}"
        report.add(Figure(label, figure, ratio.value, interval=ratio.interval, bar=bar))


def _timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
