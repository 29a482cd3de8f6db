"""When threads get the processor: their time slices, where each can have its own (Linux since 6.12).

With every core at work, a thread that wakes for a moment waits until a worker's slice is over, unless its own slice is
shorter: then it goes first. An answer passes through several such moments.

Source: Linux, `sched_setattr(2)` and "EEVDF" in its scheduler documentation: `sched_runtime` of an ordinary thread.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

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
