from __future__ import annotations

import asyncio

import pytest
import structlog

from service.background import repeat


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
