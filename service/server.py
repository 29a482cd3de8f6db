"""Processes, signals and logs: `serve` runs the app on uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.common import Connection, Service
from service.app import check_installation, create_app
from service.errors import ListenError
from service.logs import configure_logs
from service.processes import Supervisor
from service.settings import Settings

log = structlog.get_logger(__name__)

# After SIGTERM, how long requests on open connections are still taken, each answered with `Connection: close`.
_FAREWELL_S = 0.3


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then answer what is in flight; returns the exit code.

    Raises:
        ListenError: the address is taken or not this machine's.
        SuccessorError: the settings can't be met, see `create_app`.
    """
    configure_logs(settings)
    check_installation(settings)
    with listen(settings.host, settings.port) as listener:
        if settings.processes == 1:
            return run_process(settings, listener)
        return Supervisor(settings, listener, run_process).serve()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound and listens.

    Raises:
        ListenError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ListenError(
            f"can't listen on {host}:{port} ({error.strerror}): choose another --host or --port"
        ) from error
    return listener


def run_process(settings: Settings, listener: socket.socket, control_dir: Path | None = None) -> int:
    """Run one server process on a listening socket until a signal ends it."""
    configure_logs(settings)
    app = create_app(settings, control_dir)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, math.ceil(settings.drain_ms / 1e3)),
    )
    server = Server(config)
    tune_interpreter()
    host, port = listener.getsockname()[:2]
    log.info("starting", url=f"http://{host}:{port}", workers=settings.workers, process=os.getpid())
    server.run(sockets=[listener])
    return 0 if server.started else 1


def tune_interpreter() -> None:
    """Let the garbage collector ignore what start-up made and look less often at what requests leave.

    The event loop asks a worker that runs Python for the interpreter after half a millisecond instead of five.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


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
    """uvicorn's HTTP protocol, on corked transports, that drops what a client has asked for when it hangs up."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        self._connection = Connection()
        self.app_state = {**self.app_state, "connection": self._connection}
        super().connection_made(CorkedTransport(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection: nobody waits for its answers."""
        super().connection_lost(exc)
        service: Service = self.app_state["service"]
        for job in list(self._connection.jobs):
            service.engine.abandon(job)


class Server(uvicorn.Server):
    """uvicorn's server with a farewell: connections learn from their last answer that they end, and exit is 0."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leave_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin the farewell at the first signal; at the second, cut it short; while starting, end when started."""
        if not self.started:
            self.should_exit = True
            return
        if self._leave_at < math.inf:
            self.should_exit = self.force_exit = True
            return
        log.info("going down", signal=signal.Signals(sig).name)
        service: Service = self.lifespan.state["service"]
        service.draining = True
        self._leave_at = time.monotonic() + _FAREWELL_S

    async def on_tick(self, counter: int) -> bool:
        """Stop once the farewell is over; uvicorn then waits for what is in flight."""
        if self._leave_at < math.inf and (time.monotonic() >= self._leave_at or not self.server_state.connections):
            self.should_exit = True
        return await super().on_tick(counter)
