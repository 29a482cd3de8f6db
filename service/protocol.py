"""One client's connection: uvicorn's HTTP protocol with fewer system calls, bounded patience and our own refusals."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from model_store.errors import SuccessorError
from service.api.common import Connection, Service, explain
from service.errors import InvalidRequestError, RequestTimeoutError, outcome_of


class CorkedTransport(asyncio.Transport):
    """Writes once what is written within one turn of the event loop.

    uvicorn writes an answer's head and its body separately. Two system calls, each of which wakes the client, cost more
    than everything else that the server does for a short request.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep the bytes until the event loop's next turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(bytes(data))

    def close(self) -> None:
        """Close once everything is written."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close now, whatever is not written yet."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """The connection is closed or about to be."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's signature
        """What is known about the connection."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol on corked transports.

    It drops what a client has asked for when it hangs up, and lets no client hold a connection without asking: now and
    then, one sweep over all connections looks at how long each was waited for, so that requests need no timers.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        self._connection = Connection()
        self._service: Service = self.app_state["service"]
        self._begun = False  # a request has begun to arrive and has not ended
        self._since = self.loop.time()  # when that, or the wait for it, began
        self.app_state = {**self.app_state, "connection": self._connection}
        super().connection_made(CorkedTransport(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection: nobody waits for its answers."""
        super().connection_lost(exc)
        for job in list(self._connection.jobs):
            self._service.engine.abandon(job)

    def on_message_begin(self) -> None:
        """Note when a request begins to arrive."""
        self._begun = True
        self._since = self.loop.time()
        super().on_message_begin()

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

    def _give_up(self) -> None:
        last = self._last
        answered = last is not None and last.scope is self.scope and last.response_started
        if self._begun and not answered:
            self._connection.timed_out = True
            limit_ms = self._service.settings.receive_timeout_ms
            self._refuse(RequestTimeoutError(f"the request did not arrive within {limit_ms} ms: send it faster"))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what is not HTTP, in the documented shape."""
        self._refuse(InvalidRequestError("this is not a valid HTTP/1.1 request: see /docs"))

    def _refuse(self, error: SuccessorError) -> None:
        """Answer without the application, and close."""
        self._service.metrics.refusals.labels(outcome_of(error).code).inc()
        reply = explain(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", self._service.next_request_id().encode()),
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in [*self.server_state.default_headers, *headers]]
        self.transport.write(
            b"HTTP/1.1 %d %b\r\n%b\r\n%b"
            % (reply.status, HTTPStatus(reply.status).phrase.encode(), b"".join(lines), reply.body)
        )
        self.transport.close()
