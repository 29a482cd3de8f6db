"""One keep-alive connection that carries one request at a time: prepared bytes out, a stamped reply back.

The clock is read when the request is written and when the parser sees the answer's end, not when a task gets its turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from service.comparison.errors import LoadError

NO_ANSWER = 0
END_OF_STREAM = "end of stream"
# After the server's end of stream, how long its reset may take.
_RESET_SECONDS = 0.05


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


class _Asked(NamedTuple):
    """The request that waits for its answer."""

    number: int
    due: float
    sent: float
    timer: asyncio.TimerHandle
    ended: Callable[[Reply | LoadError], None]


class Connection(asyncio.Protocol):
    """One keep-alive connection, opened again where the server has closed it between requests."""

    def __init__(self, origin: Origin, limit_seconds: float) -> None:
        self._origin = origin
        self._limit = limit_seconds
        self._transport: asyncio.Transport | None = None  # set by `open`, None again when either side has closed
        self._asked: _Asked | None = None  # set by `begin`; None again after the answer, a loss or the limit
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

    def abandon(self) -> None:
        """Give a request up, and the connection with it: a late answer must not be taken for the next request's."""
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent at once."""
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, request: bytes, index: int, due: float | None, ended: Callable[[Reply | LoadError], None]) -> None:
        """Send one request over a connection that is open, without a task that waits for its answer.

        Args:
            request: the bytes.
            index: of the request, for its reply.
            due: when it should have been sent, or None: now.
            ended: called once with the reply, or with what `ask` would raise, unless the request is abandoned; it must
                not raise anything.

        Raises:
            LoadError: the connection is closed; nothing was sent.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise LoadError(f"{self._origin.url} closed the connection before a request was sent")
        self._body = []
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._limit, self._fail, f"gave no answer within {self._limit:g} s")
        sent = perf_counter()
        self._asked = _Asked(index, sent if due is None else due, sent, timer, ended)
        transport.write(request)

    async def ask(self, request: bytes, index: int = 0) -> Reply:
        """Send one request and wait for its answer.

        Raises:
            LoadError: no connection, the connection was lost, no answer within the limit, or not HTTP.
        """
        await self.open()
        outcome: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def end(ended: Reply | LoadError) -> None:
            if outcome.done():
                return
            if isinstance(ended, LoadError):
                outcome.set_exception(ended)
            else:
                outcome.set_result(ended)

        self.begin(request, index, None, end)
        try:
            return await outcome
        except asyncio.CancelledError:
            self.abandon()
            raise

    def _forget(self) -> _Asked | None:
        """The request that waited, which nobody waits for any more."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.timer.cancel()
        return asked

    def _fail(self, reason: str) -> None:
        asked = self._forget()
        if asked is not None:
            self.close()
            asked.ended(LoadError(f"{self._origin.url} {reason}"))

    # asyncio's callbacks

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(f"did not answer in HTTP ({error})")
            self.close()

    def eof_received(self) -> bool:
        """Keep our side open for a moment where a request waits, to learn whether the server had read it.

        If it had not, its system resets the connection when the bytes that nobody reads arrive.
        """
        if self._asked is None:
            return False
        asyncio.get_running_loop().call_later(_RESET_SECONDS, self._judge_end)
        return True

    def _judge_end(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            error = self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._fail(_closed(os.strerror(error) if error else END_OF_STREAM))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that was waiting."""
        self._transport = None
        self._fail(_closed(str(exc or END_OF_STREAM)))

    # the parser's callbacks

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Stamp the answer: the parser forgets status and keep-alive right after this call."""
        ended = perf_counter()
        asked = self._forget()
        if asked is None:
            return
        if not self._parser.should_keep_alive():
            self.close()
        status, body = self._parser.get_status_code(), b"".join(self._body)
        asked.ended(Reply(asked.number, status, body, asked.due, asked.sent, ended))


def _closed(reason: str) -> str:
    return f"closed the connection without an answer: {reason}"
