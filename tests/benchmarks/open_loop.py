"""The open loop: requests are sent at given times whatever the server does.

Waiting counts from the time when a request was due, else a slow server would be asked less (coordinated omission).
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np

from service.comparison.connection import Connection, Reply
from service.comparison.errors import LoadError
from service.comparison.load import Client, Request, first_error
from tests.benchmarks.priority import real_time
from tests.benchmarks.timer import WaitUntil, exact_timer


async def open_loop(
    client: Client, requests: Iterator[bytes], arrivals: Sequence[float], *, max_connections: int = 1024
) -> list[Reply]:
    """Send one request at each of `arrivals` (seconds from now, ascending), however many are unanswered.

    The client gets further connections as they are needed. Beyond `max_connections` unanswered requests the next ones
    wait here; their latency counts from their due time. The thread has real-time priority meanwhile, where the system
    allows it.

    Returns:
        The replies, in the order of the arrivals.

    Raises:
        LoadError: as in `Client.closed_loop`.
    """
    return await _OpenLoop(client, requests, arrivals, max_connections).run()


class _OpenLoop:
    """One run of `open_loop`, without a task for each answer: it runs beside a server with too much to do."""

    def __init__(
        self, client: Client, requests: Iterator[bytes], arrivals: Sequence[float], max_connections: int
    ) -> None:
        self._client = client
        self._requests = requests
        self._arrivals = arrivals
        self._most = max_connections
        self._free = list(client.connections)
        self._busy: set[Connection] = set()
        self._waiting: deque[Request] = deque()  # due, while as many are unanswered as may be
        self._replies: list[Reply] = []
        # Ended by the last answer, or by the first error of a strict client.
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening = asyncio.TaskGroup()

    async def run(self) -> list[Reply]:
        """Send them all, and return the replies in the order of the arrivals."""
        if not self._arrivals:
            return []
        try:
            with real_time(), exact_timer() as wait_until, first_error():
                async with self._opening:
                    self._opening.create_task(self._schedule(wait_until))
                    await self._answered
        finally:
            for connection in self._busy:
                connection.abandon()
        self._replies.sort(key=lambda reply: reply.index)
        return self._replies

    async def _schedule(self, wait_until: WaitUntil) -> None:
        start = perf_counter()
        for index, arrival in enumerate(self._arrivals):
            due = start + arrival
            await wait_until(due)
            self._send(Request(next(self._requests), index, due))

    def _send(self, request: Request) -> None:
        if len(self._busy) >= self._most:
            self._waiting.append(request)
            return
        connection = self._free.pop() if self._free else self._client.add_connection()
        self._busy.add(connection)
        if connection.is_open:
            self._begin(connection, request)
        else:
            self._opening.create_task(self._open_and_begin(connection, request))

    def _begin(self, connection: Connection, request: Request) -> None:
        connection.begin(*request, functools.partial(self._end, connection, request))

    async def _open_and_begin(self, connection: Connection, request: Request) -> None:
        try:
            await connection.open()
            self._begin(connection, request)
        except LoadError as error:
            self._end(connection, request, error)

    def _end(self, connection: Connection, request: Request, outcome: Reply | LoadError) -> None:
        if self._answered.done():
            return
        self._busy.remove(connection)
        self._free.append(connection)
        try:
            self._replies.append(self._client.judged(request, outcome))
        except Exception as error:  # noqa: BLE001 - here, in a parser's callback, it would be lost
            self._answered.set_exception(error)
            return
        if self._waiting:
            self._send(self._waiting.popleft())
        elif len(self._replies) == len(self._arrivals):
            self._answered.set_result(None)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in `[0, seconds)` of a Poisson process with `rate` arrivals a second."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, math.ceil(rate * seconds * 1.5) + 50)
    times = np.cumsum(gaps)
    return [float(time) for time in times[times < seconds]]
