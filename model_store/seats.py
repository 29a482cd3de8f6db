"""Which processors the threads of one call are kept on, where a call takes all that there are.

A thread that spins while it waits is work to the system like any other. When the calling thread wakes, and no
processor is idle, the system may put it where another thread of the call spins. Both then take turns on that one for
milliseconds, each waiting for the other, with the other processor idle.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seats:
    """One processor for each thread of a call."""

    caller: int
    others: tuple[int, ...]


def seats_for(threads: int) -> Seats | None:
    """A processor for each of several threads; None where there are more or fewer, or the system has no such thing.

    Where there are more, other processes that choose alike would sit on the same few.
    """
    if sys.platform != "linux" or threads < 2:
        return None
    try:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed)  # a sandbox may refuse
    except OSError:
        return None
    return Seats(allowed[0], tuple(allowed[1:])) if len(allowed) == threads else None
