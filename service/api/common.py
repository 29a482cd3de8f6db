"""What every route shares: the running service, request bodies, deadlines, and errors in the native shape."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from dataclasses import dataclass, field

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_store.errors import SuccessorError
from model_store.store import ModelStore
from service.batcher import Job
from service.control import Control
from service.engine import Engine
from service.errors import (
    UNEXPECTED,
    BodyTooLargeError,
    ClientGoneError,
    InvalidRequestError,
    Outcome,
    OverloadedError,
    UnsupportedEncodingError,
    outcome_of,
)
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings

log = structlog.get_logger(__name__)

MAX_TIMEOUT_S = 3_600.0
_MAX_REQUEST_ID = 128


@dataclass(slots=True)
class Service:
    """The running service: made by the app's lifespan, found by requests in `scope["state"]["service"]`."""

    settings: Settings
    provider: str
    store: ModelStore
    engine: Engine
    registry: Registry
    metrics: Metrics
    control: Control | None
    """Where there are other server processes: what one is told, all of them do."""
    draining: bool = False
    """Set once, by the shutdown: not ready any more, and every answer closes its connection."""
    _prefix: str = field(default_factory=lambda: secrets.token_hex(6))
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def sync(self) -> None:
        """Serve what the store says now, in every server process.

        Raises:
            NotAcknowledgedError: another process did not say in time that it does.
        """
        if self.control is None:
            await self.registry.sync()
        else:
            await self.control.broadcast()

    def next_request_id(self) -> str:
        """An id that no other request of any process has."""
        return f"{self._prefix}-{next(self._numbers):x}"


@dataclass(slots=True)
class Connection:
    """One client's connection, in `scope["state"]["connection"]` where the server tells when a client hangs up."""

    jobs: set[Job] = field(default_factory=set)
    """What it waits for; the server abandons these when it closes."""
    timed_out: bool = False
    """Set by the server when it gave up reading, answered and closed."""


# Where the server does not tell, nobody looks at what is kept here.
NOWHERE = Connection()


class ErrorDetail(BaseModel):
    """What went wrong, in one sentence that says what to do."""

    model_config = ConfigDict(frozen=True)

    message: str
    type: str = Field(description="a broad class: invalid_request_error, not_found_error, overloaded_error, …")
    param: str | None = Field(description="the field or header that is wrong, where there is one")
    code: str = Field(description="the precise kind")


class ErrorAnswer(BaseModel):
    """The body of every answer with a 4xx or 5xx status."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "error": {
                    "message": "no model 'sentimant' here: this server has sentiment, sentiment@3",
                    "type": "not_found_error",
                    "param": "model",
                    "code": "model_not_found",
                }
            }
        },
    )

    error: ErrorDetail


Headers = list[tuple[bytes, bytes]]


async def send_json(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a JSON answer."""
    start: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def native_error(outcome: Outcome, message: str, param: str | None = None) -> bytes:
    """An error in the native shape."""
    detail = {"message": message, "type": outcome.type, "param": param, "code": outcome.code}
    return orjson.dumps({"error": detail})


def explain(error: SuccessorError) -> tuple[int, bytes, Headers]:
    """Status, native body and headers for an expected error."""
    outcome = outcome_of(error)
    headers: Headers = []
    if isinstance(error, OverloadedError):
        headers = [
            (b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),
            (b"retry-after-ms", b"%d" % max(1, math.ceil(error.retry_after_s * 1e3))),
        ]
    message = str(error).encode("utf-8", "replace").decode()
    return outcome.status, native_error(outcome, message, getattr(error, "param", None)), headers


async def read_body(receive: Receive, headers: dict[bytes, bytes], limit: int) -> bytes:
    """The whole body, given up as soon as it is known to be too large.

    Raises:
        BodyTooLargeError: announced or found to have more than `limit` bytes.
        ClientGoneError: the connection was closed before its end.
    """
    too_large = BodyTooLargeError(f"the body is larger than {limit} bytes: send fewer or shorter texts")
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise too_large
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client closed the connection before the end of its request")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large
        if not message.get("more_body", False):
            return b"".join([*chunks, chunk]) if chunks else chunk
        chunks.append(chunk)


def deadline_of(headers: dict[bytes, bytes], now: float, default_s: float) -> float:
    """When a request must have been computed, on the engine's clock: the earliest of what its headers say.

    Raises:
        InvalidRequestError: a header is not a positive number of milliseconds.
    """
    timeout, moment = headers.get(b"request-timeout-ms"), headers.get(b"request-deadline-ms")
    if timeout is None and moment is None:
        return now + default_s
    left = MAX_TIMEOUT_S
    if timeout is not None:
        left = min(left, _milliseconds("request-timeout-ms", timeout) / 1e3)
    if moment is not None:
        left = min(left, _milliseconds("request-deadline-ms", moment) / 1e3 - time.time())
    return now + left


def _milliseconds(header: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 18 or int(value) == 0:
        raise InvalidRequestError(f"header {header} must be a positive whole number of milliseconds", param=header)
    return int(value)


async def refuse_encoding(service: Service, encoding: bytes, send: Send) -> None:
    """Answer a request whose body is compressed, or the like."""
    error = UnsupportedEncodingError(
        f"the body has Content-Encoding {encoding[:40].decode('latin-1')!r}: send it as it is, without that header",
        param="content-encoding",
    )
    service.metrics.refusals.labels(outcome_of(error).code).inc()
    await send_json(send, *explain(error))


class Envelope:
    """Pure ASGI around every route: the request's id, `Connection: close` while draining, and errors of every route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; anything else, such as the lifespan, goes straight through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service: Service = scope["state"]["service"]
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        fits = 0 < len(given) <= _MAX_REQUEST_ID and given.isascii() and given.decode("latin-1").isprintable()
        request_id = given if fits else service.next_request_id().encode()
        scope["state"]["request_id"] = request_id
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
                if service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        encoding = headers.get(b"content-encoding", b"")
        try:
            if not encoding or encoding.lower() == b"identity":
                await self._app(scope, receive, send_on)
            else:
                await refuse_encoding(service, encoding, send_on)
        except Exception:
            log.exception("unexpected error", path=scope["path"], request_id=request_id.decode())
            if status:
                raise
            body = native_error(
                UNEXPECTED, "the server failed in a way that it did not expect: its log has the details"
            )
            await send_json(send_on, UNEXPECTED.status, body, [])
        if service.settings.log_requests or status >= 500:
            log.info(
                "request", method=scope["method"], path=scope["path"], status=status, request_id=request_id.decode()
            )
