"""One client's connection: uvicorn's HTTP protocol with fewer system calls, bounded patience and our own refusals."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from model_store.errors import SuccessorError
from service.api.common import WHOLE, Connection, Headers, Service, explain
from service.api.dialects import TABLE
from service.api.envelope import refusal_at_once
from service.errors import (
    BodyTooLargeError,
    HeaderTooLargeError,
    InvalidRequestError,
    RequestTimeoutError,
    TooManyConnectionsError,
)

# How long, and for how many bytes, a connection that was refused is read on; how long one too many may say nothing.
_LINGER_S = 1.0
_LINGER_BYTES = 2**20
# The name of a header field that asks for another protocol. As RFC 9110 (7.8) allows, none is changed to; the parser
# would then take a body for that protocol's bytes. Java's own client asks for HTTP/2 with every first request.
_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)
_IGNORED = b"\r\nignored"
# Where less is waited, few deadlines are out of reach, and it is not worth a look at each request's.
_SHORT_WAIT_S = 0.05
# So many connections beyond those that are allowed are told why they are refused; more are closed at once.
_MOST_EXCESS = 64
# What is not HTTP is refused and counted, and says nothing that a log should have.
_QUIET = logging.getLogger("uvicorn.error.protocol")
_QUIET.setLevel(logging.ERROR)
# Bytes on the wire for a byte of a body, at most: a body may come in many small chunks.
_WIRE_SHARE = 2


class Sender:
    """What an application sends an answer with: ASGI's messages, and, where the first has the whole body, one write.

    uvicorn writes head and body separately. Two system calls, each of which wakes the client, cost more than everything
    else that the server does for a short request.

    Args:
        cycle: uvicorn's own part of the request.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    async def __call__(self, message: Message) -> None:
        """Send a message.

        Raises:
            RuntimeError: a header has an end of line in it, or the answer was sent already.
        """
        cycle = self._cycle
        if WHOLE not in message or cycle.response_started:
            await cycle.send(message)  # type: ignore[arg-type]
            return
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if not cycle.disconnected:
            self.write(message)

    def write(self, message: Message) -> None:
        """Send a whole answer to a client that is there and reads.

        Raises:
            RuntimeError: a header has an end of line in it.
        """
        cycle, body = self._cycle, message[WHOLE]
        headers: Headers = [*cycle.default_headers, *message["headers"]]
        if (b"connection", b"close") in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        written = _written(message["status"], headers, b"" if cycle.scope["method"] == "HEAD" else body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(written)
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class _Trailers(list[tuple[bytes, bytes]]):
    """Takes the fields that follow a body in chunks, and keeps none: whoever checked the header has not seen them.

    Source: RFC 9110, 6.5.1, which lets a recipient throw them away.

    Args:
        limit: bytes of them in one request.
        refuse: raises, where there are more.
    """

    def __init__(self, limit: int, refuse: Callable[[], NoReturn]) -> None:
        super().__init__()
        self._limit, self._refuse = limit, refuse
        self.bytes = 0

    def append(self, field: tuple[bytes, bytes]) -> None:
        """Count a field."""
        self.bytes += len(field[0]) + len(field[1]) + 4
        if self.bytes > self._limit:
            self._refuse()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with a `Sender`.

    It drops what a client has asked for when it hangs up, and lets no client hold a connection without asking: now and
    then, one sweep over all connections looks at how long each was waited for, so that requests need no timers.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        self._connection = Connection()
        self._service: Service = self.app_state["service"]
        self._begun = False  # a request has begun to arrive and has not ended
        self._since = self.loop.time()  # when that, or the wait for it, began
        self._heading = True  # its header has not ended
        self._tail = b""  # of what was read last
        self._chunk_bytes = 0  # of what is being read now
        self._request_bytes = 0  # of the request, but for the chunk in which it began
        self._refusal: SuccessorError | None = None  # why the connection ends; what comes then is thrown away
        self._running: RequestResponseCycle | None = None  # what the application was last asked to answer
        self._full_since = math.inf  # since when the client has not read what was written
        self.url = b""
        self.logger = _QUIET
        self._trailers = _Trailers(
            self._service.settings.max_header_bytes, lambda: self._stop(self._header_too_large())
        )
        self.app_state = {**self.app_state, "connection": self._connection}
        super().connection_made(transport)
        # An operator gets in where others are too many.
        at_operations = self.server is not None and self.server[1] == self._service.operations_port
        excess = 0 if at_operations else len(self.connections) - self._service.settings.max_connections
        self._excess = excess > 0
        if excess > _MOST_EXCESS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read on, but no request without end."""
        self._request_bytes += len(data)
        if self._refusal is not None:
            if self._request_bytes > _LINGER_BYTES:
                self.transport.close()
            return
        self._chunk_bytes = len(data)
        before = self._tail if self._begun else b""
        self._tail = (before + data[-3:])[-3:]
        in_header = self._heading or not self._begun
        # The header's end may have begun with the bytes before: then nothing of it is here.
        if in_header and (b"pgrade" in data or b"PGRADE" in data) and b"\r\n\r\n" not in before + data[:3]:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(_IGNORED, head) + end + rest
        super().data_received(data)
        if self._request_bytes > self._service.settings.max_header_bytes and self._refusal is None:
            self._cut_off()

    def _cut_off(self) -> None:
        """Read no more of a request that is too large, though the application may have answered it long ago."""
        settings = self._service.settings
        if self._heading:
            self._refuse(self._header_too_large())
        elif self._begun and self._request_bytes > _WIRE_SHARE * settings.max_body_bytes + settings.max_header_bytes:
            self._refuse(BodyTooLargeError(f"the body is larger than {settings.max_body_bytes} bytes"))

    def on_headers_complete(self) -> None:
        """Look at what a request needs to be let in, before anything else is made of it."""
        self._heading = False
        if self._excess:
            self._stop(TooManyConnectionsError("the server has as many connections as it may: try again later"))
        if self._request_bytes + self._chunk_bytes > self._service.settings.max_header_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._service.settings.max_header_bytes:
                self._stop(self._header_too_large())
        if self.parser.should_upgrade():  # the field's name came in pieces
            self._stop(InvalidRequestError("this server speaks HTTP/1.1 only: send no Upgrade, and no CONNECT"))
        super().on_headers_complete()
        self._trailers.bytes = 0
        self.headers = self._trailers  # for what follows the body; the request has the list of before

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection: nobody waits for its answers."""
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells the last request only, which may still wait for its turn
            _silence(self._running)
        for job in list(self._connection.jobs):
            self._service.engine.abandon(job)

    def on_message_begin(self) -> None:
        """Note when a request begins to arrive."""
        self._begun = self._heading = True
        self._request_bytes = 0
        self._since = self.loop.time()
        super().on_message_begin()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - see Sender for its types
        if self.transport.is_closing():  # an answer has ended the connection, and the parser reads on
            return
        self._running = cycle
        cycle.scope["extensions"] = {WHOLE: {}}
        # One of several requests in a row would be answered from within the answer to the one before it.
        engine = self._service.engine
        crowded = engine.full or engine.predicted_wait_s > _SHORT_WAIT_S
        if crowded and not self.pipeline and not self.flow.write_paused:
            try:
                refusal = refusal_at_once(cycle.scope, TABLE.find(cycle.scope["path"]))  # type: ignore[arg-type]
            except Exception:  # noqa: BLE001 - the usual way answers and logs it; here it would be taken for bad HTTP
                refusal = None
            if refusal is not None:
                Sender(cycle).write(refusal)
                return
        super()._start_asgi_task(cycle, lambda scope, receive, _: app(scope, receive, Sender(cycle)))

    def on_message_complete(self) -> None:
        """Note that it has arrived."""
        self._begun = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request from now on: while the server was busy, it may not have read.

        This is uvicorn's method without a timer for each request: `sweep` closes idle connections.
        """
        self._since = self.loop.time()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def pause_writing(self) -> None:
        """Note since when the client has not read."""
        self._full_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it reads."""
        self._full_since = math.inf
        super().resume_writing()

    def sweep(self, now: float) -> None:
        """Give up a client that is too slow, or asks for nothing for too long.

        Args:
            now: the event loop's time, seconds.
        """
        settings = self._service.settings
        receive_s, keep_alive_s = settings.receive_timeout_ms / 1e3, settings.keep_alive_ms / 1e3
        waited_s = now - self._since
        if self.transport.is_closing():
            # Closed, but the client does not read what was written.
            if waited_s > receive_s + keep_alive_s:
                self.transport.abort()
        elif now - self._full_since > receive_s:
            self.transport.abort()
        elif self._refusal is not None:
            if waited_s > _LINGER_S:
                self.transport.close()
        elif self._excess and waited_s > _LINGER_S:
            self._refuse(TooManyConnectionsError("the server has as many connections as it may: try again later"))
        elif not self._busy() and waited_s > (receive_s if self._begun else keep_alive_s):
            self._give_up()

    @property
    def _last(self) -> RequestResponseCycle | None:
        """The last request whose header has arrived; uvicorn's own type hides that there may be none."""
        return self.cycle

    def _busy(self) -> bool:
        """The server, not the client, is to act next."""
        last = self._last
        return bool(self.pipeline) or (last is not None and not last.response_complete and not last.more_body)

    def _answered(self) -> bool:
        """The request that is being read has its answer already."""
        last = self._last
        return last is not None and last.scope is self.scope and last.response_started

    def _give_up(self) -> None:
        if self._begun:
            limit_ms = self._service.settings.receive_timeout_ms
            self._refuse(RequestTimeoutError(f"the request did not arrive within {limit_ms} ms: send it faster"))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what is not HTTP, or what was stopped while it was read."""
        self._refuse(self._refusal or InvalidRequestError("this is not a valid HTTP/1.1 request: see /docs"))

    def _stop(self, error: SuccessorError) -> NoReturn:
        """End the reading of a request from within; the parser then has it answered by `send_400_response`."""
        self._refusal = error
        raise error

    def _header_too_large(self) -> SuccessorError:
        limit = self._service.settings.max_header_bytes
        return HeaderTooLargeError(f"the request's header is larger than {limit} bytes: send fewer or shorter fields")

    def _refuse(self, error: SuccessorError) -> None:
        """Answer without the application, and close.

        The client may still be sending: what it sends is thrown away for a while, since closing at once would take the
        answer back.
        """
        self._refusal = error
        self._request_bytes = 0
        self._since = self.loop.time()
        if self._begun and self._answered():
            self.transport.close()
            return
        last = self._last
        if self.pipeline or (last is not None and last.scope is not self.scope and not last.response_complete):
            # The answer would be taken for that of an earlier request.
            self.transport.abort()
            return
        self._connection.refused = True
        if last is not None and last.scope is self.scope:
            _silence(last)  # nothing can be written after the end
        self.flow.resume_reading()
        dialect = TABLE.dialect_of(self.url.partition(b"?")[0].decode("latin-1"))
        self._service.metrics.count_refusal(error)
        reply = explain(error, dialect)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", self._service.next_request_id().encode()),
            (b"connection", b"close"),
        ]
        self.transport.write(_written(reply.status, headers, reply.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


def _written(status: int, headers: Headers, body: bytes) -> bytes:
    """An answer as it goes over the wire.

    Raises:
        RuntimeError: a header has an end of line in it.
    """
    head = b"".join([b"%b: %b\r\n" % header for header in headers])
    if head.count(b"\n") != len(headers) or head.count(b"\r") != len(headers) or b"\0" in head:
        raise RuntimeError("a header of an answer has an end of line in it")
    return b"%b%b\r\n%b" % (STATUS_LINE[status], head, body)


def _silence(cycle: RequestResponseCycle) -> None:
    """Write nothing more of an answer, and tell the application that its client has gone."""
    cycle.disconnected = True
    cycle.waiting_for_100_continue = False
    cycle.message_event.set()
