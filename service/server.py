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

import structlog
import uvicorn

from service.api.common import Service
from service.app import check_installation, create_app
from service.errors import ListenError
from service.logs import configure_logs
from service.processes import Supervisor
from service.protocol import Protocol
from service.settings import Settings

log = structlog.get_logger(__name__)

# After SIGTERM, how long requests on open connections are still taken, each answered with `Connection: close`.
_FAREWELL_S = 0.3
# How many of uvicorn's ticks, each 0.1 s, lie between two sweeps over the connections.
_SWEEP_TICKS = 5


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then answer what is in flight; returns the exit code.

    Raises:
        ListenError: the address is taken or not this machine's.
        SuccessorError: the settings can't be met, see `create_app`.
    """
    configure_logs(settings)
    check_installation(settings)
    if settings.grpc_port:
        listen(settings.host, settings.grpc_port).close()  # each process binds it itself: say now that it is taken
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
            f"can't listen on {address(host, port)} ({error.strerror}): choose another --host or --port"
        ) from error
    return listener


def address(host: str, port: int) -> str:
    """Host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
        timeout_keep_alive=math.ceil(settings.keep_alive_ms / 1e3),
        timeout_graceful_shutdown=max(1, math.ceil(settings.drain_ms / 1e3)),
    )
    server = Server(config)
    tune_interpreter()
    host, port = listener.getsockname()[:2]
    log.info("starting", url=f"http://{address(host, port)}", process=os.getpid())
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
        """Sweep; stop once the farewell is over, where uvicorn then waits for what is in flight."""
        if counter % _SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for protocol in list(self.server_state.connections):
                if isinstance(protocol, Protocol):
                    protocol.sweep(now)
        if self._leave_at < math.inf and (time.monotonic() >= self._leave_at or not self.server_state.connections):
            self.should_exit = True
        return await super().on_tick(counter)
