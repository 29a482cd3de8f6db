"""What is around every route, whatever its dialect."""

from __future__ import annotations

import math
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_store.errors import SuccessorError
from service.api.common import Dialect, Reply, Service, deadline_of, explain, identify, send_reply, whole_message
from service.api.endpoint import Found
from service.errors import UNEXPECTED, UnsupportedEncodingError
from service.telemetry import continued

log = structlog.get_logger(__name__)

# Asked every few seconds by machines.
_UNTRACED = ("/health", "/v2/health", "/metrics")


class Envelope:
    """Pure ASGI around every route: the request's id, `Connection: close` while draining, and errors of every route.

    Args:
        app: what answers.
        dialect_of: the dialect of a path, in whose shape the envelope's own refusals are.
    """

    def __init__(self, app: ASGIApp, dialect_of: Callable[[str], Dialect]) -> None:
        self._app = app
        self._dialect_of = dialect_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; anything else, such as the lifespan, goes straight through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        headers = dict(scope["headers"])
        request_id = identify(service, headers)
        scope["state"]["request_id"] = request_id
        scope["state"]["headers"] = headers
        status = 0
        caller = headers.get(b"traceparent")
        traceparent = None if caller is None else continued(caller)
        span = None
        if service.tracing is not None and not scope["path"].startswith(_UNTRACED):
            span = service.tracing.begin(scope["method"], scope["path"], headers)
            traceparent = span.traceparent

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
                if traceparent is not None:
                    message["headers"].append((b"traceparent", traceparent))
                if service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        encoding = headers.get(b"content-encoding", b"")
        try:
            if not encoding or encoding.lower() == b"identity":
                await self._app(scope, receive, send_on)
            else:
                await send_reply(scope, send_on, self._refuse(service, _unsupported(encoding), scope["path"]))
        except Exception as error:
            log.exception("unexpected error", path=scope["path"], request_id=request_id.decode())
            service.metrics.count_refusal(error)
            if status:
                raise
            message = "the server failed in a way that it did not expect: its log has the details"
            await send_reply(scope, send_on, Reply(*self._dialect_of(scope["path"]).show(UNEXPECTED, message, None)))
        finally:
            if span is not None:
                span.end(_name_of(scope), status)
        if service.settings.log_requests:
            log.info(
                "request", method=scope["method"], path=scope["path"], status=status, request_id=request_id.decode()
            )

    def _refuse(self, service: Service, error: SuccessorError, path: str) -> Reply:
        service.metrics.count_refusal(error)
        return explain(error, self._dialect_of(path))


def refusal_at_once(scope: Scope, found: Found | None) -> Message | None:
    """The whole answer to a request that is refused for those that wait; None: it is answered as any other is.

    It says what `Envelope` and the endpoint would, in two thirds of the time: an overloaded server refuses more than it
    answers, and takes the time for it from the answers. What needs more than that (spans, a log, CORS) goes their way.

    Args:
        scope: of a request whose header has arrived, while others wait.
        found: the endpoints of its path.
    """
    service: Service = scope["state"]["service"]
    endpoint = None if found is None else found[0].get(scope["method"])
    settings = service.settings
    if endpoint is None or not endpoint.work or service.draining or not service.engine.able:
        return None
    headers = dict(scope["headers"])
    if service.tracing is not None or settings.log_requests or settings.cors_origins or b"content-encoding" in headers:
        return None
    try:
        deadline = deadline_of(headers, service.engine.clock(), math.inf)
        if not service.engine.refuses(deadline):
            return None  # and nothing has been counted against its key
    except SuccessorError:
        return None
    try:
        endpoint.enter(service, scope, headers)
    except SuccessorError as error:
        service.metrics.count_refusal(error)
        message = whole_message(explain(error, endpoint.dialect))
        message["headers"].append((b"x-request-id", identify(service, headers)))
        if b"traceparent" in headers and (traceparent := continued(headers[b"traceparent"])) is not None:
            message["headers"].append((b"traceparent", traceparent))
        return message
    return None


def _name_of(scope: Scope) -> str:
    """Method and route of a request, without what differs from one to the next; of an unknown route the method."""
    if "found" in scope:
        endpoints = scope["found"][0]
        return f"{scope['method']} {next(iter(endpoints.values())).path}"
    route = scope.get("route")
    return f"{scope['method']} {route.path}" if route is not None else str(scope["method"])


def _unsupported(encoding: bytes) -> UnsupportedEncodingError:
    return UnsupportedEncodingError(
        f"the body has Content-Encoding {encoding[:40].decode('latin-1')!r}: send it as it is, without that header",
        param="content-encoding",
    )
