"""Several server processes on the same sockets: started, replaced when they die, ended together."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import structlog
from prometheus_client.multiprocess import mark_process_dead

from model_store.errors import SuccessorError
from service.control import forget_process
from service.metrics import MULTIPROCESS_VARIABLE
from service.settings import Settings

log = structlog.get_logger(__name__)

# A process that lives shorter than this did not get far; so many of them in a row, and the server ends.
_SHORT_LIFE_S = 10.0
_MOST_SHORT_LIVES = 5
_POLL_S = 0.1
# Beyond what processes allow themselves to drain.
_END_MARGIN_S = 6.0

Listeners = Sequence[socket.socket]
RunProcess = Callable[[Settings, Listeners, Path], int]


class Supervisor:
    """The parent of a server's processes.

    Args:
        settings: every process's; `processes` says how many.
        listeners: the sockets that all of them accept from.
        run: what a process runs; must be importable, the processes are spawned.
    """

    def __init__(self, settings: Settings, listeners: Listeners, run: RunProcess) -> None:
        self._settings = settings
        self._listeners = listeners
        self._run = run
        self._context = multiprocessing.get_context("spawn")
        self._ending = False
        """Set by a signal's handler, which may find this thread anywhere: a lock that it held would never be free."""
        self._short_lives = 0
        self._started: dict[BaseProcess, float] = {}

    def serve(self) -> int:
        """Keep the processes up until SIGTERM or SIGINT; returns the exit code: 0 if all ended as told."""
        folder = Path(tempfile.mkdtemp(prefix="successor-"))
        metrics, self._control = folder / "metrics", folder / "control"
        metrics.mkdir()
        self._control.mkdir()
        os.environ[MULTIPROCESS_VARIABLE] = str(metrics)
        previous = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for _ in range(self._settings.processes):
                self._start()
            while not self._ending:
                self._replace_dead()
                time.sleep(_POLL_S)
            return self._stop() if self._short_lives < _MOST_SHORT_LIVES else self._stop() or 1
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            del os.environ[MULTIPROCESS_VARIABLE]
            shutil.rmtree(folder, ignore_errors=True)

    def _end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        self._ending = True

    def _start(self) -> None:
        process = self._context.Process(target=_enter, args=(self._run, self._settings, self._listeners, self._control))
        try:
            process.start()
        except OSError as error:  # no memory or no number for it now: tried again at the next look
            log.error("no server process can be started", error=str(error))  # noqa: TRY400 - expected, in one line
            return
        self._started[process] = time.monotonic()

    def _replace_dead(self) -> None:
        for process in [one for one in self._started if not one.is_alive()]:
            lived = time.monotonic() - self._started.pop(process)
            log.error("server process died", process=process.pid, exit_code=process.exitcode, lived_s=round(lived, 1))
            mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
            forget_process(self._control, str(process.pid))
            self._short_lives = self._short_lives + 1 if lived < _SHORT_LIFE_S else 0
            if self._short_lives >= _MOST_SHORT_LIVES:
                log.error("server processes keep dying: giving up")
                self._ending = True
                return
        if len(self._started) < self._settings.processes:
            self._start()

    def _stop(self) -> int:
        """End all processes as SIGTERM does; one that does not end in time is killed."""
        for process in self._started:
            process.terminate()
        # Else the system would go on accepting for sockets that nobody reads.
        for listener in self._listeners:
            listener.close()
        give_up = time.monotonic() + self._settings.drain_ms / 1e3 + _END_MARGIN_S
        for process in self._started:
            process.join(max(0.0, give_up - time.monotonic()))
            if process.is_alive():
                log.error("server process killed", process=process.pid)
                process.kill()
                process.join()
        # One that was still starting had no handler for SIGTERM yet.
        return 0 if all(process.exitcode in {0, -signal.SIGTERM} for process in self._started) else 1


def _enter(run: RunProcess, settings: Settings, listeners: Listeners, control: Path) -> None:
    """A process's main function."""
    # A terminal interrupts all processes of its session: here the parent decides when these end.
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        code = run(settings, listeners, control)
    except SuccessorError as error:
        log.error("server process can't start", error=str(error))  # noqa: TRY400 - expected, and said in one line
        code = 1
    raise SystemExit(code)


def _end_with_parent() -> None:
    """A parent that was killed can't end its processes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
