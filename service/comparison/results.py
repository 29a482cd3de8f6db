"""From raw samples to figures with intervals, and the sentences that the intervals allow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model_store.machine import Machine
from model_store.manifest import Problem
from model_store.statistics import CONFIDENCE, Estimate, quantile_estimate, ratio_of_medians, ratio_of_rounds
from service.comparison.measure import Answer, Key, Sample, Sides
from service.comparison.quality import Quality
from service.comparison.texts import Example

QUANTILES = (0.50, 0.95, 0.99)


class Figures(BaseModel):
    """Base of what a report is made of."""

    model_config = ConfigDict(frozen=True)


class LoadFigures(Figures):
    """One model at one number of connections: milliseconds with 95 % intervals, answers a second."""

    p50_ms: Estimate
    p95_ms: Estimate
    p99_ms: Estimate
    throughput: float
    requests: int


class ModelFigures(Figures):
    """One of the two models; `accuracy` is null without labels and for regressions, which have `pearson` instead."""

    reference: str
    id: str
    version: int
    file: str
    precision: str
    provider: str
    threads: int
    bytes: int
    accuracy: Estimate | None
    pearson: Estimate | None
    resident_bytes: int | None
    connections: dict[str, LoadFigures]


class Comparison(Figures):
    """Everything that a comparison found; ratios are above 1 where B (the successor) is better.

    Attributes:
        speedup: median latency of A ÷ that of B, at one connection.
        throughput_ratio: answers a second of B ÷ those of A, at many connections.
        size_ratio: bytes of A's file ÷ those of B's.
        agreement: share of texts on which both give the same label; for regressions, the concordance of their numbers.
        retention: B's accuracy (for regressions: Pearson correlation) ÷ A's.
        accuracy_difference: B's accuracy minus A's, on the same texts; null for regressions.
        pearson_difference: for regressions, B's correlation with the labels minus A's, on the same texts.
        mcnemar_p: exact two-sided p-value of both being right equally often.
    """

    problem: Problem
    a: ModelFigures
    b: ModelFigures
    speedup: Estimate
    throughput_ratio: Estimate
    size_ratio: float
    agreement: Estimate
    retention: float | None
    accuracy_difference: Estimate | None
    pearson_difference: Estimate | None
    mcnemar_p: float | None
    texts: int
    labelled: int
    conclusions: tuple[str, ...]
    machine: Machine
    generator: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the samples were taken on and under.

    Attributes:
        machine: where the load generator ran.
        resident: bytes resident after the measurement; None where the server was not started here.
        seconds: how long the whole comparison took.
    """

    machine: Machine
    resident: dict[Key, int | None]
    seconds: float


def summarise(
    sides: Sides, examples: Sequence[Example], samples: Sequence[Sample], conditions: Conditions
) -> Comparison:
    """Compute every figure; `samples` must hold every text at the larger number of connections, for both models."""
    many = max(sample.connections for sample in samples)
    answers = {key: _answers(samples, key, many) for key in _KEYS}
    quality = Quality(sides.a.served.problem, [example.label for example in examples], answers["a"], answers["b"])
    latencies = {key: _latencies(samples, key, 1) for key in _KEYS}
    block_seconds = {key: _block_seconds(samples, key, many) for key in _KEYS}
    speedup = ratio_of_medians(*(_latencies_by_text(samples, key, 1) for key in _KEYS))
    throughput_ratio = ratio_of_rounds(block_seconds["a"], block_seconds["b"])
    figures: dict[Key, ModelFigures] = {}
    for key, side in zip(_KEYS, sides, strict=True):
        figures[key] = ModelFigures(
            reference=side.reference,
            **side.served.model_dump(include={"id", "version", "file", "precision", "provider", "threads", "bytes"}),
            accuracy=quality.accuracy(key),
            pearson=quality.pearson(key),
            resident_bytes=conditions.resident[key],
            connections={
                "1": _load_figures(latencies[key], float(latencies[key].sum())),
                str(many): _load_figures(_latencies(samples, key, many), float(block_seconds[key].sum())),
            },
        )
    difference, mcnemar_p, pearson_difference = quality.difference(), quality.mcnemar_p(), quality.pearson_difference()
    conclusions = [*conclude(speedup, throughput_ratio, many, difference, mcnemar_p)]
    if pearson_difference is not None:
        conclusions.append(_conclude_correlation(pearson_difference))
    return Comparison(
        problem=sides.a.served.problem,
        a=figures["a"],
        b=figures["b"],
        speedup=speedup,
        throughput_ratio=throughput_ratio,
        size_ratio=figures["a"].bytes / figures["b"].bytes,
        agreement=quality.agreement(),
        retention=quality.retention(),
        accuracy_difference=difference,
        pearson_difference=pearson_difference,
        mcnemar_p=mcnemar_p,
        texts=len(examples),
        labelled=len(quality.labelled),
        conclusions=(*conclusions, *_unshared_labels(sides)),
        machine=conditions.machine,
        generator="closed loop, one process"
        + (" on the servers' machine" if conditions.resident["a"] is not None else ""),
        seconds=conditions.seconds,
    )


def conclude(
    speedup: Estimate,
    throughput_ratio: Estimate,
    connections: int,
    difference: Estimate | None,
    mcnemar_p: float | None,
) -> tuple[str, ...]:
    """What the intervals allow to be said, in sentences; "no difference shown" where they hold the neutral value.

    Of accuracy McNemar's test has to allow it too.
    """
    sentences = [
        _conclude_ratio(speedup, "latency at 1 connection", ("faster", "slower")),
        _conclude_ratio(throughput_ratio, f"throughput at {connections} connections", ("higher", "lower")),
    ]
    if difference is not None:
        points = f"{100 * difference.value:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
        if difference.low <= 0 <= difference.high or (mcnemar_p or 0) >= 1 - CONFIDENCE:
            sentences.append(f"No difference in accuracy shown: B differs from A by {points}.")
        else:
            sentences.append(f"B is {'more' if difference.value > 0 else 'less'} accurate than A: {points}.")
    return tuple(sentences)


def _conclude_correlation(difference: Estimate) -> str:
    figure = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    if difference.low <= 0 <= difference.high:
        return f"No difference in correlation with the labels shown: B differs from A by {figure}."
    return f"B's correlation with the labels is {'higher' if difference.value > 0 else 'lower'} than A's: {figure}."


def _unshared_labels(sides: Sides) -> tuple[str, ...]:
    """A sentence where one model can't give an answer that the other can."""
    unshared = sorted(set(sides.a.served.labels) ^ set(sides.b.served.labels))
    if sides.a.served.problem == "regression" or not unshared:
        return ()
    return (f"Only one of the two models knows these labels: {', '.join(unshared)}.",)


def _conclude_ratio(ratio: Estimate, what: str, words: tuple[str, str]) -> str:
    figure = f"{ratio.value:.2f} × [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.low <= 1 <= ratio.high:
        return f"No difference in {what} shown: {figure}."
    return f"B is {words[0] if ratio.value > 1 else words[1]} in {what}: {figure}."


_KEYS: tuple[Key, Key] = ("a", "b")


def _answers(samples: Sequence[Sample], key: Key, connections: int) -> list[Answer]:
    """Each text's first answer, in the order of the texts."""
    first: dict[int, Answer] = {}
    for sample in samples:
        if (sample.model, sample.connections) == (key, connections):
            first.setdefault(sample.text, sample.answer)
    return [first[text] for text in range(len(first))]


def _latencies(samples: Sequence[Sample], key: Key, connections: int) -> NDArray[np.float64]:
    return np.array([s.seconds for s in samples if (s.model, s.connections) == (key, connections)])


def _latencies_by_text(samples: Sequence[Sample], key: Key, connections: int) -> NDArray[np.float64]:
    """Latencies `(texts, times)` in the order in which texts were first asked, NaN behind those asked less often."""
    asked: dict[int, list[float]] = {}
    for sample in samples:
        if (sample.model, sample.connections) == (key, connections):
            asked.setdefault(sample.text, []).append(sample.seconds)
    return np.array([*itertools.zip_longest(*asked.values(), fillvalue=np.nan)]).T


def _block_seconds(samples: Sequence[Sample], key: Key, connections: int) -> NDArray[np.float64]:
    """How long each block took, first request to last answer; blocks `i` of both models hold the same requests."""
    spans: dict[int, tuple[float, float]] = {}
    for sample in samples:
        if (sample.model, sample.connections) == (key, connections):
            start, end = spans.get(sample.block, (np.inf, -np.inf))
            spans[sample.block] = (min(start, sample.started), max(end, sample.started + sample.seconds))
    return np.array([spans[block][1] - spans[block][0] for block in sorted(spans)])


def _load_figures(seconds: NDArray[np.float64], busy_seconds: float) -> LoadFigures:
    p50, p95, p99 = (quantile_estimate(1000 * seconds, quantile) for quantile in QUANTILES)
    return LoadFigures(
        p50_ms=p50, p95_ms=p95, p99_ms=p99, throughput=len(seconds) / busy_seconds, requests=len(seconds)
    )
