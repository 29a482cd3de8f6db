"""The load generator: it shares the machine with the server that it measures, so it does as little as it can.

Its loop is closed: the next request is sent when the last is answered.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple, Self, TypeVar

import uvloop

from service.comparison.connection import NO_ANSWER, Connection, Origin, Reply
from service.comparison.errors import LoadError
from service.scheduling import LOOP_SLICE_S, SYSTEM_SLICE_S, set_time_slice

LIMIT_SECONDS = 60.0

Result = TypeVar("Result")


class Request(NamedTuple):
    """One request: its bytes, its number among the others, and when it should be sent (None: at once)."""

    content: bytes
    number: int
    due: float | None = None


class Client:
    """A number of connections to one server; use as `async with Client(…) as client`.

    Args:
        url: the server's.
        connections: opened on entry.
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

    async def _ask(self, connection: Connection, content: bytes, index: int) -> Reply:
        outcome: Reply | LoadError
        try:
            outcome = await connection.ask(content, index)
        except LoadError as error:
            outcome = error
        return self.judged(Request(content, index), outcome)

    def judged(self, request: Request, outcome: Reply | LoadError) -> Reply:
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


def run(main: Coroutine[object, object, Result]) -> Result:
    """Run a coroutine on the fastest event loop, in a short time slice.

    So does every load, a comparison's too: the clients that it stands for have processors of their own, and what it
    waited for the server's would count as latency, the same for a fast model and a slow one.
    """
    set_time_slice(LOOP_SLICE_S)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    finally:
        set_time_slice(SYSTEM_SLICE_S)


async def _all(calls: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Await them all at once; the first LoadError ends the others and is raised as itself."""
    with first_error():
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)


@contextmanager
def first_error() -> Iterator[None]:
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
