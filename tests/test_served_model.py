"""When a lone request takes the session with all cores."""

from __future__ import annotations

import pytest

from service.served_model import LONE_WITHIN_S, TRY_EVERY, LoneSession
from tests.fakes import FakeClassifier


@pytest.fixture
def lone() -> LoneSession:
    return LoneSession(FakeClassifier(), ended=10.0)


def taken(lone: LoneSession, one_core: float, all_cores: float, calls: int, *, asleep: float = 2.0) -> list[bool]:
    """Which of so many calls took all cores, where calls take these shares of 6 ms, `asleep` after a pause of those."""
    took: list[bool] = []
    now = lone.ended
    for _ in range(calls):
        took.append(lone.takes())
        started = now + 0.0005
        awake = started - lone.all_cores_ended <= LONE_WITHIN_S
        now = started + 0.006 * (one_core if not took[-1] else all_cores if awake else asleep)
        lone.learn(started, now, 0.006, all_cores=took[-1])
        lone.ended = now
    return took


def test_the_first_call_and_one_after_a_pause_are_one_cores(lone: LoneSession) -> None:
    assert not LoneSession(FakeClassifier()).may(0.0)
    assert lone.may(10.0 + LONE_WITHIN_S / 2)
    assert not lone.may(10.0 + 2 * LONE_WITHIN_S)


def test_where_all_cores_are_faster_most_calls_take_them_and_some_see_what_one_takes(lone: LoneSession) -> None:
    took = taken(lone, 1.3, 1.1, 10 * TRY_EVERY)
    assert took[-2 * TRY_EVERY :].count(False) == 4
    assert lone.one_core > 1.15


def test_where_one_core_is_faster_most_calls_take_it(lone: LoneSession) -> None:
    took = taken(lone, 1.0, 1.9, 10 * TRY_EVERY)
    assert took[-2 * TRY_EVERY :].count(True) == 4


def test_they_change_with_the_times(lone: LoneSession) -> None:
    taken(lone, 1.0, 1.9, 10 * TRY_EVERY)
    took = taken(lone, 1.2, 0.8, 40 * TRY_EVERY)
    assert took[-TRY_EVERY:].count(True) == TRY_EVERY - 2


def test_a_single_slow_call_counts_for_no_more_than_twice_the_predicted(lone: LoneSession) -> None:
    taken(lone, 1.2, 0.8, 2 * TRY_EVERY)
    lone.learn(lone.ended, lone.ended + 5.0, 0.006, all_cores=True)
    assert lone.all_cores <= 0.95


def test_neighbours_that_slow_one_core_down_leave_all_cores_to_be_judged(lone: LoneSession) -> None:
    took = taken(lone, 1.9, 6.0, 10 * TRY_EVERY)
    assert took[-2 * TRY_EVERY :].count(True) == 4


def test_threads_that_sleep_before_every_call_are_judged_by_that(lone: LoneSession) -> None:
    now = 10.0
    for _ in range(60):  # pairs of requests: the first of each takes one core and is not learned from
        now += 1.0
        lone.ended = now
        all_cores = lone.takes()
        lone.learn(now, now + 0.006 * (1.9 if all_cores else 1.0), 0.006, all_cores=all_cores)
    assert lone.all_cores > 1.15 * lone.one_core
