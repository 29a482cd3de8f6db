from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.comparison.connection import END_OF_STREAM, NO_ANSWER, Connection, Origin, Reply
from service.comparison.errors import LoadError
from service.comparison.load import Client, run
from tests.stub_server import StubServer, labelled, requests

RESETS = "|".join(os.strerror(error) for error in (errno.EPIPE, errno.ECONNRESET))


def closed(url: str, asked: Iterable[bytes], connections: int = 1, seconds: float = 10, **options: Any) -> list[Reply]:  # noqa: ANN401 - passed on to Client

    async def drive() -> list[Reply]:
        async with Client(url, connections, **options) as client:
            return await client.closed_loop(asked, seconds=seconds)

    return run(drive())


@pytest.mark.parametrize("connections", [1, 4])
def test_a_closed_loop_sends_each_request_once_and_returns_the_replies_in_order(connections: int) -> None:
    with StubServer(classify=lambda body: labelled(body["input"])) as server:
        replies = closed(server.url, requests(server.url, 20), connections)
    assert [reply.index for reply in replies] == list(range(20))
    assert all(f'"text {reply.index}"' in reply.body.decode() for reply in replies)
    assert sorted(body["input"] for body in server.asked) == sorted(f"text {index}" for index in range(20))
    assert server.connections == connections


def test_a_latency_is_positive_and_counts_from_when_the_request_was_sent() -> None:
    with StubServer() as server:
        (reply,) = closed(server.url, requests(server.url, 1))
    assert reply.due == reply.sent < reply.ended
    assert reply.latency == reply.ended - reply.sent


def test_a_closed_loop_ends_when_its_time_is_up() -> None:
    with StubServer() as server:
        replies = closed(server.url, itertools.cycle(requests(server.url, 1)), 2, seconds=0.05)
    assert replies
    assert max(reply.sent for reply in replies) - min(reply.sent for reply in replies) < 0.06


def test_an_answer_that_is_not_200_ends_the_loop_with_the_servers_sentence_and_the_request() -> None:
    with (
        StubServer(classify=lambda _: (429, {"error": {"message": "the queue is full"}})) as server,
        pytest.raises(LoadError, match=r'answered 429 to {"input":"text 0"}: the queue is full$'),
    ):
        closed(server.url, requests(server.url, 100))
    assert len(server.asked) == 1


def test_an_error_in_another_form_is_quoted_from_its_start() -> None:
    with (
        StubServer(classify=lambda _: (500, "x" * 300)) as server,
        pytest.raises(LoadError, match=r'answered 500 .*: "x{199}…$'),
    ):
        closed(server.url, requests(server.url, 1))


def test_a_client_that_is_not_strict_records_refusals_and_lost_connections() -> None:
    answers: Iterator[tuple[int, Any] | None] = iter([(429, {}), None, labelled("positive")])
    with StubServer(classify=lambda _: next(answers)) as server:
        replies = closed(server.url, requests(server.url, 3), strict=False)
    assert [reply.status for reply in replies] == [429, NO_ANSWER, 200]
    assert b"closed the connection without an answer" in replies[1].body


def test_a_connection_that_the_server_closes_after_an_answer_is_opened_again() -> None:
    with StubServer(close=True) as server:
        replies = closed(server.url, requests(server.url, 3))
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert server.connections == 3


def test_a_server_that_hangs_up_is_an_error() -> None:
    with (
        StubServer(classify=lambda _: None) as server,
        pytest.raises(LoadError, match="closed the connection without an answer"),
    ):
        closed(server.url, requests(server.url, 5), 2)


def test_a_request_that_was_read_before_the_server_hung_up_is_told_by_the_end_of_stream() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def read_and_hang_up() -> None:
            server, _ = listener.accept()
            server.recv(65_536)
            server.close()

        with in_thread(read_and_hang_up), pytest.raises(LoadError, match=f"without an answer: {END_OF_STREAM}$"):
            run(ask_one(listener))


def test_a_request_that_crossed_the_servers_hanging_up_is_told_by_the_reset() -> None:
    opened, hung_up = threading.Event(), threading.Event()

    def wait() -> None:
        opened.set()
        hung_up.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            server, _ = listener.accept()
            opened.wait()
            server.close()
            hung_up.set()

        with in_thread(hang_up), pytest.raises(LoadError, match=f"without an answer: ({RESETS})$"):
            run(ask_one(listener, before=wait))


def test_a_connection_that_ended_before_a_request_was_sent_is_not_taken_for_one_that_read_it() -> None:
    class SlowToAsk(Connection):
        async def open(self) -> asyncio.Transport:
            transport = await super().open()
            while not transport.is_closing():  # noqa: ASYNC110 - the transport has no event for it
                await asyncio.sleep(0)
            return transport

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        async def ask() -> Reply:
            origin = Origin.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
            return await SlowToAsk(origin, limit_seconds=5).ask(origin.post("/", {}))

        with in_thread(hang_up), pytest.raises(LoadError, match="before a request was sent"):
            run(ask())


@contextmanager
def in_thread(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


async def ask_one(listener: socket.socket, before: Callable[[], object] = lambda: None) -> Reply:
    """Ask over a connection that is open already; `before` blocks the event loop, so that it sees nothing."""
    origin = Origin.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
    connection = Connection(origin, limit_seconds=5)
    await connection.open()
    before()
    return await connection.ask(origin.post("/", {}))


def test_an_answer_that_is_not_http_is_an_error() -> None:
    with (
        StubServer(classify=lambda _: b"hello\r\n\r\n") as server,
        pytest.raises(LoadError, match="not answer in HTTP"),
    ):
        closed(server.url, requests(server.url, 1))


def test_a_server_that_never_answers_is_an_error_after_the_limit() -> None:
    with StubServer(silent=True) as server, pytest.raises(LoadError, match=r"no answer within 0\.05 s"):
        closed(server.url, requests(server.url, 1), limit_seconds=0.05)


def test_a_server_that_is_not_there_is_an_error_that_asks_for_it() -> None:
    with StubServer() as server:
        url = server.url
    with pytest.raises(LoadError, match=f"{url} can't be reached .*is the server running"):
        closed(url, requests(url, 1))


def test_a_server_without_tls_is_refused_where_https_is_asked_for() -> None:
    with StubServer() as server, pytest.raises(LoadError, match="can't be reached"):
        closed(server.url.replace("http:", "https:"), requests(server.url, 1), limit_seconds=0.5)


def test_a_request_that_is_given_up_takes_its_connection_with_it() -> None:
    async def drive(url: str) -> list[object]:
        origin = Origin.parse(url)
        connection, ended = Connection(origin, limit_seconds=0.05), list[object]()
        await connection.open()
        connection.begin(requests(url, 1)[0], 0, None, ended.append)
        connection.abandon()
        await asyncio.sleep(0.1)  # past the limit
        assert not connection.is_open
        with pytest.raises(LoadError, match="before a request was sent"):
            connection.begin(requests(url, 1)[0], 0, None, ended.append)
        return ended

    with StubServer(silent=True) as server:
        assert run(drive(server.url)) == []


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://host:port", "http://host/?a=1"])
def test_a_url_that_is_not_a_servers_is_refused(url: str) -> None:
    with pytest.raises(LoadError, match="use http://host:port"):
        Origin.parse(url)


def test_a_url_may_have_a_prefix_an_address_of_version_6_and_the_schemes_default_port() -> None:
    origin = Origin.parse("https://[::1]/models/")
    assert (origin.host, origin.port, origin.prefix, origin.tls) == ("::1", 443, "/models", True)
    assert origin.post("/v1/classify", "é").startswith(b"POST /models/v1/classify HTTP/1.1\r\nHost: [::1]:443\r\n")


def test_a_request_may_have_further_headers() -> None:
    request = Origin.parse("http://host").post("/", {}, {"request-timeout-ms": "5"})
    assert b"\r\nrequest-timeout-ms: 5\r\n" in request


def test_an_error_that_is_not_expected_passes_through_as_it_is() -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    def calls() -> Iterable[Coroutine[Any, Any, object]]:
        yield broken()

    from service.comparison.load import _all

    with pytest.raises(RuntimeError, match="a bug"):
        run(_all(calls()))
