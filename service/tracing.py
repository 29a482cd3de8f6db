"""Spans by OpenTelemetry: one for each request, and in it `queue`, `tokenise` and `infer`; needs the extra `otel`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.batcher import Answer
from service.registry import Route

_SERVICE = "successor"
_PROPAGATOR = TraceContextTextMapPropagator()
_PROPAGATED = (b"traceparent", b"tracestate")


def provider_for(exporters: Sequence[str]) -> TracerProvider:
    """What makes spans and sends them: sampling, limits, batches and addresses are those of the standard variables."""
    named = OTELResourceDetector().detect()
    resource = Resource.create({} if SERVICE_NAME in named.attributes else {SERVICE_NAME: _SERVICE})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in exporters:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if name == "otlp" else ConsoleSpanExporter()))
    return provider


@dataclass(slots=True)
class RequestSpan:
    """The span of a request, current until it ends."""

    span: Span
    _token: Token[Context]

    @property
    def traceparent(self) -> bytes:
        """What the answer carries."""
        found = self.span.get_span_context()
        return b"00-%032x-%016x-%02x" % (found.trace_id, found.span_id, found.trace_flags)

    def end(self, name: str, status: int) -> None:
        """End it.

        Args:
            name: method and route, without what differs from request to request.
            status: of the answer; 0: there was none.
        """
        self.span.update_name(name)
        if status:
            self.span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:
            self.span.set_status(Status(StatusCode.ERROR))
            self.span.set_attribute("error.type", str(status or "client_closed_request"))
        self.span.end()
        context.detach(self._token)


class Tracing:
    """Makes spans; used on the event loop, ended by `close`.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_SERVICE, version(_SERVICE))

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> RequestSpan:
        """Begin the span of a request, in the caller's trace if its header names one."""
        carrier = {name.decode(): headers[name].decode("latin-1") for name in _PROPAGATED if name in headers}
        above = _PROPAGATOR.extract(carrier, Context())
        attributes = {"http.request.method": method, "url.path": path}
        span = self._tracer.start_span(method, above, SpanKind.SERVER, attributes)
        return RequestSpan(span, context.attach(trace.set_span_in_context(span, above)))

    def record(self, route: Route, answers: Sequence[Answer], arrived: float, now: float) -> None:
        """Put what a request's texts went through into the current span; of several texts from the first to the last.

        `queue` lasts from the arrival to the batch, so that `tokenise` lies within it.

        Args:
            route: who answered.
            answers: of all texts.
            arrived: when the engine took the request, on its clock.
            now: the time on that clock.
        """
        current = trace.get_current_span()
        if not current.is_recording():
            return
        model = route.model.manifest.id
        tokens = sum(answer.tokens for answer in answers)
        current.set_attributes(
            {"successor.model": model.name, "successor.version": model.version, "successor.arm": route.arm}
        )
        started = [arrived + answer.queue_s + answer.tokenisation_s for answer in answers]
        ended = [start + answer.inference_s for start, answer in zip(started, answers, strict=True)]
        since = [answer.tokenisation_at for answer in answers]
        until = [answer.tokenisation_at + answer.tokenisation_s for answer in answers]
        epoch_ns = time.time_ns() - int(now * 1e9)
        for name, begin, end in (
            ("queue", arrived, max(started)),
            ("tokenise", min(since), max(until)),
            ("infer", min(started), max(ended)),
        ):
            span = self._tracer.start_span(
                name,
                attributes={"successor.texts": len(answers), "successor.tokens": tokens},
                start_time=epoch_ns + int(begin * 1e9),
            )
            span.end(epoch_ns + int(end * 1e9))

    def close(self) -> None:
        """Send what is left; waits for the exporter."""
        self._provider.shutdown()
