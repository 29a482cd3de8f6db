"""The load generator: it shares the machine with the server that it measures, so it does as little as it can.

A closed loop sends the next request when the last is answered; an open loop sends at given times whatever the server
does, and counts waiting from the time when a request was due (else a slow server would be asked less: coordinated
omission).
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import math
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from service.comparison.connection import NO_ANSWER, Connection, Origin, Reply
from service.comparison.errors import LoadError
from service.comparison.timer import WaitUntil, exact_timer
from service.scheduling import LOOP_SLICE_S, SYSTEM_SLICE_S, real_time, set_time_slice

LIMIT_SECONDS = 60.0

Result = TypeVar("Result")


class _Request(NamedTuple):
    content: bytes
    number: int
    due: float | None


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
        self.strict = strict
        self.connections: list[Connection] = []
        self._limit = limit_seconds
        for _ in range(connections):
            self.add_connection()

    def add_connection(self) -> Connection:
        """One more, not open yet."""
        self.connections.append(Connection(self.origin, self._limit))
        return self.connections[-1]

    async def __aenter__(self) -> Self:
        await _all(connection.open() for connection in self.connections)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self.connections:
            connection.close()

    async def ask(self, request: bytes, index: int = 0) -> Reply:
        """Send one request over the first connection.

        Raises:
            LoadError: as in `closed_loop`.
        """
        return await self._ask(self.connections[0], request, index)

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

        await _all(caller(connection) for connection in self.connections)
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
        return await _OpenLoop(self, requests, arrivals, max_connections).run()

    async def _ask(self, connection: Connection, content: bytes, index: int) -> Reply:
        request = _Request(content, index, None)
        return self.judged(request, await _outcome(connection, request))

    def judged(self, request: _Request, outcome: Reply | LoadError) -> Reply:
        """What a request is recorded with.

        Raises:
            LoadError: strict, and it has no answer of 200.
        """
        if isinstance(outcome, LoadError):
            if self.strict:
                raise outcome
            now = perf_counter()
            return Reply(request.number, NO_ANSWER, str(outcome).encode(), request.due or now, now, now)
        if self.strict and outcome.status != 200:
            _, _, body = request.content.partition(b"\r\n\r\n")
            raise LoadError(
                f"{self.origin.url} answered {outcome.status} to {_shortened(body, 80)}: {_message_of(outcome.body)}"
            )
        return outcome


class _OpenLoop:
    """One run of `Client.open_loop`, without a task for each answer: it runs beside a server with too much to do."""

    def __init__(
        self, client: Client, requests: Iterator[bytes], arrivals: Sequence[float], max_connections: int
    ) -> None:
        self._client = client
        self._requests = requests
        self._arrivals = arrivals
        self._most = max_connections
        self._free = list(client.connections)
        self._busy: set[Connection] = set()
        self._waiting: deque[_Request] = deque()  # due, while as many are unanswered as may be
        self._replies: list[Reply] = []
        # Ended by the last answer, or by the first error of a strict client.
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening = asyncio.TaskGroup()

    async def run(self) -> list[Reply]:
        """Send them all, and return the replies in the order of the arrivals."""
        if not self._arrivals:
            return []
        try:
            with real_time(), exact_timer() as wait_until, _first_error():
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
            self._send(_Request(next(self._requests), index, due))

    def _send(self, request: _Request) -> None:
        if len(self._busy) >= self._most:
            self._waiting.append(request)
            return
        connection = self._free.pop() if self._free else self._client.add_connection()
        self._busy.add(connection)
        if connection.is_open:
            connection.begin(*request, functools.partial(self._end, connection, request))
        else:
            self._opening.create_task(self._open_and_send(connection, request))

    async def _open_and_send(self, connection: Connection, request: _Request) -> None:
        self._end(connection, request, await _outcome(connection, request))

    def _end(self, connection: Connection, request: _Request, outcome: Reply | LoadError) -> None:
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


async def _outcome(connection: Connection, request: _Request) -> Reply | LoadError:
    try:
        return await connection.ask(*request)
    except LoadError as error:
        return error


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
    with _first_error():
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)


@contextmanager
def _first_error() -> Iterator[None]:
    """Raise the first error of a group as itself."""
    try:
        yield
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
