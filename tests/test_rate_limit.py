"""The token bucket: its rate, its depth, what it says to wait, and processes that share it."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rate_limit import TokenBucket


def test_one_seconds_worth_is_there_at_once_and_then_one_each_interval() -> None:
    bucket = TokenBucket(4)
    assert [bucket.take(100.0) for _ in range(4)] == [0.0] * 4
    assert bucket.take(100.0) == pytest.approx(0.25)
    assert bucket.take(100.1) == pytest.approx(0.15)
    assert bucket.take(100.25) == 0.0
    assert bucket.take(100.25) == pytest.approx(0.25)


def test_a_rate_below_one_a_second_lets_one_request_through_each_interval() -> None:
    bucket = TokenBucket(0.1)
    assert bucket.take(5.0) == 0.0
    assert bucket.take(6.0) == pytest.approx(9.0)
    assert bucket.take(15.0) == 0.0


def test_what_was_not_used_is_kept_for_one_second_and_no_longer() -> None:
    bucket = TokenBucket(2)
    assert bucket.take(0.0) == 0.0
    assert [bucket.take(1_000.0) for _ in range(3)] == [0.0, 0.0, pytest.approx(0.5)]


@given(st.floats(0.01, 1e5), st.lists(st.floats(0, 3), max_size=60), st.floats(0, 1e6))
def test_in_no_span_are_more_let_through_than_rate_and_depth_allow_and_waiting_as_told_suffices(
    rate: float, pauses: list[float], start: float
) -> None:
    bucket = TokenBucket(rate)
    now, taken = start, []
    for pause in pauses:
        now += pause
        wait_s = bucket.take(now)
        if wait_s:
            assert bucket.take(now) == pytest.approx(wait_s)
            now += wait_s
            assert bucket.take(now) == 0.0
        taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            span = taken[last] - taken[first]
            assert last - first + 1 <= rate * span + max(1.0, rate) + 1e-2 + 1e-6 * rate * now


def drain(file: str, seconds: float, taken: multiprocessing.Queue[int]) -> None:
    bucket = TokenBucket(200, Path(file))
    end = time.monotonic() + seconds
    count = 0
    while (now := time.monotonic()) < end:
        count += bucket.take(now) == 0.0
    taken.put(count)


@pytest.mark.slow
def test_processes_share_a_bucket(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    taken: multiprocessing.Queue[int] = context.Queue()
    started = time.monotonic()
    processes = [context.Process(target=drain, args=(str(tmp_path / "rate"), 0.5, taken)) for _ in range(3)]
    for process in processes:
        process.start()
    counts = [taken.get(timeout=60) for _ in processes]
    elapsed = time.monotonic() - started
    for process in processes:
        process.join(20)
    assert 200 <= sum(counts) <= 200 + 200 * elapsed


def test_a_bucket_of_a_file_goes_on_where_another_left_it(tmp_path: Path) -> None:
    first, second = TokenBucket(1, tmp_path / "rate"), TokenBucket(1, tmp_path / "rate")
    assert first.take(10.0) == 0.0
    assert second.take(10.0) == pytest.approx(1.0)
    first.close()
    assert second.take(11.0) == 0.0
    second.close()
    TokenBucket(1).close()
