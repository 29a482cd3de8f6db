"""Processes that belong together, however they were started: paused, continued and ended as one.

Serving systems start processes that start others, some in sessions of their own, and some outlive SIGTERM. What all of
them share is the environment that they inherit: a variable in it marks them.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

import psutil

from tests.benchmarks.peers.errors import PeerError

_VARIABLE = "SUCCESSOR_BENCHMARK_FAMILY"
_GIVE_UP_SECONDS = 10.0
_POLL_SECONDS = 0.01


class Family:
    """All processes that were started with `environment()`, and their descendants; ended when the block is left."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._known: set[psutil.Process] = set()  # whoever was seen: some hide their environment later

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def environment(self) -> dict[str, str]:
        """This process's environment with the mark."""
        return {**os.environ, _VARIABLE: self._mark}

    def processes(self) -> list[psutil.Process]:
        """Those that live; a process that has ended and is not waited for yet does not."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_VARIABLE) == self._mark:
                    self._known.add(process)
        for process in list(self._known):
            with suppress(psutil.Error):
                self._known.update(process.children(recursive=True))
        self._known = {process for process in self._known if _lives(process)}
        return list(self._known)

    def pause(self) -> None:
        """Stop all of them: they take no processor until `resume`."""
        self._until_none_is_left(lambda process: process.status() != psutil.STATUS_STOPPED, psutil.Process.suspend)

    def resume(self) -> None:
        """Let them go on."""
        self._until_none_is_left(lambda process: process.status() == psutil.STATUS_STOPPED, psutil.Process.resume)

    def end(self) -> None:
        """Kill whoever is left."""
        self._until_none_is_left(lambda _: True, psutil.Process.kill)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let them run while the block does."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def _until_none_is_left(
        self, wanting: Callable[[psutil.Process], bool], act: Callable[[psutil.Process], None]
    ) -> None:
        """Act on all that want it, again and again: a process may start another one meanwhile.

        Raises:
            PeerError: some still want it after a time.
        """
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while time.monotonic() < deadline:
            left = False
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    if wanting(process):
                        left = True
                        act(process)
            if not left:
                return
            time.sleep(_POLL_SECONDS)
        raise PeerError(f"its processes did not obey a signal within {_GIVE_UP_SECONDS:g} s")


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
