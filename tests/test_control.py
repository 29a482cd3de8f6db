"""What one server process is told, all have done before it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service import control
from service.control import Control, forget_process
from service.errors import NotAcknowledgedError


class Process:
    """Counts how often it was brought up to date."""

    def __init__(self, folder: Path, name: str, timeout_s: float = 10.0) -> None:
        self.applied = 0
        self.failures: dict[str, str] = {}
        self.control = Control(folder, self.apply, name=name, timeout_s=timeout_s)

    async def apply(self) -> dict[str, str]:
        self.applied += 1
        return self.failures


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_every_process_has_acted_before_the_one_that_was_told_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        processes = [Process(tmp_path, name) for name in "abc"]
        following = [asyncio.create_task(process.control.follow()) for process in processes]
        for times, told in enumerate(processes, start=1):
            await told.control.broadcast()
            assert [process.applied for process in processes] == [times] * 3
        for task in following:
            task.cancel()

    run(scenario)


def test_a_process_that_does_not_act_in_time_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        told, _ = Process(tmp_path, "a", timeout_s=0.1), Process(tmp_path, "deaf")
        with pytest.raises(NotAcknowledgedError, match="deaf did not acknowledge"):
            await told.control.broadcast()
        assert told.applied == 1

    run(scenario)


def test_a_process_that_cannot_serve_what_the_others_can_is_named_until_it_can(tmp_path: Path) -> None:
    async def scenario() -> None:
        rich, poor = Process(tmp_path, "rich"), Process(tmp_path, "poor")
        rich.failures = poor.failures = {"wrong@1": "corrupt"}
        following = [asyncio.create_task(process.control.follow()) for process in (rich, poor)]
        await rich.control.broadcast()  # what none can serve is told otherwise
        poor.failures = {"wrong@1": "corrupt", "large@1": "no memory is left"}
        for told in (rich, poor):
            with capture_logs() as logs, pytest.raises(NotAcknowledgedError) as caught:
                await told.control.broadcast()
            assert str(caught.value) == "of 2 server processes poor can't serve large@1: no memory is left"
            assert [(entry["reference"], entry["processes"]) for entry in logs] == [("large@1", ["poor"])]
            await told.control.broadcast("small")
            with pytest.raises(NotAcknowledgedError, match="poor can't serve large@1"):
                await told.control.broadcast("large")
        rich.failures = poor.failures = {}
        await rich.control.broadcast()
        for task in following:
            task.cancel()

    run(scenario)


def test_a_dead_process_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        told, _ = Process(tmp_path, "a", timeout_s=0.1), Process(tmp_path, "dead")
        forget_process(tmp_path, "dead")
        forget_process(tmp_path, "never was")
        await told.control.broadcast()

    run(scenario)


def test_a_process_that_starts_later_does_not_repeat_what_was_told_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        await Process(tmp_path, "a").control.broadcast()
        late = Process(tmp_path, "late")
        await late.control.begin()
        following = asyncio.create_task(late.control.follow())
        await asyncio.sleep(0.1)
        assert late.applied == 1
        following.cancel()

    run(scenario)


def test_one_that_starts_is_waited_for_until_it_serves_something(tmp_path: Path) -> None:
    async def scenario() -> None:
        told, starting = Process(tmp_path, "a"), Process(tmp_path, "starting")
        telling = asyncio.create_task(told.control.broadcast())
        await asyncio.sleep(0.1)
        assert not telling.done()
        starting.failures = {"large@1": "no memory is left"}
        await starting.control.begin()
        with pytest.raises(NotAcknowledgedError, match="starting can't serve large@1"):
            await telling

    run(scenario)


def test_what_several_processes_are_told_at_once_is_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        processes = [Process(tmp_path, name) for name in "abcd"]
        following = [asyncio.create_task(process.control.follow()) for process in processes]
        for _ in range(5):
            await asyncio.gather(*(process.control.broadcast() for process in processes))
        numbers = [process.control._ask() for process in processes]
        assert numbers == sorted(set(numbers))
        with ThreadPoolExecutor(len(processes)) as pool:  # locks of a file hold between its openings, not processes
            asked = list(pool.map(lambda number: processes[number % 4].control._ask(), range(200)))
        assert sorted(asked) == list(range(numbers[-1] + 1, numbers[-1] + 201))
        for task in following:
            task.cancel()

    run(scenario)


def test_an_acknowledgement_that_could_not_be_written_is_given_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        one = Process(tmp_path, "a")
        with monkeypatch.context() as patch:
            patch.setattr(control, "write_whole", full)
            with pytest.raises(OSError, match="space"):
                await one.control._reach(2)
        await one.control._reach(2)
        assert dict(one.control._processes())["a"].number == 2
        assert one.applied == 2

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run(scenario)
