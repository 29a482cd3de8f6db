"""Waking at exact times, where an event loop's own timers are exact to a millisecond.

Source: Linux, `timerfd_create(2)`.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter

WaitUntil = Callable[[float], Coroutine[object, object, None]]

_ABSOLUTE = 1
_NO_TIMER = -1
# Seconds and nanoseconds of the interval, which is none, and of the time.
_SPECIFICATION = struct.Struct("@4l")


def open_system_timer() -> int:
    """Open a timer of `perf_counter`'s clock that can be waited for as a file, or return -1 where there are none."""
    if sys.platform != "linux":
        return _NO_TIMER
    # From Python 3.13 on, `os.timerfd_create`.
    return int(ctypes.CDLL(None).timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))


@contextmanager
def exact_timer(open_timer: Callable[[], int] = open_system_timer) -> Iterator[WaitUntil]:
    """Give one task of the running event loop what wakes it at a time of `perf_counter`, never before.

    Args:
        open_timer: where it returns -1, the loop's own timers serve.
    """
    timer = open_timer()
    if timer == _NO_TIMER:
        yield _sleep_until
        return
    set_timer = ctypes.CDLL(None).timerfd_settime
    loop = asyncio.get_running_loop()
    rung = asyncio.Event()  # set by `ring`, cleared by `wait_until` before it sets the timer

    def ring() -> None:
        with suppress(BlockingIOError):  # it was set anew since it rang, for another task
            os.read(timer, 8)
            rung.set()

    async def wait_until(due: float) -> None:
        while perf_counter() < due:
            rung.clear()
            set_timer(timer, _ABSOLUTE, _SPECIFICATION.pack(0, 0, *divmod(math.ceil(due * 1e9), 10**9)), None)
            await rung.wait()

    loop.add_reader(timer, ring)
    try:
        yield wait_until
    finally:
        loop.remove_reader(timer)
        os.close(timer)


async def _sleep_until(due: float) -> None:
    """Return at `due` or within the loop's next turn, not before: timers round, and may fire a millisecond early."""
    while (delay := due - perf_counter()) > 0:  # noqa: ASYNC110 - it waits for a time, not for another task
        await asyncio.sleep(delay)
