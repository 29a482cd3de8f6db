"""Intervals and tests against known values, other implementations, and their own promise: coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student

from model_store.statistics import (
    Estimate,
    correlation,
    crossed_bootstrap,
    difference_of_proportions,
    mcnemar,
    paired_bootstrap,
    proportion,
    quantile_estimate,
    ratio_of_medians,
    ratio_of_rounds,
    student_quantile,
)


@given(only_first=st.integers(0, 400), only_second=st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_texts(only_first: int, only_second: int) -> None:
    discordant = only_first + only_second
    expected = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-7)


def test_mcnemar_stands_thousands_of_texts() -> None:
    assert mcnemar(5_000, 5_000) == 1.0
    assert mcnemar(4_000, 6_000) < 1e-80


def test_an_estimate_is_written_with_its_interval() -> None:
    estimate = Estimate(2.5, 2.0, 3.0)
    assert str(estimate) == "2.500 [2.000, 3.000]"
    assert estimate.interval == (2.0, 3.0)


def test_a_bootstrap_gives_the_same_interval_for_the_same_seed() -> None:
    samples = np.random.default_rng(0).normal(size=50)
    assert paired_bootstrap(np.mean, samples, seed=1) == paired_bootstrap(np.mean, samples, seed=1)
    assert paired_bootstrap(np.mean, samples, seed=1) != paired_bootstrap(np.mean, samples, seed=2)


def test_a_bootstrap_interval_of_a_mean_is_that_of_the_normal_theory() -> None:
    samples = np.random.default_rng(0).normal(10, 2, size=400)
    estimate = paired_bootstrap(lambda a: float(a.mean()), samples)
    half = 1.96 * samples.std() / 20
    assert estimate.value == pytest.approx(samples.mean())
    assert estimate.interval == pytest.approx((samples.mean() - half, samples.mean() + half), abs=0.02)


@pytest.mark.parametrize(("of_rows", "of_runs"), [(2.0, 1.0), (2.0, 0.0), (0.0, 1.0)])
def test_a_crossed_interval_has_what_rows_and_what_runs_differ_by(of_rows: float, of_runs: float) -> None:
    generator = np.random.default_rng(0)
    rows, runs = generator.normal(0, of_rows, 400), generator.normal(0, of_runs, 60)
    estimate = crossed_bootstrap(lambda chosen, which: float(rows[chosen].mean() + runs[which].mean()), 400, 60)
    half = 1.96 * np.sqrt(rows.var() / 400 + runs.var() / 60)
    assert estimate.value == pytest.approx(rows.mean() + runs.mean())
    assert estimate.interval == pytest.approx((estimate.value - half, estimate.value + half), rel=0.1, abs=0.02)
    again = crossed_bootstrap(lambda chosen, which: float(rows[chosen].mean() + runs[which].mean()), 400, 60)
    assert estimate == again


def test_about_95_of_100_bootstrap_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        samples = generator.normal(size=60)
        low, high = paired_bootstrap(lambda a: float(a.mean()), samples, seed=seed, resamples=300).interval
        held += low <= 0 <= high
    assert 0.90 <= held / 200 <= 0.98


def test_pairing_removes_what_both_sides_share() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 10, size=300)
    first, second = shared + 1, shared + generator.normal(0, 0.1, size=300)
    low, high = paired_bootstrap(lambda a, b: float(a.mean() - b.mean()), first, second).interval
    assert 0.9 < low < 1 < high < 1.1


def test_a_ratio_of_medians_is_the_known_one() -> None:
    estimate = ratio_of_medians(np.array([4.0, 6.0, 5.0] * 10), np.array([2.0, 3.0, 2.5] * 10))
    assert estimate.value == 2
    one_outlier = ratio_of_medians(np.array([4.0, 6.0, 5.0, 900.0]), np.array([2.0, 3.0, 2.5, 2.5]))
    assert one_outlier.value == pytest.approx(5.5 / 2.5)
    assert 1.5 < estimate.low <= 2 <= estimate.high < 2.5


def test_a_text_that_is_measured_again_makes_the_interval_of_a_ratio_no_narrower() -> None:
    generator = np.random.default_rng(0)
    new = generator.lognormal(0, 0.6, 40) + 1
    old = 3 * new - 2.5  # how much faster the new one is depends on the text
    once = ratio_of_medians(old, new)
    often = ratio_of_medians(*(np.repeat(times[:, None], 5, axis=1) for times in (old, new)))
    assert often.value == pytest.approx(once.value)
    assert often.interval == pytest.approx(once.interval)
    narrow = ratio_of_medians(np.repeat(old, 5), np.repeat(new, 5))
    assert narrow.high - narrow.low < 0.6 * (once.high - once.low)


def test_a_text_may_be_measured_less_often_than_others() -> None:
    old, new = np.array([[4.0, 6.0], [5.0, np.nan]]), np.array([[2.0, 3.0], [1.0, np.nan]])
    estimate = ratio_of_medians(old, new)
    assert estimate.value == 5 / 2
    assert estimate.interval == (5 / 2.5, 5 / 1)


def test_about_95_of_100_intervals_of_a_ratio_of_medians_hold_the_truth_however_often_texts_are_measured() -> None:
    generator = np.random.default_rng(1)
    many = generator.lognormal(0, 0.6, 400_000)
    truth = float(np.median(3 * many + 0.3) / np.median(many + 1))
    held = 0
    for _ in range(60):
        texts = generator.lognormal(0, 0.6, (50, 1))
        noise = generator.lognormal(0, 0.03, (2, 50, 5))
        estimate = ratio_of_medians((3 * texts + 0.3) * noise[0], (texts + 1) * noise[1])
        held += estimate.low <= truth <= estimate.high
    assert held / 60 >= 0.9


def test_students_quantile_is_scipys() -> None:
    for freedom in range(1, 500):
        assert student_quantile(freedom) == pytest.approx(student.ppf(0.975, freedom), rel=0, abs=1e-3)


@pytest.mark.parametrize("rounds", [2, 3, 6, 10])
def test_a_ratio_of_rounds_holds_the_truth_as_often_as_it_says(rounds: int) -> None:
    generator = np.random.default_rng(rounds)
    held = 0
    for _ in range(2_000):
        shared = generator.normal(0, 1, rounds)
        sides = [np.exp(shared + generator.normal(0, 0.1, rounds)) for _ in range(2)]
        estimate = ratio_of_rounds(1.5 * sides[0], sides[1])
        held += estimate.low <= 1.5 <= estimate.high
    assert 0.935 < held / 2_000 < 0.965


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0])])
def test_rounds_that_say_nothing_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two of each side"):
        ratio_of_rounds(np.array(first), np.array(second))


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (850, 1000)])
def test_a_proportions_interval_is_wilsons(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    found = proportion(hits, count)
    assert found.value == hits / count
    assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 2_000))
def test_a_difference_of_proportions_agrees_with_mcnemars_test(only_first: int, only_second: int, others: int) -> None:
    found = difference_of_proportions(only_first, only_second, only_first + only_second + others)
    assert -1 <= found.low <= found.high <= 1
    assert found.value == (only_first - only_second) / (only_first + only_second + others)
    p = mcnemar(only_first, only_second)
    if found.low > 0 or found.high < 0:
        assert p < 0.13  # the test is exact, and a little more careful
    if p < 0.02:
        assert found.low > 0 or found.high < 0


@pytest.mark.parametrize("alike", [[3.0, 3.0, 3.0], [0.1, 0.1 + 1e-17, 0.1 - 1e-17], [0.0, 0.0, 0.0]])
def test_of_numbers_that_are_all_alike_the_caller_says_what_the_correlation_is(alike: list[float]) -> None:
    numbers = np.array([1.0, 2.0, 4.0])
    assert correlation(numbers, np.array(alike), constant=0.0) == 0
    assert np.isnan(correlation(np.array(alike), numbers, constant=np.nan))
    assert correlation(numbers, 1 - 2 * numbers, constant=0.0) == pytest.approx(-1)


def test_draws_without_a_value_are_left_out_of_the_interval() -> None:
    estimate = paired_bootstrap(lambda a: float("nan") if a.max() == 0 else float(a.max()), np.array([0.0, 1.0]))
    assert estimate == Estimate(1.0, 1.0, 1.0)


def test_a_statistic_that_never_has_a_value_has_no_interval() -> None:
    assert np.isnan(paired_bootstrap(lambda _: float("nan"), np.ones(3)).interval).all()


@pytest.mark.parametrize("samples", [(), (np.array([]),), (np.ones(2), np.ones(3))])
def test_samples_that_can_not_be_paired_are_refused(
    samples: tuple[np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> None:
    with pytest.raises(ValueError, match="one length"):
        paired_bootstrap(lambda *_: 0.0, *samples)


@pytest.mark.parametrize(("quantile", "count"), [(0.5, 100), (0.95, 400), (0.99, 1000)])
def test_about_95_of_100_quantile_intervals_hold_the_truth(quantile: float, count: int) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        low, high = quantile_estimate(generator.uniform(size=count), quantile).interval
        held += low <= quantile <= high
    assert 0.93 <= held / 500 <= 0.995


def test_a_quantile_of_few_samples_ends_at_the_extremes() -> None:
    assert quantile_estimate(np.array([3.0, 1.0, 2.0]), 0.99).interval == (2.0, 3.0)
    assert quantile_estimate(np.array([3.0, 1.0, 2.0]), 0.5) == Estimate(2.0, 1.0, 3.0)
    assert quantile_estimate(np.array([7.0]), 0.5) == Estimate(7.0, 7.0, 7.0)


def test_a_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        quantile_estimate(np.array([]), 0.5)
