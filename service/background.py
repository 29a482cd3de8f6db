"""What a server does beside answering: again and again, which no error ends, and on threads that it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

log = structlog.get_logger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


_started: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that is not waited for, but for what `left_behind` waits.

    Raises:
        RuntimeError: no thread can be started now.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    _started.add(thread)
    return thread


def left_behind(timeout_s: float) -> list[str]:
    """The names of those threads that have not ended within a time that they all share.

    The interpreter must not end while one is in the runtime: it takes the whole process down when it comes back.
    """
    give_up = time.monotonic() + timeout_s
    for thread in list(_started):
        thread.join(max(0.0, give_up - time.monotonic()))
    return sorted(thread.name for thread in _started if thread.is_alive())


async def repeat(name: str, step: Callable[[], object], every_s: float) -> None:
    """Take a step, wait, and so on until cancelled; what goes wrong is logged once until something else does.

    Args:
        name: of the step, for the log.
        step: taken at once, and again after each wait; what it returns is awaited if it can be.
        every_s: seconds between the end of a step and the next.
    """
    failure = ""
    while True:
        try:
            taken = step()
            if inspect.isawaitable(taken):
                await taken
            failure = ""
        except Exception as error:
            if repr(error) != failure:
                failure = repr(error)
                log.exception("a background step failed: it is tried again", step=name, every_s=every_s)
        await asyncio.sleep(every_s)


async def on_own_thread(function: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """Call a function that may take long or hang, on a thread that is not waited for without end.

    `asyncio.to_thread` has a few threads for everything, and a loop that closes waits for each of them.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not future.done():  # else nobody waits any more
            outcome()

    def call() -> None:
        try:
            outcome = partial(future.set_result, function(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            outcome = partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(settle, outcome)

    start_thread(call, f"own thread of {getattr(function, '__name__', function)}")
    return await future
