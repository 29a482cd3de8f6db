"""One connection: clients that are slow, silent, or do not speak HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn.server import ServerState

from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.app import create_app
from service.protocol import Protocol
from service.settings import load_settings
from tests.web import WebClient, running_app

HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
BODY = json.dumps({"model": "tiny", "input": "a good film"}).encode()
WHOLE = HEAD % len(BODY) + BODY


class Listening:
    """The app behind `Protocol` on a socket, in this process, and the clock that a sweep goes by."""

    def __init__(self, client: WebClient, address: tuple[str, int], state: ServerState) -> None:
        self.client = client
        self.address = address
        self.state = state

    @contextlib.contextmanager
    def connected(self, sent: bytes = b"") -> Iterator[Peer]:
        with socket.create_connection(self.address, timeout=20) as connection:
            connection.sendall(sent)
            peer = Peer(connection)
            with peer.file:
                yield peer

    def sweep(self, later_s: float = 0.0) -> None:
        async def sweep() -> None:
            for protocol in list(self.state.connections):
                assert isinstance(protocol, Protocol)
                protocol.sweep(self.client.loop.time() + later_s)

        asyncio.run_coroutine_threadsafe(sweep(), self.client.loop).result(20)

    def sweep_when(self, *, begun: bool, later_s: float) -> None:
        """Sweep once the only connection is there, and has read the beginning of a request or not."""

        async def arrive() -> None:
            while [getattr(one, "_begun", None) for one in self.state.connections] != [begun]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(arrive(), self.client.loop).result(20)
        self.sweep(later_s)

    def refusals(self, reason: str) -> float:
        counter = self.client.service.metrics.refusals.labels(reason)
        return float(counter._value.get())


class Peer:
    """A client's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.file = connection.makefile("rb")

    def answer(self) -> tuple[int, dict[str, str], dict[str, object]]:
        status = int(self.file.readline().split()[1])
        lines = iter(self.file.readline, b"\r\n")
        headers = {name: value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}
        return status, headers, json.loads(self.file.read(int(headers["content-length"])))

    def rest(self) -> bytes:
        """What comes until the server closes."""
        return self.file.read()


@pytest.fixture
def listening(store: ModelStore, tiny: ModelId) -> Iterator[Listening]:
    settings = load_settings(store_dir=store.root, threads=1, receive_timeout_ms=2_000, keep_alive_ms=7_000)
    app = create_app(settings)
    with running_app(app) as client:
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=7)
        state = ServerState()

        async def start() -> asyncio.Server:
            return await client.loop.create_server(
                lambda: Protocol(config, state, {"service": client.service}), "127.0.0.1", 0
            )

        async def stop() -> None:
            server.close()
            for protocol in list(state.connections):
                protocol.shutdown()
            while state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.001)

        server = asyncio.run_coroutine_threadsafe(start(), client.loop).result(20)
        yield Listening(client, server.sockets[0].getsockname(), state)
        asyncio.run_coroutine_threadsafe(stop(), client.loop).result(20)


@pytest.mark.parametrize(
    "sent",
    [b"P", b"POST /v1/classify HTTP/1.1\r\nHo", HEAD % 100, HEAD % 100 + b"{", (HEAD + b"{") % 100 + b" " * 98],
)
def test_a_request_that_does_not_arrive_in_time_is_answered_and_its_connection_closed(
    listening: Listening, sent: bytes
) -> None:
    with listening.connected(sent) as peer:
        listening.sweep_when(begun=True, later_s=1.5)
        assert listening.refusals("request_timeout") == 0
        listening.sweep(later_s=2.5)
        status, headers, body = peer.answer()
        assert (status, headers["connection"], headers["content-type"]) == (408, "close", "application/json")
        assert headers["x-request-id"]
        assert body["error"] == {
            "message": "the request did not arrive within 2000 ms: send it faster",
            "type": "timeout_error",
            "param": None,
            "code": "request_timeout",
        }
        assert peer.rest() == b""
    assert (listening.refusals("request_timeout"), listening.refusals("client_closed_request")) == (1, 0)


def test_a_later_request_of_a_connection_has_the_same_time(listening: Listening) -> None:
    with listening.connected(WHOLE) as peer:
        assert peer.answer()[0] == 200
        peer.connection.sendall(HEAD % 9)
        listening.sweep_when(begun=True, later_s=2.5)
        assert peer.answer()[0] == 408
        assert peer.rest() == b""


def test_a_silent_connection_is_closed_without_an_answer(listening: Listening) -> None:
    for sent in (b"", WHOLE):
        with listening.connected(sent) as peer:
            if sent:
                assert peer.answer()[0] == 200
            listening.sweep_when(begun=False, later_s=6.5)
            peer.connection.sendall(WHOLE)
            assert peer.answer()[0] == 200
            listening.sweep(later_s=7.5)
            assert peer.rest() == b""


def test_the_rest_of_a_request_that_was_refused_is_not_waited_for_and_not_answered_again(listening: Listening) -> None:
    with listening.connected(HEAD % 10**9) as peer:
        assert peer.answer()[0] == 413
        listening.sweep_when(begun=True, later_s=2.5)
        assert peer.rest() == b""
    assert listening.refusals("request_timeout") == 0


def test_a_request_that_the_server_works_on_is_waited_for(listening: Listening) -> None:
    async def hold() -> None:
        """Read and sweep in one turn of the loop: nothing can be answered before."""
        transport = _Discarding()
        protocol = Protocol(config, ServerState(), {"service": listening.client.service})
        protocol.connection_made(transport)
        protocol.data_received(WHOLE + WHOLE)
        protocol.sweep(listening.client.loop.time() + 1e6)
        assert not transport.closed
        protocol.connection_lost(None)

    config = uvicorn.Config(lambda *_: None, ws="none", lifespan="off", log_config=None)
    asyncio.run_coroutine_threadsafe(hold(), listening.client.loop).result(20)


class _Discarding(asyncio.Transport):
    """Takes what is written; says whether it was closed, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = "gently"

    def abort(self) -> None:
        self.closed = "at once"


def test_a_client_that_does_not_read_its_last_answer_is_cut_off(listening: Listening) -> None:
    async def scenario() -> None:
        transport = _Discarding()
        protocol = Protocol(config, ServerState(), {"service": listening.client.service})
        protocol.connection_made(transport)
        now = listening.client.loop.time()
        for later_s, closed in ((6.5, ""), (7.5, "gently"), (8.5, "gently"), (9.5, "at once")):
            protocol.sweep(now + later_s)
            assert transport.closed == closed

    config = uvicorn.Config(lambda *_: None, ws="none", lifespan="off", log_config=None)
    asyncio.run_coroutine_threadsafe(scenario(), listening.client.loop).result(20)


@pytest.mark.parametrize("sent", [b"GET\r\n\r\n", b"\x00\xff\x00", b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n"])
def test_what_is_not_http_is_refused_in_the_documented_shape(listening: Listening, sent: bytes) -> None:
    with listening.connected(sent) as peer:
        status, headers, body = peer.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert body["error"] == {
            "message": "this is not a valid HTTP/1.1 request: see /docs",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_request",
        }
        assert peer.rest() == b""


def test_head_has_the_header_of_get_and_no_body(listening: Listening) -> None:
    with listening.connected(b"HEAD /health/ready HTTP/1.1\r\nConnection: close\r\n\r\n") as peer:
        head, _, body = peer.rest().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert int(head.lower().split(b"content-length: ")[1].split()[0]) > 0
        assert body == b""
