"""What every route shares: the running service, request bodies, deadlines, and how a dialect shows an error."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message, Receive, Scope, Send

from model_store.errors import SuccessorError
from model_store.store import ModelStore
from service.access import Keyring
from service.batcher import Job
from service.control import Control
from service.engine import Engine
from service.errors import (
    AuthenticationError,
    BodyTooLargeError,
    ClientGoneError,
    InvalidRequestError,
    Outcome,
    OverloadedError,
    outcome_of,
)
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing

log = structlog.get_logger(__name__)

MAX_TIMEOUT_S = 3_600.0
_MAX_REQUEST_ID = 128
# Where too much arrives at a time, when to come again: how soon others have sent theirs, nobody knows.
ARRIVING_S = 1.0

WHOLE = "successor.body"
"""An extension of ASGI: the message that starts an answer may have all of its body under this key, and ends it then."""


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
    keyring: Keyring | None = None
    """Whom it lets in; None: everybody, but nobody may administer."""
    operations_port: int | None = None
    """Where metrics and administration are, if not where all else is."""
    tracing: Tracing | None = None
    """Makes spans, where OpenTelemetry is configured."""
    arriving_bytes: int = 0
    """Of bodies that have begun to arrive and have not ended."""
    leave_by: float = math.inf
    """Until when what is in flight has time, on the monotonic clock; set once, by the shutdown."""
    _prefix: str = field(default_factory=lambda: secrets.token_hex(6))
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def draining(self) -> bool:
        """It is going down: not ready any more, and every answer closes its connection."""
        return self.leave_by < math.inf

    @property
    def obstacle(self) -> str | None:
        """Why no request can be answered now, if so."""
        if self.draining:
            return "the server is going down"
        if not self.engine.able:
            return "no worker can answer: restart the server"
        if not self.registry.table.models:
            return (
                "; ".join(self.registry.table.warnings) if self.open_to_all else "no model is loaded: the log says why"
            )
        return None

    @property
    def open_to_all(self) -> bool:
        """Anybody may ask which models there are: health, which needs no key, may name them."""
        return self.keyring is None or self.keyring.lets_anybody("infer")

    def begin_to_drain(self) -> None:
        """Go down: what is in flight has `drain_ms`."""
        self.leave_by = time.monotonic() + self.settings.drain_ms / 1e3

    def seconds_to_drain(self) -> float:
        """How much of that is left; all of it where nothing has begun it."""
        return max(0.0, min(self.settings.drain_ms / 1e3, self.leave_by - time.monotonic()))

    async def sync(self, name: str | None = None) -> None:
        """Serve what the store says now, in every server process.

        Args:
            name: the one that it is about; None: all.

        Raises:
            NotAcknowledgedError: see `Control.broadcast`.
        """
        if self.control is None:
            await self.registry.sync()
        else:
            await self.control.broadcast(name)

    def next_request_id(self) -> str:
        """An id that no other request of any process has."""
        return f"{self._prefix}-{next(self._numbers):x}"


@dataclass(slots=True)
class Connection:
    """One client's connection, in `scope["state"]["connection"]` where the server tells when a client hangs up."""

    jobs: set[Job] = field(default_factory=set)
    """What it waits for; the server abandons these when it closes."""
    refused: bool = False
    """Set by the server when it gave up reading, answered, counted that and closed."""


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


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the service says to one kind of clients, as far as every route of it is alike."""

    name: str
    prefixes: tuple[str, ...]
    """Paths that are not a route's and begin so are its to refuse; the native dialect refuses all others."""
    show: Callable[[Outcome, str, str | None], tuple[int, bytes]]
    """Status and body for an outcome, a message and the field that is wrong."""


def _show_native(outcome: Outcome, message: str, param: str | None) -> tuple[int, bytes]:
    detail = {"message": message, "type": outcome.type, "param": param, "code": outcome.code}
    return outcome.status, orjson.dumps({"error": detail})


NATIVE = Dialect("native", (), _show_native)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole."""

    status: int
    body: bytes
    headers: Headers = field(default_factory=list)
    content_type: bytes = b"application/json"


def explain(error: SuccessorError, dialect: Dialect = NATIVE) -> Reply:
    """The answer to a request that ends in an expected error."""
    headers: Headers = []
    if isinstance(error, OverloadedError):
        headers = [
            (b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),
            (b"retry-after-ms", b"%d" % retry_after_ms(error)),
        ]
    elif isinstance(error, AuthenticationError):
        headers = [(b"www-authenticate", b"Bearer")]
    message = str(error).encode("utf-8", "replace").decode()
    status, body = dialect.show(outcome_of(error), message, error.param)
    return Reply(status, body, headers)


def retry_after_ms(error: OverloadedError) -> int:
    """After how long to come again, rounded so that who waits as told is let in."""
    return max(1, math.ceil(error.retry_after_s * 1e3))


def with_place(message: str, param: str | None) -> str:
    """A sentence with the field that it is about, for protocols that have no other place for that."""
    return message if param is None else f"{message} ({param})"


def identify(service: Service, headers: Mapping[bytes, bytes]) -> bytes:
    """The id that a request came with, or a new one."""
    given = headers.get(b"x-request-id", b"")
    fits = 0 < len(given) <= _MAX_REQUEST_ID and given.isascii() and given.decode("latin-1").isprintable()
    return given if fits else service.next_request_id().encode()


def log_fault(error: SuccessorError, path: str, request_id: bytes) -> None:
    """Log an error of a request if it is the server's own fault."""
    if outcome_of(error).fault:
        log.error("request failed", path=path, error=str(error), request_id=request_id.decode(), exc_info=error)


def whole_message(reply: Reply) -> Message:
    """An answer in one message."""
    length = b"%d" % len(reply.body)
    headers: Headers = [(b"content-type", reply.content_type), (b"content-length", length), *reply.headers]
    return {"type": "http.response.start", "status": reply.status, "headers": headers, WHOLE: reply.body}


async def send_reply(scope: Scope, send: Send, reply: Reply) -> None:
    """Send an answer, in one message where the server takes that."""
    start = whole_message(reply)
    if WHOLE in scope.get("extensions", ()):
        await send(start)
    else:
        del start[WHOLE]
        await send(start)
        await send({"type": "http.response.body", "body": reply.body})


async def read_body(service: Service, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """The whole body, given up as soon as it is known to be too large, or too much with all others that arrive.

    Raises:
        BodyTooLargeError: announced or found to have more bytes than a body may.
        ClientGoneError: the connection was closed before its end.
        OverloadedError: the bodies that are arriving have as many bytes as they may together.
    """
    limit = service.settings.max_body_bytes
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client closed the connection before the end of its request")
            chunk: bytes = message.get("body", b"")
            if len(body) + len(chunk) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body + chunk) if body else chunk
            body += chunk
            service.arriving_bytes += len(chunk)
            if service.arriving_bytes > service.settings.max_arriving_bytes:
                raise OverloadedError(
                    "the requests that are arriving are as large as they may be together: retry later",
                    retry_after_s=ARRIVING_S,
                )
    finally:
        service.arriving_bytes -= len(body)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {limit} bytes: send fewer or shorter texts")


def deadline_of(headers: dict[bytes, bytes], now: float, default_s: float, *limits_s: float | None) -> float:
    """When a request must have been computed, on the engine's clock: the earliest of what it states anywhere.

    Args:
        headers: which may state it in two ways.
        now: when it came.
        default_s: after that, where nothing is stated.
        limits_s: what it states elsewhere, seconds after it came.

    Raises:
        InvalidRequestError: a header is not a positive number of milliseconds.
    """
    stated = [limit for limit in limits_s if limit is not None]
    timeout, moment = headers.get(b"request-timeout-ms"), headers.get(b"request-deadline-ms")
    if timeout is not None:
        stated.append(_milliseconds("request-timeout-ms", timeout) / 1e3)
    if moment is not None:
        stated.append(_milliseconds("request-deadline-ms", moment) / 1e3 - time.time())
    return now + (min(MAX_TIMEOUT_S, *stated) if stated else default_s)


def _milliseconds(header: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 18 or int(value) == 0:
        raise InvalidRequestError(f"header {header} must be a positive whole number of milliseconds", param=header)
    return int(value)
