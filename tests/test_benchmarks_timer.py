from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from time import perf_counter

import pytest

from service.comparison.load import run
from tests.benchmarks.timer import exact_timer, open_system_timer


def no_timer() -> int:
    return -1


@pytest.mark.parametrize("open_timer", [open_system_timer, no_timer])
def test_a_task_is_woken_at_each_time_and_never_before(open_timer: Callable[[], int]) -> None:
    async def wait() -> list[float]:
        start = perf_counter()
        with exact_timer(open_timer) as wait_until:
            early = []
            for delay in (0.0, 0.003, 0.0031, 0.01):
                await wait_until(start + delay)
                early.append(start + delay - perf_counter())
        return early

    assert all(early <= 0 for early in run(wait()))


def test_a_time_that_has_passed_is_not_waited_for() -> None:
    async def wait() -> bool:
        turned = False

        async def turn() -> None:
            nonlocal turned
            turned = True

        with exact_timer() as wait_until:
            task = asyncio.create_task(turn())
            await wait_until(perf_counter())
            before = turned
        await task
        return before

    assert not run(wait())


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
@pytest.mark.parametrize("runner", [run, asyncio.run], ids=["uvloop", "asyncio"])
def test_the_systems_timer_is_closed_when_the_task_is_cancelled(runner: Callable[..., object]) -> None:
    opened: list[int] = []

    def open_timer() -> int:
        opened.append(open_system_timer())
        return opened[-1]

    async def wait() -> None:
        with exact_timer(open_timer) as wait_until:
            await wait_until(perf_counter() + 3_600)

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[0])

    runner(cancel())
    assert opened[0] > 0
