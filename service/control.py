"""Administration of several server processes: what one is told, all have done before it answers.

A folder holds one number that is wanted and, for each process, the number that it has reached. Files replace each other
by rename, so that a reader sees whole ones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.background import repeat
from service.errors import NotAcknowledgedError

POLL_S = 0.05
TIMEOUT_S = 30.0
_WANTED = "wanted"
_REACHED = "reached-"


class Control:
    """One process's part.

    Args:
        folder: shared by all processes of one server, empty at its start.
        apply: brings this process up to date.
        name: of this process, by which the parent removes it from the folder when it is dead.
        timeout_s: how long to wait for the others.
    """

    def __init__(
        self,
        folder: Path,
        apply: Callable[[], Awaitable[object]],
        *,
        name: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._apply = apply
        self._name = name or str(os.getpid())
        self._timeout_s = timeout_s
        self._applying = asyncio.Lock()
        self._reached = _read(folder / _WANTED)
        self._acknowledge()

    async def broadcast(self) -> None:
        """Bring every process up to date.

        Raises:
            NotAcknowledgedError: one did not say in time that it is.
        """
        # The clock is the machine's: numbers of all processes grow together.
        wanted = time.monotonic_ns()
        _write(self._folder / _WANTED, wanted, self._name)
        await self._reach(wanted)
        give_up = time.monotonic() + self._timeout_s
        while behind := self._behind(wanted):
            if time.monotonic() > give_up:
                raise NotAcknowledgedError(
                    f"server processes {', '.join(behind)} did not acknowledge in {self._timeout_s:g} s: try again"
                )
            await asyncio.sleep(POLL_S)

    async def follow(self) -> None:
        """Do what other processes were told, until cancelled."""
        await repeat("follow the other processes", lambda: self._reach(_read(self._folder / _WANTED)), POLL_S)

    async def _reach(self, wanted: int) -> None:
        async with self._applying:
            if wanted > self._reached:
                await self._apply()
                self._reached = wanted
                self._acknowledge()

    def _acknowledge(self) -> None:
        _write(self._folder / f"{_REACHED}{self._name}", self._reached, self._name)

    def _behind(self, wanted: int) -> list[str]:
        """The processes that have not reached a number."""
        files = sorted(self._folder.glob(f"{_REACHED}*"))
        return [file.name.removeprefix(_REACHED) for file in files if _read(file) < wanted]


def forget_process(folder: Path, name: str) -> None:
    """Wait no more for a process that has died."""
    (folder / f"{_REACHED}{name}").unlink(missing_ok=True)


def _read(file: Path) -> int:
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return 0


def _write(file: Path, number: int, writer: str) -> None:
    aside = file.with_name(f".{file.name}-{writer}")
    aside.write_text(str(number))
    aside.rename(file)
