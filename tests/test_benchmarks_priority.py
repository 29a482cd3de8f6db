from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

import pytest

from service.scheduling import LOOP_SLICE_S, set_time_slice
from tests.benchmarks.priority import real_time
from tests.threads import GET_ATTRIBUTES, in_thread, own_attributes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="policies of Linux")


def policy() -> int:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


@pytest.mark.skipif(os.uname().machine not in GET_ATTRIBUTES, reason="the call's number is not known here")
def test_a_thread_goes_before_all_ordinary_ones_for_a_while_and_those_that_it_starts_do_not() -> None:
    seen: list[int] = []
    slices: list[int] = []

    def work() -> None:
        set_time_slice(LOOP_SLICE_S)
        slices.append(own_attributes()[2])
        with suppress(KeyboardInterrupt), real_time():
            seen.append(policy())
            in_thread(lambda: seen.append(policy()))
            raise KeyboardInterrupt
        seen.append(policy())
        slices.append(own_attributes()[2])

    in_thread(work)
    if seen[0] == os.SCHED_OTHER:
        pytest.skip("this user may not have real-time priority")
    assert seen == [os.SCHED_FIFO, os.SCHED_OTHER, os.SCHED_OTHER]
    assert slices[0] == slices[1]


def test_real_time_priority_that_is_refused_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not you")

    monkeypatch.setattr("os.sched_setscheduler", refuse)
    with real_time():
        assert policy() == os.SCHED_OTHER


def test_real_time_priority_is_not_given_to_a_thread_that_somebody_has_given_another_policy() -> None:
    seen: list[int] = []

    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with real_time():
            seen.append(policy())
        seen.append(policy())

    in_thread(work)
    assert seen == [os.SCHED_BATCH, os.SCHED_BATCH]
