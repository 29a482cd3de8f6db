from __future__ import annotations

import errno
import os
import sys
import threading

import pytest

from service.scheduling import LOOP_SLICE_S, SYSTEM_SLICE_S, WORKER_SLICE_S, set_time_slice
from tests.threads import GET_ATTRIBUTES, in_thread, own_attributes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")


@pytest.mark.skipif(os.uname().machine not in GET_ATTRIBUTES, reason="the call's number is not known here")
@pytest.mark.parametrize("seconds", [LOOP_SLICE_S, WORKER_SLICE_S])
def test_a_thread_gets_the_slice_and_keeps_its_policy_and_priority(seconds: float) -> None:
    seen: list[tuple[int, int, int]] = []

    def work() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        if not all(set_time_slice(seconds) for _ in range(2)):
            return
        seen.append(own_attributes())
        in_thread(lambda: seen.append(own_attributes()))

    in_thread(work)
    if not seen:
        pytest.skip("this sandbox does not allow the call")
    (policy, nice, runtime), child = seen
    assert (policy, nice) == (os.SCHED_OTHER, 3)
    assert child[:2] == (os.SCHED_OTHER, 3)
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (6, 12):
        assert runtime == round(seconds * 1e9) != child[2]


@pytest.mark.skipif(os.uname().machine not in GET_ATTRIBUTES, reason="the call's number is not known here")
def test_a_thread_can_have_the_systems_own_slice_again() -> None:
    seen: list[tuple[int, int, int]] = []

    def work() -> None:
        seen.append(own_attributes())
        set_time_slice(LOOP_SLICE_S)
        set_time_slice(SYSTEM_SLICE_S)
        seen.append(own_attributes())

    in_thread(work)
    assert seen[0] == seen[1]


def test_a_system_that_does_not_tell_the_policy_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr("os.sched_getscheduler", refuse)
    assert not set_time_slice(LOOP_SLICE_S)


def test_an_architecture_whose_number_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    assert not set_time_slice(LOOP_SLICE_S)


def test_a_thread_that_somebody_has_given_another_policy_keeps_it() -> None:
    seen: list[object] = []

    def work() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        seen.extend([set_time_slice(LOOP_SLICE_S), os.sched_getscheduler(0)])

    in_thread(work)
    assert seen == [False, os.SCHED_BATCH]
