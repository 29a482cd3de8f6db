from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.comparison.connection import NO_ANSWER, Reply
from service.comparison.errors import LoadError
from service.comparison.load import Client, run
from tests.benchmarks.open_loop import open_loop, poisson_arrivals
from tests.stub_server import StubServer, labelled, requests


def opened(url: str, arrivals: list[float], max_connections: int = 8, connections: int = 1) -> list[Reply]:
    async def drive() -> list[Reply]:
        async with Client(url, connections) as client:
            return await open_loop(client, itertools.cycle(requests(url, 3)), arrivals, max_connections=max_connections)

    return run(drive())


@pytest.mark.parametrize("connections", [1, 8])
def test_an_open_loop_counts_the_wait_for_a_connection_from_the_time_the_request_was_due(connections: int) -> None:
    with StubServer() as server:
        replies = opened(server.url, [0.0] * 10, max_connections=1, connections=connections)
    assert server.connections == connections
    assert len({reply.due for reply in replies}) == 1
    assert [reply.latency for reply in replies] == sorted(reply.latency for reply in replies)
    assert all(before.ended <= after.sent for before, after in itertools.pairwise(replies))


def test_an_open_loop_opens_as_many_connections_as_there_are_unanswered_requests() -> None:
    with StubServer(silent=True) as server, pytest.raises(LoadError):
        run(_impatient(server.url))
    assert server.connections == 8


async def _impatient(url: str) -> list[Reply]:
    async with Client(url, 1, limit_seconds=0.2) as client:
        return await open_loop(client, iter(requests(url, 8)), [0.0] * 8)


def test_an_open_loop_without_arrivals_is_over() -> None:
    with StubServer() as server:
        assert opened(server.url, []) == []


def test_an_open_loop_of_a_client_that_is_not_strict_records_refusals_and_lost_connections() -> None:
    answers: Iterator[tuple[int, Any] | None] = iter([(429, {}), None, labelled("positive")])

    async def drive(url: str) -> list[Reply]:
        async with Client(url, 1, strict=False) as client:
            return await open_loop(client, iter(requests(url, 3)), [0.0, 0.0, 0.0], max_connections=1)

    with StubServer(classify=lambda _: next(answers)) as server:
        replies = run(drive(server.url))
    assert [reply.status for reply in replies] == [429, NO_ANSWER, 200]


def test_an_error_that_nobody_expected_ends_an_open_loop() -> None:
    deep = b"HTTP/1.1 500 X\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000
    with StubServer(classify=lambda _: deep) as server, pytest.raises(RecursionError):
        opened(server.url, [0.0])


def test_a_strict_open_loop_leaves_no_request_behind_its_first_error() -> None:
    async def drive(url: str) -> None:
        async with Client(url, 3) as client:
            with pytest.raises(LoadError, match="answered 429"):
                await open_loop(client, iter(requests(url, 3)), [0.0] * 3)
            await asyncio.sleep(0)
            assert sum(connection.is_open for connection in client.connections) == 1  # the one that was answered

    answer = itertools.count()
    with StubServer(classify=lambda _: (429, {}) if next(answer) == 0 else b"HTTP/1.1 100 Continue\r\n\r\n") as server:
        run(drive(server.url))


def test_an_open_loop_sends_no_request_before_it_is_due() -> None:
    with StubServer() as server:
        replies = opened(server.url, [0.0, 0.01, 0.02])
    assert [round(reply.due - replies[0].due, 6) for reply in replies] == [0.0, 0.01, 0.02]
    assert all(reply.sent >= reply.due for reply in replies)


@pytest.mark.parametrize("max_connections", [1, 8])
def test_a_server_that_goes_away_ends_an_open_loop_before_the_next_request_is_due(max_connections: int) -> None:
    with (
        StubServer(classify=lambda _: None) as server,
        pytest.raises(LoadError, match="closed the connection without an answer"),
    ):
        opened(server.url, [0.0, 3_600], max_connections)
    assert len(server.asked) == 1
    assert open_timers() == []


def test_an_open_loop_that_is_cancelled_ends_before_the_next_request_is_due() -> None:
    second = asyncio.Event()

    def two_requests(url: str) -> Iterator[bytes]:
        first, last = requests(url, 2)
        yield first
        second.set()
        yield last

    async def cancel(url: str) -> None:
        async with Client(url, 1) as client:
            loop = asyncio.create_task(open_loop(client, two_requests(url), [0.0, 0.001, 3_600]))
            await second.wait()
            loop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loop

    with StubServer() as server:
        run(cancel(server.url))
    assert open_timers() == []


@pytest.mark.skipif(sys.platform != "linux", reason="policies of Linux")
def test_a_load_leaves_its_thread_as_it_was_and_an_open_loop_may_go_before_all_others_meanwhile() -> None:
    policies: list[int] = []

    def asked(url: str) -> Iterator[bytes]:
        for request in requests(url, 2):
            policies.append(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
            yield request

    async def drive(url: str) -> None:
        async with Client(url, 1) as client:
            await client.closed_loop(asked(url))
            await open_loop(client, asked(url), [0.0, 0.001])

    with StubServer() as server:
        run(drive(server.url))
    assert policies[:2] == [os.SCHED_OTHER] * 2
    assert set(policies[2:]) in ({os.SCHED_FIFO}, {os.SCHED_OTHER})  # as this user may
    assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER


def open_timers() -> list[str]:
    return [name for link in Path("/proc/self/fd").glob("*") if "timerfd" in (name := os.path.realpath(link))]


def test_poisson_arrivals_ascend_within_the_time_at_the_rate_and_are_the_same_for_a_seed() -> None:
    arrivals = poisson_arrivals(100, 50, seed=3)
    assert arrivals == sorted(arrivals) == poisson_arrivals(100, 50, seed=3)
    assert arrivals[0] >= 0
    assert arrivals[-1] < 50
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
