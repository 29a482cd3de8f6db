"""One connection: clients that are slow, silent, or do not speak HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.app import create_app
from service.protocol import _MOST_EXCESS, Protocol
from service.settings import load_settings
from tests.web import WebClient, running_app

HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
BODY = json.dumps({"model": "tiny", "input": "a good film"}).encode()
WHOLE = HEAD % len(BODY) + BODY

Answer = tuple[int, dict[str, str], dict[str, Any]]
"""Status, headers and body."""


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

    def answer(self) -> Answer:
        status = int(self.file.readline().split()[1])
        lines = iter(self.file.readline, b"\r\n")
        headers = {name: value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}
        return status, headers, json.loads(self.file.read(int(headers["content-length"])))

    def rest(self) -> bytes:
        """What comes until the server closes."""
        return self.file.read()


@pytest.fixture
def listening(store: ModelStore, tiny: ModelId) -> Iterator[Listening]:
    with listening_with(store) as one:
        yield one


@contextlib.contextmanager
def listening_with(store: ModelStore, **settings: object) -> Iterator[Listening]:
    chosen = {"store_dir": store.root, "threads": 1, "receive_timeout_ms": 2_000, "keep_alive_ms": 7_000, **settings}
    app = create_app(load_settings(**chosen))
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
        transport = _Kept()
        protocol = Protocol(config, ServerState(), {"service": listening.client.service})
        protocol.connection_made(transport)
        protocol.data_received(WHOLE + WHOLE)
        protocol.sweep(listening.client.loop.time() + 1e6)
        assert not transport.closed
        protocol.connection_lost(None)

    config = uvicorn.Config(lambda *_: None, ws="none", lifespan="off", log_config=None)
    asyncio.run_coroutine_threadsafe(hold(), listening.client.loop).result(20)


class _Kept(asyncio.Transport):
    """Keeps what is written; says whether it was closed, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = ""
        self.written: list[bytes] = []
        self.read = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def pause_reading(self) -> None:
        self.read = False

    def resume_reading(self) -> None:
        self.read = True

    def is_closing(self) -> bool:
        return bool(self.closed)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = "gently"

    def abort(self) -> None:
        self.closed = "at once"


def test_a_client_that_does_not_read_its_last_answer_is_cut_off(listening: Listening) -> None:
    async def scenario() -> None:
        transport = _Kept()
        protocol = Protocol(config, ServerState(), {"service": listening.client.service})
        protocol.connection_made(transport)
        now = listening.client.loop.time()
        for later_s, closed in ((6.5, ""), (7.5, "gently"), (8.5, "gently"), (9.5, "at once")):
            protocol.sweep(now + later_s)
            assert transport.closed == closed

    config = uvicorn.Config(lambda *_: None, ws="none", lifespan="off", log_config=None)
    asyncio.run_coroutine_threadsafe(scenario(), listening.client.loop).result(20)


# Answers


def answered(
    listening: Listening,
    app: ASGIApp,
    sent: bytes = b"GET / HTTP/1.1\r\n\r\n",
    before: Callable[[Protocol], None] = lambda _: None,
) -> _Kept:
    """What an application has written to one client; `before` it begins, and once the request is there."""
    transport = _Kept()

    async def scenario() -> None:
        protocol = Protocol(config, ServerState(), {"service": listening.client.service})
        protocol.connection_made(transport)
        protocol.data_received(sent)
        before(protocol)
        await asyncio.gather(*protocol.tasks)

    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, interface="asgi3")
    config.load()
    asyncio.run_coroutine_threadsafe(scenario(), listening.client.loop).result(20)
    return transport


def saying(*messages: dict[str, Any]) -> ASGIApp:
    """An application that sends these messages."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def whole(*headers: tuple[bytes, bytes], body: bytes = b"hello") -> dict[str, Any]:
    length = (b"content-length", b"%d" % len(body))
    return {"type": "http.response.start", "status": 200, "headers": [length, *headers], "successor.body": body}


def test_a_whole_answer_is_one_write(listening: Listening) -> None:
    transport = answered(listening, saying(whole((b"x-colour", b"red"))))
    assert transport.written == [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-colour: red\r\n\r\nhello"]
    assert not transport.closed


def test_an_answer_in_pieces_is_written_as_asgi_says(listening: Listening) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    parts: list[dict[str, Any]] = [{"type": "http.response.body", "body": b"a", "more_body": True}]
    transport = answered(listening, saying(start, *parts, {"type": "http.response.body", "body": b"b"}))
    assert b"".join(transport.written) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"


@pytest.mark.parametrize(
    ("sent", "headers"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", []),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", []),
        (b"GET / HTTP/1.1\r\n\r\n", [(b"connection", b"close")]),
    ],
)
def test_a_whole_answer_that_is_the_last_says_so_and_closes(
    listening: Listening, sent: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    transport = answered(listening, saying(whole(*headers)), sent)
    assert transport.written == [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"]
    assert transport.closed == "gently"


def test_a_whole_answer_to_head_has_no_body(listening: Listening) -> None:
    transport = answered(listening, saying(whole()), b"HEAD / HTTP/1.1\r\n\r\n")
    assert transport.written == [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"]


@pytest.mark.parametrize("header", [(b"x-colour", b"red\r\nx-more: 1"), (b"x\n", b"1")])
def test_a_header_cannot_begin_another(listening: Listening, header: tuple[bytes, bytes]) -> None:
    assert answered(listening, saying(whole(header))).written[0].startswith(b"HTTP/1.1 500 ")


def test_nothing_is_written_to_a_client_that_has_gone(listening: Listening) -> None:
    assert answered(listening, saying(whole()), before=lambda protocol: protocol.connection_lost(None)).written == []


def test_a_whole_answer_waits_until_the_client_reads(listening: Listening) -> None:
    def pause(protocol: Protocol) -> None:
        protocol.pause_writing()
        protocol.loop.call_later(0.01, read_on, protocol)

    def read_on(protocol: Protocol) -> None:
        assert isinstance(protocol.transport, _Kept)
        seen.append(len(protocol.transport.written))
        protocol.resume_writing()

    seen: list[int] = []
    transport = answered(listening, saying(whole()), before=pause)
    assert (seen, len(transport.written)) == ([0], 1)


def test_a_second_answer_is_an_error_of_the_application(listening: Listening) -> None:
    transport = answered(listening, saying(whole(), whole()))
    assert len(transport.written) == 1
    assert transport.closed == "gently"


def test_a_classification_is_one_write(listening: Listening) -> None:
    (written,) = answered(listening, create_app(load_settings()), WHOLE).written
    assert written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(written.partition(b"\r\n\r\n")[2])["model"] == "tiny@1"


def test_a_refusal_ends_what_the_application_still_says(listening: Listening) -> None:
    head = b"GET /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n"
    transport = answered(listening, saying(whole()), head, before=lambda protocol: protocol.send_400_response(""))
    assert len(transport.written) == 1
    assert transport.written[0].startswith(b"HTTP/1.1 400 ")


CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECES = CHUNKED % b"/v1/classify"
MALFORMED = b"many\r\n"


async def listens(_scope: Scope, receive: Receive, _send: Send) -> None:
    """An application that says nothing until its client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def test_a_refusal_is_not_taken_for_the_answer_of_a_request_that_came_with_it(listening: Listening) -> None:
    def leave(protocol: Protocol) -> None:
        assert isinstance(protocol.transport, _Kept)
        assert (protocol.transport.closed, protocol.transport.written) == ("at once", [])
        protocol.connection_lost(None)  # the first request hears of it, though it isn't the last

    answered(listening, listens, b"GET /x HTTP/1.1\r\n\r\n" + PIECES + MALFORMED, leave)


def test_a_body_that_is_not_http_after_the_answer_gets_no_other(listening: Listening) -> None:
    def go_on(protocol: Protocol) -> None:
        protocol.loop.call_later(0.01, protocol.data_received, MALFORMED)
        protocol.tasks.add(protocol.loop.create_task(asyncio.sleep(0.02)))

    transport = answered(listening, saying(whole()), PIECES, go_on)
    assert (len(transport.written), transport.closed) == (1, "gently")


def test_a_body_that_is_not_http_is_counted_once(listening: Listening) -> None:
    before = {reason: listening.refusals(reason) for reason in ("invalid_request", "client_closed_request")}
    for expect in (b"", b"Expect: 100-continue\r\n"):
        with listening.connected(PIECES[:-2] + expect + b"\r\n" + MALFORMED) as peer:
            assert peer.answer()[0] == 400
            assert peer.rest() == b""
    assert listening.refusals("invalid_request") == before["invalid_request"] + 2
    assert listening.refusals("client_closed_request") == before["client_closed_request"]


def test_what_a_client_takes_to_send_its_body_is_not_counted_as_the_servers_time(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = (HEAD % len(BODY)).replace(b"Host: x\r\n", b"Host: x\r\nExpect: 100-continue\r\n")
    with listening.connected(head) as peer:
        assert peer.file.readline() + peer.file.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        monkeypatch.setattr(listening.client.service.engine, "clock", lambda: time.monotonic() + 20)
        peer.connection.sendall(BODY)
        status, headers, _ = peer.answer()
    assert status == 200
    assert float(headers["x-total-time"]) < 20_000


def test_a_deadline_counts_from_the_header_and_not_from_the_body(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = b"Host: x\r\nExpect: 100-continue\r\nrequest-timeout-ms: 10000\r\n"
    with listening.connected((HEAD % len(BODY)).replace(b"Host: x\r\n", fields)) as peer:
        assert peer.file.readline() + peer.file.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        monkeypatch.setattr(listening.client.service.engine, "clock", lambda: time.monotonic() + 20)
        peer.connection.sendall(BODY)
        status, _, body = peer.answer()
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    assert "had passed when the request arrived" in body["error"]["message"]


def test_what_follows_a_refusal_is_read_on(listening: Listening) -> None:
    def refuse(protocol: Protocol) -> None:
        protocol.flow.pause_reading()
        protocol.data_received(MALFORMED)

    assert answered(listening, listens, PIECES, refuse).read


def test_a_client_that_never_reads_is_given_up(listening: Listening) -> None:
    def wait(protocol: Protocol) -> None:
        assert isinstance(protocol.transport, _Kept)
        protocol.pause_writing()
        for later_s, closed in ((1.9, ""), (2.1, "at once")):
            protocol.sweep(protocol.loop.time() + later_s)
            assert protocol.transport.closed == closed
        protocol.connection_lost(None)

    assert answered(listening, saying(whole()), before=wait).written == []


@pytest.mark.parametrize(
    "sent", [b"GET\r\n\r\n", b"\x00\xff\x00", b"POST /v1/classify HTTP/1.1\r\nContent-Length: many\r\n\r\n"]
)
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


# Sizes


def get(size: int, path: str = "/health/live") -> bytes:
    """A request whose line and header have `size` bytes as the server counts them: the path and the fields."""
    line = f"GET {path} HTTP/1.1\r\nX-Much: ".encode()
    return line + b"x" * (size - len(path) - len("x-much") - 4) + b"\r\n\r\n"


def test_a_header_of_just_the_limit_is_read_and_a_larger_one_is_refused_in_the_routes_own_shape(
    store: ModelStore, tiny: ModelId
) -> None:
    with listening_with(store, max_header_bytes=2_048) as listening:
        with listening.connected(get(2_048)) as peer:
            assert peer.answer()[0] == 200
        with listening.connected(get(2_049)) as peer:
            status, headers, body = peer.answer()
            assert (status, headers["connection"]) == (431, "close")
            assert body["error"] == {
                "message": "the request's header is larger than 2048 bytes: send fewer or shorter fields",
                "type": "invalid_request_error",
                "param": None,
                "code": "header_too_large",
            }
            assert peer.rest() == b""
        with listening.connected(get(2_049, "/v2/models/tiny?x=1")) as peer:
            status, _, body = peer.answer()
            assert (status, list(body)) == (431, ["error"])
            assert isinstance(body["error"], str)
        assert listening.refusals("header_too_large") == 2


def test_many_small_fields_are_a_large_header(store: ModelStore, tiny: ModelId) -> None:
    with (
        listening_with(store, max_header_bytes=2_048) as listening,
        listening.connected(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1_000 + b"\r\n") as peer,
    ):
        assert peer.answer()[0] == 431


def test_a_header_without_end_is_not_read_to_its_end(store: ModelStore, tiny: ModelId) -> None:
    with listening_with(store, max_header_bytes=2_048) as listening:
        for begin in (b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"):
            with listening.connected(begin) as peer:
                sent = 0
                with contextlib.suppress(OSError):  # the server closes while we send
                    while sent < 10 * 2**20:
                        peer.connection.sendall(b"a: b\r\n" * 1_000 if begin.endswith(b"\n") else b"x" * 6_000)
                        sent += 6_000
                assert peer.answer()[0] == 431
                listening.sweep(later_s=1.5)


def test_requests_that_come_in_one_piece_are_counted_apart(store: ModelStore, tiny: ModelId) -> None:
    with listening_with(store, max_header_bytes=1_024) as listening, listening.connected(get(500) * 300) as peer:
        for _ in range(300):
            assert peer.answer()[0] == 200


def test_a_large_body_is_not_taken_for_a_header(store: ModelStore, tiny: ModelId) -> None:
    body = BODY + b" " * 100_000
    with (
        listening_with(store, max_header_bytes=1_024) as listening,
        listening.connected(HEAD % len(body) + body) as peer,
    ):
        assert peer.answer()[0] == 200
        peer.connection.sendall(WHOLE)
        assert peer.answer()[0] == 200


@pytest.mark.parametrize(
    "piece",
    [b"1000\r\n" + b"x" * 4_096 + b"\r\n", b"1\r\nx\r\n" * 700, b"1;" + b"e" * 4_000 + b"\r\nx\r\n"],
    ids=["chunks", "tiny chunks", "chunk extensions"],
)
def test_a_body_without_end_is_refused_and_then_cut_off(store: ModelStore, tiny: ModelId, piece: bytes) -> None:
    with (
        listening_with(store, max_body_bytes=50_000) as listening,
        listening.connected(CHUNKED % b"/v1/classify") as peer,
    ):
        sent = 0
        with contextlib.suppress(OSError):  # the server closes while we send
            while sent < 50 * 2**20:
                peer.connection.sendall(piece)
                sent += len(piece)
        status, _, body = peer.answer()
        assert (status, body["error"]["code"]) == (413, "body_too_large")
        listening.sweep(later_s=1.5)
        assert listening.refusals("body_too_large") == 1
        assert listening.refusals("client_closed_request") == 0
    assert sent < 20 * 2**20


def test_trailers_without_end_are_cut_off(store: ModelStore, tiny: ModelId) -> None:
    with (
        listening_with(store, max_body_bytes=50_000) as listening,
        listening.connected(CHUNKED % b"/predict" + b"1\r\nx\r\n0\r\n") as peer,
    ):
        sent = 0
        with contextlib.suppress(OSError):  # the server closes while we send
            while sent < 50 * 2**20:
                peer.connection.sendall(b"t: " + b"x" * 4_000 + b"\r\n")
                sent += 4_000
        assert peer.answer()[0] in {413, 422, 431}  # the header's limit is theirs too
    assert sent < 20 * 2**20


def test_trailers_change_nothing_that_the_header_says_and_are_not_kept(listening: Listening) -> None:
    chunked = CHUNKED % b"/v1/classify"
    chunked = chunked.replace(b"\r\n\r\n", b"\r\nX-Request-Id: mine\r\n\r\n") + b"%x\r\n%b\r\n0\r\n"
    with listening.connected(chunked % (len(BODY), BODY) + b"X-Request-Id: another\r\nX: y\r\n\r\n") as peer:
        status, headers, _ = peer.answer()
        assert (status, headers["x-request-id"]) == (200, "mine")
        peer.connection.sendall(WHOLE)  # whose header is read again
        status, headers, _ = peer.answer()
        assert status == 200
        assert headers["x-request-id"] not in {"mine", "another"}


def test_many_short_trailers_are_refused_before_they_take_memory(listening: Listening) -> None:
    with listening.connected(CHUNKED % b"/v1/classify" + b"0\r\n" + b"a:\r\n" * 20_000) as peer:
        assert peer.answer()[0] in {400, 431}  # an empty body is no request: either may be first
        assert all(not protocol.headers for protocol in listening.state.connections)  # type: ignore[union-attr]


def test_a_refusal_is_not_taken_for_the_answer_to_an_earlier_request(listening: Listening) -> None:
    """Two requests in one piece, the second no HTTP: the first one's answer, or nothing."""
    with listening.connected(WHOLE + b"nonsense\r\n\r\n") as peer:
        rest = peer.rest()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 200 ")


# Connections


def test_one_connection_too_many_is_refused_in_the_routes_own_shape_and_has_room_again(
    store: ModelStore, tiny: ModelId
) -> None:
    with listening_with(store, max_connections=2) as listening, listening.connected(WHOLE) as first:
        assert first.answer()[0] == 200
        with listening.connected(WHOLE) as second:
            assert second.answer()[0] == 200
            for sent, kind in ((WHOLE, dict), (b"GET /v2 HTTP/1.1\r\n\r\n", str)):
                with listening.connected(sent) as third:
                    status, headers, body = third.answer()
                    assert (status, headers["connection"]) == (503, "close")
                    assert isinstance(body["error"], kind)
                    assert third.rest() == b""
            first.connection.sendall(WHOLE)
            assert first.answer()[0] == 200
        while len(listening.state.connections) > 1:
            threading.Event().wait(0.005)
        with listening.connected(WHOLE) as again:
            assert again.answer()[0] == 200
        assert listening.refusals("too_many_connections") == 2


def test_one_connection_too_many_that_says_nothing_is_closed_soon(store: ModelStore, tiny: ModelId) -> None:
    with (
        listening_with(store, max_connections=1) as listening,
        listening.connected(WHOLE) as first,
        listening.connected() as second,
    ):
        assert first.answer()[0] == 200
        while len(listening.state.connections) < 2:
            threading.Event().wait(0.005)
        listening.sweep(later_s=1.5)
        assert second.answer()[0] == 503
        first.connection.sendall(WHOLE)
        assert first.answer()[0] == 200


def test_of_very_many_too_many_most_are_closed_at_once(store: ModelStore, tiny: ModelId) -> None:
    with listening_with(store, max_connections=1) as listening, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(listening.connected()) for _ in range(1 + _MOST_EXCESS)]
        while len(listening.state.connections) < len(peers):
            threading.Event().wait(0.005)
        with listening.connected() as one_more, contextlib.suppress(ConnectionError):
            assert one_more.rest() == b""  # without a sweep
        assert len(listening.state.connections) == len(peers)


def test_what_is_not_http_is_counted_and_not_logged(listening: Listening, caplog: pytest.LogCaptureFixture) -> None:
    with listening.connected(b"nonsense\r\n\r\n") as peer:
        assert peer.answer()[0] == 400
    assert listening.refusals("invalid_request") == 1
    assert caplog.records == []


def test_bodies_that_arrive_have_a_limit_together(store: ModelStore, tiny: ModelId) -> None:
    part, whole = 700_000, 2**20
    with listening_with(store, max_body_bytes=whole, max_arriving_bytes=whole) as listening:
        service = listening.client.service
        with listening.connected(HEAD % whole + b" " * part):
            while service.arriving_bytes < part:
                threading.Event().wait(0.005)
            with listening.connected(HEAD % whole + b" " * part) as second:
                status, headers, answer = second.answer()
                assert (status, headers["retry-after"], answer["error"]["code"]) == (429, "1", "overloaded")
            with listening.connected(WHOLE) as short:
                assert short.answer()[0] == 200
        while service.arriving_bytes:
            threading.Event().wait(0.005)
        with listening.connected(HEAD % (part + len(BODY)) + b" " * part + BODY) as alone:
            assert alone.answer()[0] == 200


def test_the_operations_port_takes_connections_when_the_other_has_too_many(store: ModelStore, tiny: ModelId) -> None:
    with listening_with(store, max_connections=1) as listening, listening.connected(WHOLE) as first:
        assert first.answer()[0] == 200
        listening.client.service.operations_port = listening.address[1]
        with listening.connected(b"GET /metrics HTTP/1.1\r\n\r\n") as operator:
            assert operator.file.readline().startswith(b"HTTP/1.1 200")


def test_who_is_not_waited_for_any_longer_at_the_end_is_told_so(listening: Listening) -> None:
    with listening.connected(HEAD % len(BODY)) as peer:
        listening.sweep_when(begun=True, later_s=0)

        async def go_down() -> None:
            listening.client.service.begin_to_drain()
            for task in listening.state.tasks:
                task.cancel()  # as uvicorn does when the time is over

        asyncio.run_coroutine_threadsafe(go_down(), listening.client.loop).result(20)
        status, headers, answer = peer.answer()
    assert status == 503
    assert headers["connection"] == "close"
    assert "the server went down before the answer" in json.dumps(answer)


UPGRADING = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA\r\n%s: h2c\r\nContent-Length:"


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
@pytest.mark.parametrize("apart", [False, True])
def test_who_asks_for_another_protocol_is_answered_in_this_one(
    listening: Listening, name: bytes, *, apart: bool
) -> None:
    whole = WHOLE.replace(b"Content-Length:", UPGRADING % name)
    head, _, body = whole.partition(b"\r\n\r\n")
    with listening.connected(head + b"\r\n\r\n" if apart else whole) as peer:
        if apart:
            listening.sweep_when(begun=True, later_s=0)
            peer.connection.sendall(body)
        assert peer.answer()[0] == 200
        peer.connection.sendall(WHOLE)
        assert peer.answer()[0] == 200


def test_a_body_that_speaks_of_an_upgrade_stays_as_it_is(listening: Listening) -> None:
    body = json.dumps({"model": "tiny", "input": "x"}).encode() + b"\r\nUpgrade: h2c\r\n\r\nUpgrade: h2c"
    with listening.connected(HEAD % len(body) + body) as peer:
        status, _, answer = peer.answer()
    assert status == 400
    assert "trailing characters at line 2 column 1" in json.dumps(answer)


@pytest.mark.parametrize("cut", range(1, 5))
def test_it_stays_so_where_the_headers_end_comes_in_two_pieces(listening: Listening, cut: int) -> None:
    text = b"a\r\nUpgrade: b\r\n\r\n"
    raw = len(text).to_bytes(4, "little") + text
    entry = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    document = json.dumps({"inputs": [entry]}).encode()
    head = (
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: %d\r\n"
        b"Content-Length: %d\r\n\r\n" % (len(document), len(document) + len(raw))
    )
    seen: list[str] = []
    submit = listening.client.service.engine.submit

    def see(model: Any, texts: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        seen.extend(item.text for item in texts)
        return submit(model, texts, **options)

    listening.client.service.engine.submit = see  # type: ignore[method-assign]
    with listening.connected(head[:-cut]) as peer:
        listening.sweep_when(begun=True, later_s=0)
        peer.connection.sendall(head[-cut:] + document + raw)
        assert peer.answer()[0] == 200
    assert seen == [text.decode()]


@pytest.mark.parametrize("piece", [b"Upgr", b""])
def test_an_upgrade_that_comes_in_pieces_is_refused_with_the_connection(listening: Listening, piece: bytes) -> None:
    head, _, rest = WHOLE.replace(b"Content-Length:", UPGRADING % b"Upgrade").partition(b"Upgrade: h2c")
    smuggled = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with listening.connected(head + piece) as peer:
        listening.sweep_when(begun=True, later_s=0)
        peer.connection.sendall(b"Upgrade"[len(piece) :] + b": h2c" + rest + smuggled)
        status, _, answer = peer.answer()
        assert status == 400
        assert "send no Upgrade" in json.dumps(answer)
        assert peer.rest() == b""


def test_what_follows_a_refusal_is_thrown_away_and_the_connection_closed(listening: Listening) -> None:
    with listening.connected(b"nonsense\r\n\r\n") as peer:
        assert peer.answer()[0] == 400
        for _ in range(3):
            peer.connection.sendall(WHOLE)
        listening.sweep(later_s=0.5)
        listening.sweep(later_s=1.5)
        while listening.state.connections:
            threading.Event().wait(0.005)
    assert listening.refusals("invalid_request") == 1
