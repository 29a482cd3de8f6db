"""A token bucket for each key, shared by all processes of a server."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATE = struct.Struct("d")


class TokenBucket:
    """So many requests a second, and at most one second's worth of them at once.

    The whole state is one number, the time at which the bucket will be full again (the generic cell rate algorithm), so
    that processes can share it in eight bytes of a file.

    Args:
        rate: requests a second.
        file: what the processes share; None: this process is alone.
    """

    def __init__(self, rate: float, file: Path | None = None) -> None:
        self.rate = rate
        # What an empty bucket needs to be full; of a rate below one a second, one request.
        self._depth_s = max(1.0, rate) / rate
        self._lock: int | None = None
        self._state = mmap.mmap(-1, _STATE.size)
        if file is not None:
            self._lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._lock, _STATE.size)
            self._state = mmap.mmap(self._lock, _STATE.size)

    def take(self, now: float) -> float:
        """Take one request out: 0, or if there is none the seconds until there will be.

        Args:
            now: seconds of a clock that all processes share.
        """
        with self._held():
            full_at = max(now, _STATE.unpack_from(self._state)[0]) + 1 / self.rate
            # A thousandth of a request for rounding: who waits as told is let in.
            wait_s: float = full_at - now - self._depth_s
            if wait_s > 1e-3 / self.rate:
                return wait_s
            _STATE.pack_into(self._state, 0, full_at)
            return 0.0

    def close(self) -> None:
        """Let go of the file."""
        self._state.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _held(self) -> Iterator[None]:
        """No other process is between its look at the bucket and its change; one that dies there lets go."""
        if self._lock is None:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
