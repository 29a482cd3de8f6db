"""Traces: `traceparent` in and out, spans of a request, and where OpenTelemetry's variables send them."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.app import create_app
from service.registry import Route
from service.settings import load_settings
from service.telemetry import continued, exporters_of, open_tracing
from service.tracing import Tracing
from tests.web import WebClient, running_app

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"
BODY = {"model": "tiny", "input": ["a good film", "a dull story"]}


# traceparent


@pytest.mark.parametrize(
    ("given_flags", "flags"), [("00", b"00"), ("01", b"01"), ("03", b"01"), ("fe", b"00"), ("ff", b"01")]
)
def test_an_answer_has_the_callers_trace_and_a_span_of_its_own(given_flags: str, flags: bytes) -> None:
    header = f"00-{TRACE}-{PARENT}-{given_flags}".encode()
    first, second = continued(header), continued(header)
    assert first is not None
    assert re.fullmatch(rb"00-%b-[0-9a-f]{16}-%b" % (TRACE.encode(), flags), first)
    assert PARENT.encode() not in first
    assert first != second


def test_of_a_later_version_the_known_part_counts() -> None:
    answer = continued(f"cc-{TRACE}-{PARENT}-01-what-the-future-holds".encode())
    assert answer is not None
    assert answer.startswith(f"00-{TRACE}-".encode())
    assert continued(f"cc-{TRACE}-{PARENT}-01".encode()) is not None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        GIVEN.upper(),
        GIVEN + "-more",
        GIVEN + "0",
        GIVEN[:-1],
        " " + GIVEN,
        GIVEN + "\n",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-0g",
        f"cc-{TRACE}-{PARENT}-01.more",
        f"00_{TRACE}_{PARENT}_01",
    ],
)
def test_any_other_header_is_ignored(header: str) -> None:
    assert continued(header.encode()) is None


@given(st.binary(max_size=80))
def test_no_bytes_make_an_answer_that_is_not_well_formed(header: bytes) -> None:
    answer = continued(header)
    assert answer is None or re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", answer)


@pytest.fixture
def client(store: ModelStore, tiny: ModelId) -> Iterator[WebClient]:
    with running_app(create_app(load_settings(store_dir=store.root, threads=1))) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/classify"), ("GET", "/v1/models"), ("GET", "/nothing")])
def test_every_route_answers_in_the_callers_trace(client: WebClient, method: str, path: str) -> None:
    answer = client.request(method, path, json=BODY, headers={"traceparent": GIVEN})
    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-")
    for headers in ({}, {"traceparent": "nonsense"}):
        assert "traceparent" not in client.request(method, path, json=BODY, headers=headers).headers


# Spans


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(store: ModelStore, tiny: ModelId, exporter: InMemorySpanExporter) -> Iterator[WebClient]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = load_settings(store_dir=store.root, threads=1)
    with running_app(create_app(settings, open_tracing=lambda: Tracing(provider))) as client:
        yield client


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = exporter.get_finished_spans()
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span for span in spans}


def test_a_request_has_a_span_in_the_callers_trace_with_its_queue_tokenisation_and_inference_in_it(
    traced: WebClient, exporter: InMemorySpanExporter
) -> None:
    answer = traced.post("/v1/classify", json=BODY, headers={"traceparent": GIVEN, "tracestate": "vendor=1"})
    spans = by_name(exporter)
    request = spans.pop("POST /v1/classify")
    context = request.get_span_context()
    assert context is not None
    assert request.parent is not None
    assert (f"{context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert (request.kind, request.parent.trace_state.get("vendor")) == (SpanKind.SERVER, "1")
    assert answer.headers["traceparent"] == f"00-{TRACE}-{context.span_id:016x}-01"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": "/v1/classify",
        "http.response.status_code": 200,
        "successor.model": "tiny",
        "successor.version": 1,
        "successor.arm": "default",
    }
    assert set(spans) == {"queue", "tokenise", "infer"}
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == context.span_id
        assert dict(span.attributes or {})["successor.texts"] == 2
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time  # type: ignore[operator]
    queue, tokenise, infer = spans["queue"], spans["tokenise"], spans["infer"]
    assert queue.start_time <= tokenise.start_time <= tokenise.end_time <= queue.end_time  # type: ignore[operator]
    assert tokenise.end_time <= infer.end_time  # type: ignore[operator]
    assert infer.start_time <= queue.end_time  # type: ignore[operator]


def test_a_request_without_a_trace_begins_one(traced: WebClient, exporter: InMemorySpanExporter) -> None:
    for headers in ({}, {"traceparent": "nonsense"}):
        answer = traced.post("/v1/classify", json=BODY, headers=headers)
        request = by_name(exporter)["POST /v1/classify"]
        assert request.parent is None
        assert request.context is not None
        assert f"{request.context.trace_id:032x}" in answer.headers["traceparent"]
        exporter.clear()


def test_a_trace_that_is_not_sampled_costs_no_spans(traced: WebClient, exporter: InMemorySpanExporter) -> None:
    answer = traced.post("/v1/classify", json=BODY, headers={"traceparent": GIVEN[:-1] + "0"})
    assert answer.headers["traceparent"].endswith("-00")
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v1/models", "GET /v1/models"),
        ("GET", "/nothing/such", "GET"),
        ("POST", "/models/nobody", "POST /models/{model}"),
        ("GET", "/v2/models/tiny", "GET /v2/models/{model}"),
    ],
)
def test_a_spans_name_has_the_route_and_nothing_that_differs_from_request_to_request(
    traced: WebClient, exporter: InMemorySpanExporter, method: str, path: str, name: str
) -> None:
    status = traced.request(method, path, json={"inputs": "a"}).status_code
    (span,) = exporter.get_finished_spans()
    assert (span.name, (span.attributes or {})["http.response.status_code"]) == (name, status)
    assert span.status.status_code is StatusCode.UNSET


def test_a_failure_of_the_server_is_an_error_of_the_span(traced: WebClient, exporter: InMemorySpanExporter) -> None:
    # A state that can't be: a route of the table leads to nothing.
    traced.service.registry.table.routes["haunted"] = Route(None, "haunted")  # type: ignore[arg-type]
    with structlog.testing.capture_logs():
        assert traced.post("/v1/classify", json={"model": "haunted", "input": "a"}).status_code == 500
    (failed,) = exporter.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "500"


@pytest.mark.parametrize("path", ["/health/ready", "/health/live", "/health", "/v2/health/ready", "/metrics"])
def test_probes_and_scrapes_are_not_traced(traced: WebClient, exporter: InMemorySpanExporter, path: str) -> None:
    traced.get(path, headers={"traceparent": GIVEN})
    assert exporter.get_finished_spans() == ()


# The standard variables

SEND = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there:4318"}


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "x"}, []),
        (SEND, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://there/v1/traces"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp"]),
        ({**SEND, "OTEL_TRACES_EXPORTER": "none"}, []),
        ({**SEND, "OTEL_SDK_DISABLED": "TRUE"}, []),
        ({**SEND, "OTEL_SDK_DISABLED": "false"}, ["otlp"]),
        ({**SEND, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ["otlp"]),
    ],
)
def test_spans_go_where_the_standard_variables_say(environment: dict[str, str], exporters: list[str]) -> None:
    with structlog.testing.capture_logs() as logs:
        assert exporters_of(environment) == exporters
    assert logs == []


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_TRACES_EXPORTER": "zipkin"}, {**SEND, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
)
def test_what_can_not_be_done_is_a_warning_and_no_traces(environment: dict[str, str]) -> None:
    with structlog.testing.capture_logs() as logs:
        assert open_tracing(environment) is None
    assert [record["log_level"] for record in logs] == ["warning"]


class Collector(http.server.ThreadingHTTPServer):
    """Receives OTLP over HTTP."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()


def test_a_collector_gets_the_spans_by_otlp(store: ModelStore, tiny: ModelId, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        with running_app(create_app(load_settings(store_dir=store.root, threads=1))) as client:
            assert client.post("/v1/classify", json=BODY, headers={"traceparent": GIVEN}).status_code == 200
        # Ending the application has sent what was left.
        requests = list(collector.requests)
    assert {path for path, _ in requests} == {"/v1/traces"}
    resources = [entry for _, request in requests for entry in request.resource_spans]
    spans = [span for entry in resources for scope in entry.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {"POST /v1/classify", "queue", "tokenise", "infer"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    facts = {pair.key: pair.value.string_value for pair in resources[0].resource.attributes}
    assert (facts["service.name"], facts["deployment.environment.name"]) == ("successor", "test")


def test_the_services_name_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reviews")
    tracing = open_tracing({"OTEL_TRACES_EXPORTER": "otlp"})
    assert tracing is not None
    assert tracing._provider.resource.attributes["service.name"] == "reviews"
    tracing.close()


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [False, True])
def test_nothing_of_opentelemetry_is_imported_unless_it_is_configured_and_none_is_needed(*, blocked: bool) -> None:
    program = f"""
import sys
from pathlib import Path
if {blocked}:
    sys.modules["opentelemetry.sdk"] = None
from service.app import create_app
from service.registry import Route
from service.settings import load_settings
from service.telemetry import open_tracing
create_app(load_settings(store_dir=Path("nowhere")))
assert open_tracing({{}}) is None
assert sys.modules.get("opentelemetry.sdk") is None, "imported"
assert "opentelemetry.exporter" not in sys.modules, "imported"
if {blocked}:
    assert open_tracing({{"OTEL_TRACES_EXPORTER": "otlp"}}) is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert ("pip install '.[otel]'" in done.stdout + done.stderr) == blocked
