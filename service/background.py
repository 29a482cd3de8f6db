"""What a server does beside answering, again and again: an error ends none of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


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
