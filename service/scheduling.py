"""When threads get the processor: their time slices, where each can have its own (Linux since 6.12), and priority.

With every core at work, a thread that wakes for a moment waits until a worker's slice is over, unless its own slice is
shorter: then it goes first. An answer passes through several such moments.

Source: Linux, `sched_setattr(2)` and "EEVDF" in its scheduler documentation: `sched_runtime` of an ordinary thread.
`sched(7)`: its real-time policies.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WORKER_SLICE_S = 0.01
LOOP_SLICE_S = 0.0001
SYSTEM_SLICE_S = 0.0  # whatever the system gives
# The call has no wrapper in the C library; its number differs between architectures.
_CALLS = {"x86_64": 314, "aarch64": 274}
_RESET_ON_FORK = 1
_RESET_ON_FORK_POLICY = 0x40000000
# Size, policy, flags, nice, priority, then in nanoseconds runtime, deadline and period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def set_time_slice(seconds: float) -> bool:
    """Ask for a time slice for the thread that calls; False where the system refuses or has no such thing.

    Threads that it starts get the system's own again. A system that is too old for slices changes nothing.
    """
    number = _CALLS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    try:
        if os.sched_getscheduler(0) & ~_RESET_ON_FORK_POLICY != os.SCHED_OTHER:
            return False
        nice = os.getpriority(os.PRIO_PROCESS, 0)  # the call sets it as well
    except OSError:  # a C library or a sandbox without it
        return False
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, _RESET_ON_FORK, nice, 0, round(seconds * 1e9), 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)


@contextmanager
def real_time() -> Iterator[None]:
    """Give the calling thread the lowest real-time priority for a while, where the system allows it; else do nothing.

    Then no ordinary thread makes it wait. A short slice alone does not promise that: beside two busy workers a load
    generator still waited for 3 ms and more once in a hundred times. Only for a thread that sleeps most of the time: it
    takes what it wants. Threads and processes that it starts are ordinary.
    """
    allowed = _set_real_time()
    try:
        yield
    finally:
        if allowed:
            os.sched_setscheduler(0, os.SCHED_OTHER | _RESET_ON_FORK_POLICY, os.sched_param(0))


def _set_real_time() -> bool:
    if sys.platform != "linux":
        return False
    try:
        if os.sched_getscheduler(0) & ~_RESET_ON_FORK_POLICY != os.SCHED_OTHER:
            return False
        os.sched_setscheduler(0, os.SCHED_FIFO | _RESET_ON_FORK_POLICY, os.sched_param(1))
    except OSError:  # not root, a container without CAP_SYS_NICE, a sandbox
        return False
    return True
