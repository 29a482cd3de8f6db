"""Administration of several server processes: what one is told, all have done before it answers.

A folder holds one number that is wanted and, for each process, the number that it has reached and what it failed to do
on the way. Files replace each other by rename, so that a reader sees whole ones.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog
from pydantic import BaseModel

from model_store.disk import write_whole
from service.background import repeat
from service.errors import NotAcknowledgedError

log = structlog.get_logger(__name__)

POLL_S = 0.05
TIMEOUT_S = 30.0
_WANTED = "wanted"
_LOCK = "lock"
_REACHED = "reached-"


class Progress(BaseModel):
    """How far somebody is."""

    number: int = 0
    failures: dict[str, str] = {}
    """Reference → why it can't be served."""


class Control:
    """One process's part.

    Args:
        folder: shared by all processes of one server, empty at its start.
        apply: brings this process up to date, and returns what it can't serve, as in `Progress`.
        name: of this process, by which the parent removes it from the folder when it is dead.
        timeout_s: how long to wait for the others.
    """

    def __init__(
        self,
        folder: Path,
        apply: Callable[[], Awaitable[Mapping[str, str]]],
        *,
        name: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._apply = apply
        self._name = name or str(os.getpid())
        self._timeout_s = timeout_s
        self._applying = asyncio.Lock()
        self._reached = Progress()
        self._acknowledge(self._reached)

    async def begin(self) -> None:
        """Bring this process up to date for the first time; others that are told something meanwhile wait for it."""
        await self._reach(max(1, _read(self._folder / _WANTED).number))

    async def broadcast(self, name: str | None = None) -> None:
        """Bring every process up to date.

        Args:
            name: what must be served by all of them or by none; None: everything.

        Raises:
            NotAcknowledgedError: one did not say in time that it is, or can't serve what another one can.
        """
        wanted = self._ask()
        await self._reach(wanted)
        give_up = time.monotonic() + self._timeout_s
        while behind := [name for name, progress in self._processes() if progress.number < wanted]:
            if time.monotonic() > give_up:
                raise NotAcknowledgedError(
                    f"server processes {', '.join(behind)} did not acknowledge in {self._timeout_s:g} s: try again"
                )
            await asyncio.sleep(POLL_S)
        self._check_alike([one for one in self._processes() if one[1].number >= wanted], name)

    def _ask(self) -> int:
        """Have every process reach a number that none has been asked for before."""
        with (self._folder / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            wanted = max(1, _read(self._folder / _WANTED).number) + 1
            _write(self._folder / _WANTED, Progress(number=wanted))
        return wanted

    @staticmethod
    def _check_alike(processes: list[tuple[str, Progress]], name: str | None) -> None:
        """Refuse that some processes serve what others can't."""
        for reference in sorted({reference for _, progress in processes for reference in progress.failures}):
            failing = {one: why for one, progress in processes if (why := progress.failures.get(reference))}
            if name in {None, reference.partition("@")[0]} and len(failing) < len(processes):
                why = next(iter(failing.values()))
                log.error("some server processes can't serve it", reference=reference, processes=[*failing], error=why)
                raise NotAcknowledgedError(
                    f"of {len(processes)} server processes {', '.join(failing)} can't serve {reference}: {why}"
                )

    async def follow(self) -> None:
        """Do what other processes were told, until cancelled."""
        await repeat("follow the other processes", lambda: self._reach(_read(self._folder / _WANTED).number), POLL_S)

    async def _reach(self, wanted: int) -> None:
        async with self._applying:
            if wanted > self._reached.number:
                self._acknowledge(Progress(number=wanted, failures=dict(await self._apply())))

    def _acknowledge(self, reached: Progress) -> None:
        """Say how far this process is; where that can't be written it is not, and does it again."""
        _write(self._folder / f"{_REACHED}{self._name}", reached)
        self._reached = reached

    def _processes(self) -> list[tuple[str, Progress]]:
        """All that live, and how far each is."""
        files = sorted(self._folder.glob(f"{_REACHED}*"))
        return [(file.name.removeprefix(_REACHED), _read(file)) for file in files]


def forget_process(folder: Path, name: str) -> None:
    """Wait no more for a process that has died."""
    (folder / f"{_REACHED}{name}").unlink(missing_ok=True)


def _read(file: Path) -> Progress:
    try:
        return Progress.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Progress()


def _write(file: Path, progress: Progress) -> None:
    write_whole(file, progress.model_dump_json())
