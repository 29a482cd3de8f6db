"""Intervals and tests for comparisons: used by the builder's report and by the comparison over HTTP (numpy only).

Sources: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), ch. 13, for percentile intervals;
Dietterich, "Approximate statistical tests" (1998), for McNemar's test; David & Nagaraja, "Order Statistics" (2003),
7.1, for intervals of quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
CONFIDENCE = 0.95
_NORMAL = 1.959964
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646)

Samples = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def interval(self) -> tuple[float, float]:
        """`(low, high)`."""
        return self.low, self.high


def paired_bootstrap(
    statistic: Callable[..., float], *samples: Samples, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """`statistic(*samples)` with its percentile interval, resampling the same positions of every sample `(n, …)`.

    Pairing removes what both sides share: the text's difficulty, the moment's load on the machine. What was measured
    several times is one position, with its repeats behind it: they are not independent, and counted as if they were
    they would make the interval too narrow (a cluster bootstrap; Davison & Hinkley, "Bootstrap Methods" (1997), 3.8).

    Raises:
        ValueError: the samples are empty or not of one length.
    """
    lengths = {len(sample) for sample in samples}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError("a paired bootstrap needs samples of one length, at least 1")
    (count,) = lengths
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for index in range(resamples):
        chosen = generator.integers(0, count, count)
        draws[index] = statistic(*(sample[chosen] for sample in samples))
    return _estimate(float(statistic(*samples)), draws)


def crossed_bootstrap(statistic: Callable[[Samples, Samples], float], rows: int, runs: int) -> Estimate:
    """A statistic of `runs` trainings judged on the same `rows`, with its percentile interval: both are resampled.

    The interval is then of the method, and not of the models that happened to be trained. Of few runs it is too narrow
    where they differ by more than rows do: of three it then holds the truth in 75 % of cases (1 - 2·(1/2)^3), not 95.

    Source: Owen, "The pigeonhole bootstrap" (2007).

    Args:
        statistic: of chosen positions of rows and of runs, each with repetitions.
        rows: how many there are, at least 1.
        runs: how many there are, at least 1.
    """
    generator = np.random.default_rng(0)
    draws = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        draws[index] = statistic(generator.integers(0, rows, rows), generator.integers(0, runs, runs))
    return _estimate(statistic(np.arange(rows), np.arange(runs)), draws)


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = (
        np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail]) if np.isfinite(draws).any() else (np.nan, np.nan)
    )
    return Estimate(value, float(low), float(high))


def ratio_of_rounds(numerator: Samples, denominator: Samples) -> Estimate:
    """Geometric mean of the ratios of two sides, round by round measured next to each other, each `(n,)` and positive.

    The interval is Student's, on logarithms: a bootstrap's over a handful of rounds is half as wide as it should be.

    Raises:
        ValueError: there are not two rounds, or not as many of each side.
    """
    if len(numerator) != len(denominator) or len(numerator) < 2:
        raise ValueError("a ratio of rounds needs at least two of each side")
    logs = np.log(numerator) - np.log(denominator)
    middle = float(logs.mean())
    spread = student_quantile(len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Estimate(math.exp(middle), math.exp(middle - spread), math.exp(middle + spread))


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, within 0.001.

    Source: Abramowitz & Stegun (1972), 26.7.5, and their table 26.10 where that is too coarse.
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = _NORMAL
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


def proportion(hits: int, count: int) -> Estimate:
    """A share with Wilson's score interval, which holds for few and for extreme ones too.

    Source: Wilson, "Probable inference" (1927).
    """
    share, square = hits / count, _NORMAL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    spread = _NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return Estimate(share, max(0.0, middle - spread), min(1.0, middle + spread))


def difference_of_proportions(only_first: int, only_second: int, count: int) -> Estimate:
    """The first share minus the second, of the same `count` cases, by those that only one of the two has.

    Source: Bonett & Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data" (2012): it fits McNemar's test, where a bootstrap of a few cases is too narrow.
    """
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    middle = first - second
    spread = _NORMAL * math.sqrt((first + second - middle**2) / (count + 2))
    return Estimate((only_first - only_second) / count, max(-1.0, middle - spread), min(1.0, middle + spread))


def ratio_of_medians(numerator: Samples, denominator: Samples) -> Estimate:
    """Median of `numerator` ÷ median of `denominator`, pair by pair measured next to each other.

    Both are `(texts,)` or `(texts, times)`, NaN where a text was measured less often than others: texts are resampled,
    each with all of its times, because how much faster one side is depends on the text.
    """
    return paired_bootstrap(lambda a, b: float(np.nanmedian(a) / np.nanmedian(b)), numerator, denominator)


def correlation(first: Samples, second: Samples, *, constant: float) -> float:
    """Pearson's correlation of two sides' numbers `(n,)`; `constant` where those of a side are all alike."""
    if all_alike(first) or all_alike(second):
        return constant
    return float(np.corrcoef(first, second)[0, 1])


def all_alike(numbers: Samples) -> bool:
    """Whether numbers `(n,)` are all the same, but for rounding."""
    return bool(np.ptp(numbers) <= 1e-9 * np.abs(numbers).max())


def concordance(first: Samples, second: Samples) -> float:
    """How far two sides' numbers `(n,)` are the same: their correlation, less what another scale or offset takes away.

    `2·cov / (var₁ + var₂ + (mean₁ - mean₂)²)`, in [-1, 1]; 1 where all numbers of both are one.

    Source: Lin, "A concordance correlation coefficient to evaluate reproducibility" (1989).
    """
    distance = float(np.square(np.subtract(first, second)).mean())
    spread = float(np.var(first) + np.var(second) + (np.mean(first) - np.mean(second)) ** 2)
    return 1 - distance / spread if spread else 1.0


def quantile_estimate(samples: Samples, quantile: float) -> Estimate:
    """A quantile of `(n,)` samples with its distribution-free interval from order statistics.

    Where there are too few samples for the confidence asked for, the interval ends at the extremes.

    Raises:
        ValueError: there are no samples.
    """
    if len(samples) == 0:
        raise ValueError("a quantile needs at least one sample")
    ordered = np.sort(samples)
    count = len(ordered)
    spread = _NORMAL * math.sqrt(count * quantile * (1 - quantile))
    low = max(0, math.floor(count * quantile - spread) - 1)
    high = min(count - 1, math.ceil(count * quantile + spread))
    return Estimate(float(np.quantile(ordered, quantile)), float(ordered[low]), float(ordered[high]))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that two classifiers are right equally often.

    Args:
        only_first: texts that only the first classifier got right.
        only_second: texts that only the second got right.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    fewer = min(only_first, only_second)
    log_half = discordant * math.log(0.5)
    tail = math.fsum(
        math.exp(math.lgamma(discordant + 1) - math.lgamma(k + 1) - math.lgamma(discordant - k + 1) + log_half)
        for k in range(fewer + 1)
    )
    return min(1.0, 2 * tail)
