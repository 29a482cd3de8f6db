"""Processes, signals and logs: `serve` runs the app on uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import math
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn
import uvloop

from service.access import parse_keys, read_keys
from service.allocator import tune_allocator
from service.api.common import Service
from service.app import check_installation, create_app
from service.background import left_behind
from service.errors import ListenError, TlsError
from service.logs import configure_logs
from service.processes import Listeners, Supervisor
from service.protocol import Protocol
from service.scheduling import LOOP_SLICE_S, set_time_slice
from service.settings import Settings

log = structlog.get_logger(__name__)

# After SIGTERM, how long requests on open connections are still taken, each answered with `Connection: close`.
_FAREWELL_S = 0.3
# How long what goes on beside answering, such as the measurement of a call, may take to end.
_LAST_CALLS_S = 1.0
# How many of uvicorn's ticks, each 0.1 s, lie between two sweeps over the connections.
_SWEEP_TICKS = 5
# How long a client may take over TLS's handshake, during which it is no connection that is counted.
_HANDSHAKE_S = 5.0
# Files that a process has open beside its connections.
_OTHER_FILES = 256


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then answer what is in flight; returns the exit code.

    Raises:
        ListenError: an address is taken or not this machine's.
        TlsError: the certificate or its key can't be used.
        SuccessorError: the settings can't be met, see `create_app`.
    """
    configure_logs(settings)
    # With several processes, this one only looks after them.
    check_installation(settings, try_provider=settings.processes == 1)
    check_access(settings)
    if settings.grpc_port:
        listen(settings.host, settings.grpc_port).close()  # each process binds it itself: say now that it is taken
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listen(settings.host, settings.port))]
        if settings.operations_port is not None:
            host = settings.operations_host or settings.host
            listeners.append(stack.enter_context(listen(host, settings.operations_port)))
            # Whichever port it is, requests are told apart by it.
            settings = settings.model_copy(update={"operations_port": listeners[-1].getsockname()[1]})
        if settings.processes == 1:
            return run_process(settings, listeners)
        return Supervisor(settings, listeners, run_process).serve()


def check_access(settings: Settings) -> None:
    """See before anything is started that keys and certificate can be used, and warn of a server that is open to all.

    Raises:
        KeysFileError: the API keys can't be read.
        TlsError: the certificate or its key can't be used.
    """
    if settings.api_keys_file is not None:
        parse_keys(read_keys(settings.api_keys_file), settings.api_keys_file)
    elif not is_loopback(settings.host):
        log.warning("anybody who reaches this address may use it: SUCCESSOR_API_KEYS_FILE", host=settings.host)
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        check_certificate(settings.tls_cert_file, settings.tls_key_file)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_certificate(cert_file: Path, key_file: Path) -> None:
    """See that a certificate and its private key can be read and belong together.

    Raises:
        TlsError: one line that says what is wrong with which file.
    """
    for file in (cert_file, key_file):
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            raise TlsError(f"{file} can't be read ({error.strerror}): check its path and owner") from error

    def no_password() -> str:
        raise TlsError(f"the private key {key_file} has a password: give the server one without")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"the private key {key_file} is not that of the certificate {cert_file}") from error
        raise TlsError(f"{cert_file} and {key_file} are not a certificate and its key in PEM") from error


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


def run_process(settings: Settings, listeners: Listeners, control_dir: Path | None = None) -> int:
    """Run one server process on listening sockets, the second for operations, until a signal ends it."""
    configure_logs(settings)
    app = create_app(settings, control_dir)
    config = uvicorn.Config(
        app,
        loop=f"{__name__}:Loop",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_ms / 1e3),
        timeout_graceful_shutdown=max(1, math.ceil(settings.drain_ms / 1e3)),
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
    )
    server = Server(config)
    tune_interpreter()
    tune_allocator()
    set_time_slice(LOOP_SLICE_S)
    allow_connections(settings.max_connections)
    scheme = "http" if settings.tls_cert_file is None else "https"
    urls = [f"{scheme}://{address(*listener.getsockname()[:2])}" for listener in listeners]
    log.info("starting", url=urls[0], operations=urls[-1], process=os.getpid())
    server.run(sockets=list(listeners))
    code = 0 if server.started and not server.disabled else 1
    left = left_behind(_LAST_CALLS_S)
    if left:
        log.warning("calls that do not come back are left behind", threads=left)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def allow_connections(count: int) -> None:
    """Raise the process's limit of open files, as far as it may, to what so many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("the limit of open files is below max_connections: raise it", limit=allowed, connections=count)


def tune_interpreter() -> None:
    """Let the garbage collector ignore what start-up made and look less often at what requests leave.

    The event loop asks a worker that runs Python for the interpreter after half a millisecond instead of five.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class Loop(uvloop.Loop):
    """uvloop's, with less patience for those who open a connection and leave TLS's handshake unfinished."""

    async def create_server(self, *arguments: Any, ssl: Any = None, **named: Any) -> Any:  # noqa: ANN401
        """Listen; uvicorn has no setting for how long a handshake may take."""
        patience_s = None if ssl is None else _HANDSHAKE_S
        return await super().create_server(*arguments, ssl=ssl, ssl_handshake_timeout=patience_s, **named)


class Server(uvicorn.Server):
    """uvicorn's server with a farewell: connections learn from their last answer that they end, and exit is 0."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leave_at = math.inf
        self._signal: int | None = None
        """What began the farewell, until that is logged."""
        self.disabled = False
        """It went down by itself, since no worker could answer any more."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin the farewell at the first signal; at the second, cut it short; while it starts, end at once.

        While models load nothing is in flight, but for a call over gRPC in the last milliseconds of it, and nothing has
        been written that is not whole. One of several processes is not cut short by signals: its parent kills it if it
        takes too long.

        It may interrupt this thread anywhere, also where it holds the log's lock: it takes none and logs nothing.
        """
        if not self.started:
            os._exit(0)  # an exception would have to find its way out of whatever a load is in
        if self._leave_at < math.inf:
            # A service manager tells every process of a group, and the parent tells its own again.
            if multiprocessing.parent_process() is None:
                self.should_exit = self.force_exit = True
            return
        self._signal = sig
        self._begin_farewell()

    def _begin_farewell(self) -> None:
        service: Service = self.lifespan.state["service"]
        service.begin_to_drain()
        self._leave_at = time.monotonic() + _FAREWELL_S

    async def on_tick(self, counter: int) -> bool:
        """Sweep; stop once the farewell is over, where uvicorn then waits for what is in flight."""
        if self._signal is not None:
            log.info("going down", signal=signal.Signals(self._signal).name)
            self._signal = None
        service: Service = self.lifespan.state["service"]
        if not service.draining and not service.engine.able:
            log.error("no worker can answer: the process ends, to be started again")
            self.disabled = True
            self._begin_farewell()
        if counter % _SWEEP_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for protocol in list(self.server_state.connections):
                if isinstance(protocol, Protocol):
                    protocol.sweep(now)
        if self._leave_at < math.inf and (time.monotonic() >= self._leave_at or not self.server_state.connections):
            self.should_exit = True
        return await super().on_tick(counter)
