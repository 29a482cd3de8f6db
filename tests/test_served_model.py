"""When a lone request takes the session with all cores."""

from __future__ import annotations

import pytest

from service.served_model import LONE_PAUSE_S, LONE_WITHIN_S, LoneSession
from tests.fakes import FakeClassifier


@pytest.fixture
def lone() -> LoneSession:
    return LoneSession(FakeClassifier())


def test_the_first_call_is_one_cores(lone: LoneSession) -> None:
    assert not lone.pays(0.0)


def test_a_call_that_follows_another_soon_pays_and_one_after_a_pause_does_not(lone: LoneSession) -> None:
    lone.ended = 10.0
    assert lone.pays(10.0 + LONE_WITHIN_S / 2)
    assert not lone.pays(10.0 + 2 * LONE_WITHIN_S)


def test_where_one_core_is_faster_it_is_left_off_for_a_while_and_then_tried_again(lone: LoneSession) -> None:
    lone.ended = 10.0
    for _ in range(10):
        lone.learn(0.012, 0.006, 10.0)
    assert not lone.pays(10.0)
    lone.ended = 10.0 + LONE_PAUSE_S
    assert lone.pays(lone.ended)


def test_a_single_slow_call_does_not_count_for_more_than_any(lone: LoneSession) -> None:
    lone.ended = 10.0
    for _ in range(20):
        lone.learn(0.004, 0.006, 10.0)
    lone.learn(5.0, 0.006, 10.0)
    assert lone.pays(10.0)


def test_calls_that_are_faster_keep_it(lone: LoneSession) -> None:
    lone.ended = 10.0
    for _ in range(100):
        lone.learn(0.005, 0.006, 10.0)
    assert lone.pays(10.0)
