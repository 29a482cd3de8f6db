"""Real-time priority for the thread that generates a load.

Source: Linux, `sched(7)`, its real-time policies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def real_time() -> Iterator[None]:
    """Give the calling thread the lowest real-time priority for a while, where the system allows it; else do nothing.

    Then no ordinary thread makes it wait. A short slice alone does not promise that: beside two busy workers a load
    generator still waited for 3 ms and more once in a hundred times. Only for a thread that sleeps most of the time: it
    takes what it wants, and a closed loop wants a whole core when its server goes away and every request fails at once.
    Threads and processes that it starts are ordinary.
    """
    allowed = _set_real_time()
    try:
        yield
    finally:
        if allowed:
            os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))


def _set_real_time() -> bool:
    if sys.platform != "linux":
        return False
    try:
        if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
            return False
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:  # not root, a container without CAP_SYS_NICE, a sandbox
        return False
    return True
