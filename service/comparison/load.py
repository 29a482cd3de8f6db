"""The load generator: it shares the machine with the server that it measures, so it does as little as it can.

A closed loop sends the next request when the last is answered; an open loop sends at given times whatever the server
does, and counts waiting from the time when a request was due (else a slow server would be asked less: coordinated
omission).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any, Self, TypeVar

import numpy as np

from service.comparison.connection import NO_ANSWER, Connection, Origin, Reply
from service.comparison.errors import LoadError
from service.comparison.timer import exact_timer
from service.scheduling import LOOP_SLICE_S, SYSTEM_SLICE_S, real_time, set_time_slice

LIMIT_SECONDS = 60.0

Result = TypeVar("Result")


class Client:
    """A number of connections to one server; use as `async with Client(…) as client`.

    Args:
        url: the server's.
        connections: opened on entry; an open loop may open more, up to its own bound.
        strict: raise on the first answer that isn't 200; otherwise it is recorded, and so are lost connections.
        limit_seconds: the longest wait for one answer.
    """

    def __init__(
        self, url: str, connections: int, *, strict: bool = True, limit_seconds: float = LIMIT_SECONDS
    ) -> None:
        self.origin = Origin.parse(url)
        self._strict = strict
        self._limit = limit_seconds
        self._connections = [Connection(self.origin, limit_seconds) for _ in range(connections)]

    async def __aenter__(self) -> Self:
        await _all(connection.open() for connection in self._connections)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    async def ask(self, request: bytes, index: int = 0) -> Reply:
        """Send one request over the first connection.

        Raises:
            LoadError: as in `closed_loop`.
        """
        return await self._ask(self._connections[0], request, index)

    async def closed_loop(self, requests: Iterable[bytes], *, seconds: float = math.inf) -> list[Reply]:
        """Send the requests in order over all connections until they, or the seconds, are used up.

        Returns:
            The replies, in the order of the requests.

        Raises:
            LoadError: see `Connection.ask`; where strict, also for an answer that isn't 200.
        """
        numbered = enumerate(requests)
        end = perf_counter() + seconds
        replies: list[Reply] = []

        async def caller(connection: Connection) -> None:
            while perf_counter() < end:
                index, request = next(numbered, (0, b""))
                if not request:
                    return
                replies.append(await self._ask(connection, request, index))

        await _all(caller(connection) for connection in self._connections)
        replies.sort(key=lambda reply: reply.index)
        return replies

    async def open_loop(
        self, requests: Iterator[bytes], arrivals: Sequence[float], *, max_connections: int = 1024
    ) -> list[Reply]:
        """Send one request at each of `arrivals` (seconds from now, ascending), however many are unanswered.

        Beyond `max_connections` unanswered requests the next ones wait here; their latency counts from their due time.
        The thread has real-time priority meanwhile, where the system allows it.

        Returns:
            The replies, in the order of the arrivals.

        Raises:
            LoadError: as in `closed_loop`.
        """
        start = perf_counter()
        free = list(self._connections)
        slots = asyncio.Semaphore(max_connections)
        replies: list[Reply] = []

        async def call(index: int, request: bytes, due: float) -> None:
            if free:
                connection = free.pop()
            else:
                connection = Connection(self.origin, self._limit)
                self._connections.append(connection)
            try:
                replies.append(await self._ask(connection, request, index, due))
            finally:
                free.append(connection)
                slots.release()

        async def schedule() -> None:
            with real_time(), exact_timer() as wait_until:
                async with asyncio.TaskGroup() as calls:
                    for index, arrival in enumerate(arrivals):
                        due = start + arrival
                        await wait_until(due)
                        await slots.acquire()
                        calls.create_task(call(index, next(requests), due))

        await _all([schedule()])
        replies.sort(key=lambda reply: reply.index)
        return replies

    async def _ask(self, connection: Connection, request: bytes, index: int, due: float | None = None) -> Reply:
        try:
            reply = await connection.ask(request, index, due)
        except LoadError as error:
            if self._strict:
                raise
            now = perf_counter()
            return Reply(index, NO_ANSWER, str(error).encode(), due or now, now, now)
        if self._strict and reply.status != 200:
            _, _, body = request.partition(b"\r\n\r\n")
            raise LoadError(
                f"{self.origin.url} answered {reply.status} to {_shortened(body, 80)}: {_message_of(reply.body)}"
            )
        return reply


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in `[0, seconds)` of a Poisson process with `rate` arrivals a second."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, math.ceil(rate * seconds * 1.5) + 50)
    times = np.cumsum(gaps)
    return [float(time) for time in times[times < seconds]]


def run(main: Coroutine[object, object, Result]) -> Result:
    """Run a coroutine on the fastest event loop that is installed, in a short time slice.

    So does every load, a comparison's too: the clients that it stands for have processors of their own, and what it
    waited for the server's would count as latency, the same for a fast model and a slow one. Real-time priority is for
    open loops alone: a closed loop takes a whole core when its server goes away and every request fails at once.
    """
    set_time_slice(LOOP_SLICE_S)
    try:
        if importlib.util.find_spec("uvloop") is not None:
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(main)
        return asyncio.run(main)
    finally:
        set_time_slice(SYSTEM_SLICE_S)


async def _all(calls: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Await them all at once; the first LoadError ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except ExceptionGroup as errors:
        error: Exception = errors
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _message_of(body: bytes) -> str:
    """The sentence in an error's body, or the start of whatever came instead."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return _shortened(body, 200)


def _shortened(body: bytes, length: int) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return text if len(text) <= length else f"{text[:length]}…"
