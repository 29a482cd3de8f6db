from __future__ import annotations

import asyncio
import threading

import pytest
import structlog

from service.background import on_own_thread, repeat


@pytest.mark.parametrize("awaited", [False, True])
def test_a_step_that_fails_is_logged_once_and_taken_again(awaited: bool) -> None:
    taken: list[int] = []

    def step() -> None:
        taken.append(len(taken))
        if len(taken) in {1, 2, 4}:
            raise OSError("no files left")

    async def coroutine() -> None:
        step()

    async def scenario() -> None:
        repeating = asyncio.create_task(repeat("look", coroutine if awaited else step, 0))
        while len(taken) < 5:  # noqa: ASYNC110 - a step has no event
            await asyncio.sleep(0)
        assert not repeating.done()
        repeating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await repeating

    with structlog.testing.capture_logs() as logs:
        asyncio.run(asyncio.wait_for(scenario(), 20))
    # The first two in a row are one failure, that after a success is another.
    assert [(entry["step"], entry["log_level"]) for entry in logs] == [("look", "error")] * 2


def test_a_call_on_its_own_thread_gives_what_it_returns_or_raises() -> None:
    async def scenario() -> None:
        assert await on_own_thread(divmod, 7, 2) == (3, 1)
        assert await on_own_thread(sorted, [1, 2], reverse=True) == [2, 1]
        with pytest.raises(ZeroDivisionError):
            await on_own_thread(divmod, 7, 0)

    asyncio.run(scenario())


def test_a_call_that_hangs_holds_up_neither_the_loop_nor_its_end() -> None:
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait(20)
        ended.set()

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(on_own_thread(hang), 0.05)

    asyncio.run(scenario())
    assert begun.is_set()
    assert not ended.is_set()
    release.set()  # it comes back to a loop that has closed
    assert ended.wait(20)


def test_a_call_that_comes_back_after_nobody_waits_is_passed_over() -> None:
    async def scenario() -> None:
        release, loop = threading.Event(), asyncio.get_running_loop()
        errors: list[object] = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(on_own_thread(release.wait, 20), 0.05)
        before = set(threading.enumerate())
        release.set()
        for thread in before:
            if thread.name.startswith("own thread"):
                await asyncio.to_thread(thread.join, 20)
        await asyncio.sleep(0)
        assert not errors

    asyncio.run(scenario())
