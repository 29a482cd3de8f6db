"""Requests that are refused while the queue is full: answered from the header, in the words of the usual way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.api.dialects import TABLE
from service.api.envelope import refusal_at_once
from service.protocol import Protocol
from tests.keys import entry, write_keys
from tests.test_protocol import BODY, Answer, Listening, Peer, listening_with

ROUTES = (
    "/v1/classify",
    "/v2/models/tiny/infer",
    "/v2/models/tiny/versions/1/infer",
    "/invocations",
    "/predict",
    "/",
    "/models/tiny",
)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def post(path: str, *fields: str, body: bytes = BODY) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def overloaded(store: ModelStore, **settings: object) -> Iterator[Listening]:
    """A server whose queue is full for as long as the block lasts."""
    with listening_with(store, **settings) as listening:
        listening.client.service.engine._backlog_s = 1e6
        try:
            yield listening
        finally:
            listening.client.service.engine._backlog_s = 0.0


def protocols_of(listening: Listening) -> list[Protocol]:
    return [one for one in list(listening.state.connections) if isinstance(one, Protocol)]


def reading_is_paused(listening: Listening) -> bool:
    return any(protocol.flow.read_paused for protocol in protocols_of(listening))


def at_once(listening: Listening) -> bool:
    """Whether the only connection's last request was answered without the application."""
    (protocol,) = protocols_of(listening)
    return "request_id" not in protocol.cycle.scope["state"]


def ask(peer: Peer, request: bytes) -> Answer:
    peer.connection.sendall(request)
    return peer.answer()


def stable(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers without what differs from one answer to the next."""
    return {name: value for name, value in headers.items() if name != "x-request-id"}


@pytest.mark.parametrize("path", ROUTES)
def test_the_answer_is_that_of_the_usual_way(store: ModelStore, tiny: ModelId, path: str) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        status, headers, body = ask(peer, post(path))
        assert at_once(listening)
        usual = listening.client.post(path, content=BODY)
        assert (status, stable(headers), body) == (usual.status_code, stable(usual.headers), usual.json())
        assert headers["x-request-id"] != usual.headers["x-request-id"]
        assert float(headers["retry-after"]) > 1e5
        assert listening.refusals("overloaded") == 2


@pytest.mark.parametrize("path", ROUTES)
def test_a_deadline_that_is_out_of_reach_is_refused_as_the_usual_way_does(
    store: ModelStore, tiny: ModelId, path: str
) -> None:
    with listening_with(store) as listening, listening.connected() as peer:
        engine = listening.client.service.engine
        engine._backlog_s = 1.2 * len(engine._pool.live)  # less than is allowed
        try:
            status, headers, body = ask(peer, post(path, "Request-Timeout-Ms: 1000"))
            assert at_once(listening)
            usual = listening.client.post(path, content=BODY, headers={"request-timeout-ms": "1000"})
            assert status == usual.status_code == (503 if path.startswith("/v2") else 429)
            assert body.keys() == usual.json().keys()
            assert "the deadline would be missed (a wait of 1200 ms is predicted)" in json.dumps(body)
            assert 500 <= int(headers["retry-after-ms"]) <= 600
            assert listening.refusals("deadline_unreachable") == 2
            for field in ("Request-Timeout-Ms: 60000", "X-Nothing: 1"):
                peer.connection.sendall(post(path, field, body=b"{}"))
                assert peer.answer()[0] not in {429, 503}
                assert not at_once(listening)
            wrong = ask(peer, post(path, "Request-Timeout-Ms: soon"))
            assert "request-timeout-ms must be a positive whole number" in json.dumps(wrong[2])
        finally:
            engine._backlog_s = 0.0


def test_the_default_for_what_states_no_deadline_refuses_nothing_that_may_state_one_in_its_body(
    store: ModelStore, tiny: ModelId
) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a good film"]}
    with listening_with(store, request_timeout_ms=1_000) as listening, listening.connected() as peer:
        engine = listening.client.service.engine
        engine._backlog_s = 1.2 * len(engine._pool.live)
        try:
            for parameters, status in (({}, 503), ({"timeout": 60_000_000}, 200)):
                body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
                assert ask(peer, post("/v2/models/tiny/infer", body=body))[0] == status
        finally:
            engine._backlog_s = 0.0


def test_a_key_is_not_charged_twice_for_a_request_that_is_let_in_while_others_wait(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.json", entry("slow", "infer", requests_per_second=0.001))
    with listening_with(store, api_keys_file=keys) as listening, listening.connected() as peer:
        engine = listening.client.service.engine
        engine._backlog_s = 0.5 * len(engine._pool.live)
        try:
            assert [ask(peer, post("/v1/classify", "X-Api-Key: slow"))[0] for _ in range(2)] == [200, 429]
        finally:
            engine._backlog_s = 0.0


def test_every_route_that_asks_for_work_is_tried_here() -> None:
    work = {endpoint.path for endpoint in TABLE.endpoints if endpoint.work}
    tried = {next(iter(found[0].values())).path for path in ROUTES if (found := TABLE.find(path)) is not None}
    assert tried == work


def test_nothing_of_the_body_is_waited_for_and_the_connection_goes_on(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        whole = post("/v1/classify")
        assert ask(peer, whole[:-10])[0] == 429
        peer.connection.sendall(whole[-10:])
        assert ask(peer, post("/v1/classify"))[0] == 429
        listening.client.service.engine._backlog_s = 0.0
        assert ask(peer, post("/v1/classify"))[0] == 200
        assert not at_once(listening)


def test_a_client_that_wants_its_connection_closed_has_it_closed(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        _, headers, _ = ask(peer, post("/v1/classify", "Connection: close"))
        assert headers["connection"] == "close"
        assert peer.rest() == b""


def test_nothing_is_made_of_requests_behind_one_that_ends_the_connection(store: ModelStore, tiny: ModelId) -> None:
    old = post("/v1/classify", "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
    with overloaded(store) as listening, listening.connected() as peer:
        _, headers, _ = ask(peer, old + post("/v1/classify"))
        assert headers["connection"] == "close"
        assert peer.rest() == b""
        assert listening.refusals("overloaded") == 1


def test_a_client_that_does_not_read_is_not_written_to_without_end(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        peer.connection.setblocking(False)
        block, sent = post("/v1/classify", body=b"") * 500, 0
        while not reading_is_paused(listening):
            try:
                sent += peer.connection.send(block[sent % len(block) :])
            except BlockingIOError:
                time.sleep(0.001)
            assert sent < 2**26
        (protocol,) = protocols_of(listening)
        assert protocol.transport.get_write_buffer_size() < 2**20


def test_many_requests_sent_at_once_are_refused_in_their_order(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        peer.connection.sendall(
            b"".join(post("/v1/classify", f"X-Request-Id: {number}", body=b"{}") for number in range(1_500))
        )
        answers = [peer.answer() for _ in range(1_500)]
    assert [headers["x-request-id"] for _, headers, _ in answers] == [str(number) for number in range(1_500)]
    assert {status for status, _, _ in answers} == {429}


def test_requests_behind_one_that_is_being_answered_wait_for_their_turn(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        peer.connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + post("/v1/classify") * 1_000)
        assert [peer.answer()[0] for _ in range(1_001)] == [200] + [429] * 1_000


def test_an_id_and_a_trace_are_given_back(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        _, headers, _ = ask(peer, post("/v1/classify", "X-Request-Id: mine", f"Traceparent: {TRACE}"))
        assert at_once(listening)
        assert headers["x-request-id"] == "mine"
        assert headers["traceparent"].split("-")[1] == TRACE.split("-")[1]
        _, headers, _ = ask(peer, post("/v1/classify", "Traceparent: nonsense"))
        assert "traceparent" not in headers


def test_keys_are_asked_for_first_and_a_refused_request_counts_once(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.json", entry("slow", "infer", requests_per_second=0.001))
    with overloaded(store, api_keys_file=keys) as listening, listening.connected() as peer:
        answers = [ask(peer, post("/v1/classify", *fields)) for fields in ((), *[("X-Api-Key: slow",)] * 2)]
        assert at_once(listening)
        codes = [body["error"]["code"] for _, _, body in answers]
        assert codes == ["invalid_api_key", "overloaded", "rate_limited"]
        assert answers[0][1]["www-authenticate"] == "Bearer"


def test_a_request_that_is_not_refused_counts_once(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", entry("slow", "infer", requests_per_second=0.001))
    with listening_with(store, api_keys_file=keys) as listening, listening.connected() as peer:
        assert [ask(peer, post("/v1/classify", "X-Api-Key: slow"))[0] for _ in range(2)] == [200, 429]


def test_an_error_that_nobody_expected_is_the_servers_and_logged(
    store: ModelStore, tiny: ModelId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    keys = write_keys(tmp_path / "keys.json", entry("k", "infer"))
    with overloaded(store, api_keys_file=keys) as listening, listening.connected() as peer, capture_logs() as logs:
        monkeypatch.setattr(listening.client.service.keyring, "admit", no_locks)
        status, _, body = ask(peer, post("/v1/classify", "X-Api-Key: k"))
        assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "unexpected error" in [entry["event"] for entry in logs]


def test_a_server_without_workers_says_so(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        engine = listening.client.service.engine
        asyncio.run_coroutine_threadsafe(engine.close(), listening.client.loop).result(20)
        engine._backlog_s = 1e6
        status, _, body = ask(peer, post("/v1/classify"))
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        assert not at_once(listening)


USUAL: dict[str, tuple[bytes, int]] = {
    "another method": (b"GET /v1/classify HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "no work": (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "no route": (post("/nothing"), 404),
    "an encoding": (post("/v1/classify", "Content-Encoding: br"), 415),
}


@pytest.mark.parametrize("case", USUAL)
def test_what_is_not_refused_for_the_queue_goes_the_usual_way(store: ModelStore, tiny: ModelId, case: str) -> None:
    request, expected = USUAL[case]
    with overloaded(store) as listening, listening.connected() as peer:
        assert ask(peer, request)[0] == expected
        assert not at_once(listening)


@pytest.mark.parametrize("setting", [{"log_requests": True}, {"cors_origins": ["https://example.org"]}])
def test_what_others_must_see_goes_the_usual_way(store: ModelStore, tiny: ModelId, setting: dict[str, object]) -> None:
    with overloaded(store, **setting) as listening, listening.connected() as peer:
        assert ask(peer, post("/v1/classify", "Origin: https://example.org"))[0] == 429
        assert not at_once(listening)


def test_a_request_with_a_span_goes_the_usual_way(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening:
        service = dataclasses.replace(listening.client.service, tracing=object())  # type: ignore[arg-type]
        scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": [], "state": {"service": service}}
        assert refusal_at_once(scope, TABLE.find("/v1/classify")) is None


def test_a_server_that_goes_down_closes_the_connection_with_the_refusal(store: ModelStore, tiny: ModelId) -> None:
    with overloaded(store) as listening, listening.connected() as peer:
        listening.client.service.begin_to_drain()
        status, headers, _ = ask(peer, post("/v1/classify"))
        assert (status, headers["connection"]) == (429, "close")
        assert peer.rest() == b""


def test_a_request_that_is_let_in_after_all_is_answered_as_any_other(store: ModelStore, tiny: ModelId) -> None:
    with listening_with(store) as listening:
        state = {"service": listening.client.service}
        scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": [], "state": state}
        assert refusal_at_once(scope, TABLE.find("/v1/classify")) is None
