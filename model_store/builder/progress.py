"""What a build tells the person who waits for it: a bar with the time left, or plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LOG_EVERY_SECONDS = 15.0


class Meter(Protocol):
    """One running step."""

    def advance(self, done: int, note: str = "") -> None:
        """Say that `done` units are done in all."""
        ...


class Progress(Protocol):
    """Where a build reports to; tests pass one of their own."""

    def note(self, message: str) -> None:
        """Say one line."""
        ...

    def meter(self, title: str, total: int) -> AbstractContextManager[Meter]:
        """A bar of `total` units for one step."""
        ...


class _BarMeter:
    def __init__(self, bars: Bars, title: str, total: int) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=total, note="")

    def advance(self, done: int, note: str = "") -> None:
        self._bars.update(self._task, completed=done, note=note)


class _LogMeter:
    """A line at most every `LOG_EVERY_SECONDS`, with the time left."""

    def __init__(self, say: Callable[[str], None], title: str, total: int, clock: Callable[[], float]) -> None:
        self._say, self._title, self._total, self._clock = say, title, total, clock
        self._start = self._said = clock()
        self._first: int | None = None

    def advance(self, done: int, note: str = "") -> None:
        now = self._clock()
        if self._first is None:  # a resumed step does not start at 0
            self._first, self._start = done, now
        if now - self._said < LOG_EVERY_SECONDS and done < self._total:
            return
        self._said = now
        rate = (done - self._first) / (now - self._start) if now > self._start else 0.0
        left = f", about {(self._total - done) / rate:.0f} s left" if rate and done < self._total else ""
        self._say(f"{self._title}: {done}/{self._total}{left} {note}".rstrip())


class ConsoleProgress:
    """One clean bar per step on a terminal, plain lines elsewhere; on stderr, so that stdout stays for results."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock

    def note(self, message: str) -> None:
        """Say one line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def meter(self, title: str, total: int) -> Iterator[Meter]:
        """A bar of `total` units for one step."""
        if not self._console.is_terminal:
            yield _LogMeter(self.note, title, total, self._clock)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=self._console) as bars:
            yield _BarMeter(bars, title, total)
