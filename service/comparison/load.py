"""The load generator: it shares the machine with the server that it measures, so it does as little as it can.

Requests are prepared bytes, connections are kept alive, and each carries one request at a time. The clock is read
when the request is written and when the parser sees the answer's end, not when a task gets its turn. A closed loop
sends the next request when the last is answered; an open loop sends at given times whatever the server does, and
counts waiting from the time when a request was due (else a slow server would be asked less: coordinated omission).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import ssl
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from service.comparison.errors import LoadError

LIMIT_SECONDS = 60.0
NO_ANSWER = 0
END_OF_STREAM = "end of stream"

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reply:
    """One request's answer; times are of `perf_counter`, in seconds.

    `status` is `NO_ANSWER` (0) where the connection failed; `body` then says how. It ends with `END_OF_STREAM` where
    the server closed the connection after it had read everything: with bytes unread it would have been reset.
    """

    index: int
    status: int
    body: bytes
    due: float
    sent: float
    ended: float

    @property
    def latency(self) -> float:
        """Seconds from when the request was due (in a closed loop: sent) to its answer's last byte."""
        return self.ended - self.due


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests go: `http://host:port/prefix`, taken apart."""

    url: str
    host: str
    port: int
    prefix: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Origin:
        """Take a URL apart.

        Raises:
            LoadError: not an http or https URL with a host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise LoadError(f"{url!r} is not a URL ({error}): use http://host:port") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise LoadError(f"{url!r} is not a server's URL: use http://host:port")
        tls = parts.scheme == "https"
        return cls(url.rstrip("/"), parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/"), tls)

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> bytes:
        """A whole POST request with a JSON body, ready to be written."""
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        host = f"[{self.host}]" if ":" in self.host else self.host
        further = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"POST {self.prefix}{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\nContent-Type: application/json\r\n"
            f"{further}Content-Length: {len(content)}\r\n\r\n"
        )
        return head.encode("ascii") + content


class _Answer(NamedTuple):
    """What is known when the parser has seen an answer's end."""

    ended: float
    status: int
    keep_alive: bool


class Connection(asyncio.Protocol):
    """One keep-alive connection, opened again where the server has closed it between requests."""

    def __init__(self, origin: Origin, limit_seconds: float) -> None:
        self._origin = origin
        self._limit = limit_seconds
        self._transport: asyncio.Transport | None = None  # set by `open`, None again when either side has closed
        self._answer: asyncio.Future[_Answer] | None = None  # made by `ask`; ended by the answer, a loss or the limit
        self._parser = HttpResponseParser(self)
        self._body: list[bytes] = []  # of the answer that is coming in

    async def open(self) -> asyncio.Transport:
        """Connect, unless connected.

        Raises:
            LoadError: refused, no such host, or no connection within the limit.
        """
        if self._transport is None or self._transport.is_closing():
            context = ssl.create_default_context() if self._origin.tls else None
            self._parser = HttpResponseParser(self)
            try:
                async with asyncio.timeout(self._limit):
                    self._transport, _ = await asyncio.get_running_loop().create_connection(
                        lambda: self, self._origin.host, self._origin.port, ssl=context
                    )
            except (OSError, TimeoutError) as error:
                reason = str(error) or f"no connection within {self._limit:g} s"
                raise LoadError(f"{self._origin.url} can't be reached ({reason}): is the server running?") from error
        return self._transport

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    async def ask(self, request: bytes, index: int = 0, due: float | None = None) -> Reply:
        """Send one request and wait for its answer.

        Raises:
            LoadError: no connection, the connection was lost, no answer within the limit, or not HTTP.
        """
        transport = await self.open()
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._body = []
        timer = loop.call_later(self._limit, self._fail, f"gave no answer within {self._limit:g} s")
        sent = perf_counter()
        transport.write(request)
        try:
            answer = await self._answer
        except BaseException:
            self.close()  # an answer that comes late must not be taken for the next request's
            raise
        finally:
            timer.cancel()
        if not answer.keep_alive:
            self.close()
        return Reply(index, answer.status, b"".join(self._body), sent if due is None else due, sent, answer.ended)

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LoadError(f"{self._origin.url} {reason}"))

    # asyncio's callbacks

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(f"did not answer in HTTP ({error})")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that was waiting."""
        self._transport = None
        self._fail(f"closed the connection without an answer: {exc or END_OF_STREAM}")

    # the parser's callbacks

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Stamp the answer: the parser forgets status and keep-alive right after this call."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(
                _Answer(perf_counter(), self._parser.get_status_code(), self._parser.should_keep_alive())
            )


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
            async with asyncio.TaskGroup() as calls:
                for index, arrival in enumerate(arrivals):
                    due = start + arrival
                    await _sleep_until(due)
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


async def _sleep_until(due: float) -> None:
    """Return at `due` or within the loop's next turn, not before: timers round, and may fire a millisecond early."""
    while (delay := due - perf_counter()) > 0:  # noqa: ASYNC110 - it waits for a time, not for another task
        await asyncio.sleep(delay)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in `[0, seconds)` of a Poisson process with `rate` arrivals a second."""
    import numpy as np

    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, math.ceil(rate * seconds * 1.5) + 50)
    times = np.cumsum(gaps)
    return [float(time) for time in times[times < seconds]]


def run(main: Coroutine[object, object, Result]) -> Result:
    """Run a coroutine on the fastest event loop that is installed."""
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)


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
