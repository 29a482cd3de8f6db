"""What a server does beside answering: again and again, which no error ends, and on threads that it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

log = structlog.get_logger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


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
    """Call a function that may take long or hang, on a thread that nobody waits for at the end.

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

    threading.Thread(target=call, name=f"own thread of {getattr(function, '__name__', function)}", daemon=True).start()
    return await future
