"""Routes that are plain ASGI: how one is found, what its handler gets and gives, and the work that most ask for.

A route through FastAPI costs as much as all of our own Python for a short request, so that every dialect's routes are
`Endpoint`s in one `EndpointTable`, which the application asks first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog
from starlette.types import Receive, Scope, Send

from model_store.encoding import TextItem
from model_store.errors import SuccessorError
from model_store.manifest import Side
from service.access import Permission
from service.api.access import asked_over_http, authorise, check_port
from service.api.common import (
    NATIVE,
    Connection,
    Dialect,
    Headers,
    Reply,
    Service,
    deadline_of,
    explain,
    log_fault,
    read_body,
    send_reply,
)
from service.batcher import Answer
from service.errors import (
    ROUTING,
    ClientGoneError,
    NoTextsError,
    ShuttingDownError,
    TextTooLargeError,
    TooManyTextsError,
    outcome_of,
)
from service.registry import Route
from service.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Call:
    """One request on its way through a handler."""

    service: Service
    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes]
    parameters: tuple[str, ...]
    """The path's parameters, decoded, in their order."""
    connection: Connection
    arrived: float
    """When its header came, on the engine's clock: its deadline counts from then."""
    started: float = 0.0
    """When its body was there: what it took counts from then."""

    @property
    def request_id(self) -> str:
        """The id that its answer carries."""
        request_id: bytes = self.scope["state"]["request_id"]
        return request_id.decode()

    async def body(self) -> bytes:
        """Its whole body, within the server's limit; see `read_body`."""
        body = await read_body(self.service, self.receive, self.headers)
        self.started = self.service.engine.clock()
        return body

    def deadline(self, limit_s: float | None = None) -> float:
        """When its answer must have been computed, by its headers and by what its body says; see `deadline_of`."""
        return deadline_of(self.headers, self.arrived, self.service.settings.request_timeout_ms / 1e3, limit_s)

    def ask(  # noqa: PLR0913 - what a dialect may say about a request
        self,
        route: Route,
        texts: Sequence[TextItem],
        *,
        truncate: bool = True,
        side: Side | None = None,
        raw_scores: bool = False,
        field_name: str = "inputs",
    ) -> Awaitable[Answered]:
        """Have texts classified by its deadline; see the function `ask`."""
        return ask(
            self.service,
            route,
            texts,
            started=self.started,
            deadline=self.deadline(),
            connection=self.connection,
            truncate=truncate,
            side=side,
            raw_scores=raw_scores,
            field_name=field_name,
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request for work got, whatever its dialect."""

    route: Route
    answers: list[Answer]
    total_s: float

    @property
    def parts_s(self) -> tuple[float, float, float]:
        """Seconds in the queue, of tokenisation, of inference: of several texts the longest, but all tokenisation."""
        queue = tokenisation = inference = 0.0
        for answer in self.answers:
            queue = max(queue, answer.queue_s)
            tokenisation += answer.tokenisation_s
            inference = max(inference, answer.inference_s)
        return queue, tokenisation, inference


async def ask(  # noqa: PLR0913 - what a dialect may say about a request
    service: Service,
    route: Route,
    texts: Sequence[TextItem],
    *,
    started: float,
    deadline: float,
    connection: Connection,
    truncate: bool = True,
    side: Side | None = None,
    raw_scores: bool = False,
    field_name: str = "inputs",
) -> Answered:
    """Have texts classified; the work is dropped if the caller is cancelled or its connection closes.

    Raises:
        TextTooLargeError: a text has more characters than the server tokenises.
        SuccessorError: refused, too late, or failed, then with the text in `field_name` that did; see `Engine.submit`.
    """
    check_texts(texts, service.settings, field_name)
    engine, instruments = service.engine, route.model.instruments
    try:
        job = engine.submit(route.model, texts, truncate=truncate, side=side, raw_scores=raw_scores, deadline=deadline)
        connection.jobs.add(job)
        try:
            answers = await job.future
        except asyncio.CancelledError:
            engine.abandon(job)
            raise
        except SuccessorError as error:
            if job.failed is not None and len(texts) > 1:
                error.param = f"{field_name}[{job.failed}]"
            elif job.failed is not None and not outcome_of(error).fault:
                error.param = field_name
            raise
        finally:
            connection.jobs.discard(job)
    except SuccessorError:
        instruments.failures.inc()
        raise
    if service.tracing is not None:
        service.tracing.record(route, answers, job.arrived, engine.clock())
    total_s = engine.clock() - started
    instruments.total.observe(total_s)
    return Answered(route, answers, total_s)


def check_count(count: int, settings: Settings, field_name: str) -> None:
    """Refuse a number of texts that is beyond the server's limits, before anything is made of them.

    Raises:
        NoTextsError: there is none.
        TooManyTextsError: more than one request may have.
    """
    if not count:
        raise NoTextsError(f"{field_name} needs at least one text", param=field_name)
    most = settings.max_texts_per_request
    if count > most:
        raise TooManyTextsError(f"{field_name} has {count} texts and one request may have {most}", param=field_name)


def check_texts(texts: Sequence[TextItem], settings: Settings, field_name: str) -> None:
    """Refuse texts that are beyond the server's limits.

    Raises:
        TextTooLargeError: one has more characters than the server tokenises.
    """
    max_chars = settings.max_text_chars
    for index, item in enumerate(texts):
        if max(len(item.text), len(item.text_pair or "")) > max_chars:
            raise TextTooLargeError(
                f"a text may have {max_chars} characters: shorten it", param=f"{field_name}[{index}]"
            )


def origin_headers(answered: Answered) -> Headers:
    """Who answered, and how many texts were cut."""
    return [
        (b"x-model-version", answered.route.model.reference.encode()),
        (b"x-arm", answered.route.arm.encode()),
        (b"x-truncated-texts", b"%d" % sum(answer.truncated for answer in answered.answers)),
    ]


def timing_headers(answered: Answered) -> Headers:
    """Who answered, and the milliseconds it took."""
    queue_s, tokenisation_s, inference_s = answered.parts_s
    return [
        *origin_headers(answered),
        (b"x-queue-time", b"%.3f" % (1e3 * queue_s)),
        (b"x-tokenization-time", b"%.3f" % (1e3 * tokenisation_s)),
        (b"x-inference-time", b"%.3f" % (1e3 * inference_s)),
        (b"x-total-time", b"%.3f" % (1e3 * answered.total_s)),
    ]


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route.

    Args:
        dialect: in whose shape its errors are.
        method: of HTTP.
        path: as in OpenAPI; `{name}` stands for one segment.
        handle: answers, or raises a `SuccessorError`.
        permission: what a caller must be allowed to; None: anybody may.
        work: it asks a model for answers, and is refused before its body is read if the queue is full.
    """

    dialect: Dialect
    method: str
    path: str
    handle: Handler
    permission: Permission | None
    work: bool = False

    def enter(self, service: Service, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Let a request in, before its body is read.

        Raises:
            SuccessorError: it came to the wrong port, may not do this, or there is too much to do, by its deadline or
                at all.
        """
        if self.permission is not None:
            check_port(service, scope, self.permission)
            authorise(service, headers, self.permission, lambda: asked_over_http(scope))
        if self.work:
            # What states none in its header may state one in its body.
            service.engine.check_admission(deadline_of(headers, service.engine.clock(), math.inf))

    async def answer(self, scope: Scope, receive: Receive, send: Send, parameters: tuple[str, ...]) -> None:
        """Answer one request, inside `Envelope`; every expected error is answered in the dialect's shape."""
        service: Service = scope["state"]["service"]
        connection: Connection = scope["state"].get("connection") or Connection()
        headers: dict[bytes, bytes] = scope["state"]["headers"]
        try:
            call = Call(service, scope, receive, headers, parameters, connection, service.engine.clock())
            self.enter(service, scope, headers)
            reply = await self.handle(call)
        except SuccessorError as error:
            # A client that was refused while it sent is gone because the server has answered, and counted, that.
            if not connection.refused:
                service.metrics.count_refusal(error)
            if isinstance(error, ClientGoneError):
                return
            log_fault(error, scope["path"], scope["state"]["request_id"])
            reply = explain(error, self.dialect)
            # An error that a future has handed over and the frames that it came through hold each other, and the
            # request's body: they would stay until cycles are looked for, which is rarely done here.
            error.__traceback__ = None
        except asyncio.CancelledError:
            if not service.draining:
                raise
            # The time for what was in flight is over.
            gone = ShuttingDownError("the server went down before the answer: send the request to another")
            service.metrics.count_refusal(gone)
            reply = explain(gone, self.dialect)
        await send_reply(scope, send, reply)


Found = tuple[dict[str, Endpoint], tuple[str, ...]]
"""The endpoints of a path by their methods, and the path's parameters."""


@dataclass(slots=True)
class _Node:
    """Where a path may have got to, segment by segment."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    literal: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None

    def make(self, segment: str) -> _Node:
        if not segment.startswith("{"):
            return self.literal.setdefault(segment, _Node())
        if self.parameter is None:
            self.parameter = _Node()
        return self.parameter

    def find(self, segments: list[str], index: int) -> Found | None:
        if index == len(segments):
            return (self.endpoints, ()) if self.endpoints else None
        segment = segments[index]
        node = self.literal.get(segment)
        found = None if node is None else node.find(segments, index + 1)
        if found is not None or self.parameter is None or not segment:
            return found
        found = self.parameter.find(segments, index + 1)
        return None if found is None else (found[0], (segment, *found[1]))


class EndpointTable:
    """Finds the endpoints of a path; a literal segment goes before a parameter."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self._root = _Node()
        self._literal: dict[str, dict[str, Endpoint]] = {}
        for endpoint in self.endpoints:
            node = self._root
            for segment in endpoint.path.split("/"):
                node = node.make(segment)
            node.endpoints[endpoint.method] = endpoint
            if "{" not in endpoint.path:
                self._literal[endpoint.path] = node.endpoints
        self._dialects = {prefix: one.dialect for one in self.endpoints for prefix in one.dialect.prefixes}

    def find(self, path: str) -> Found | None:
        """The endpoints of a path and its parameters."""
        literal = self._literal.get(path)
        return (literal, ()) if literal is not None else self._root.find(path.split("/"), 0)

    def dialect_of(self, path: str) -> Dialect:
        """The dialect in whose shape a failure under a path is answered, whether or not there is such a route."""
        found = self.find(path)
        if found is not None:
            return next(iter(found[0].values())).dialect
        return next((dialect for prefix, dialect in self._dialects.items() if path.startswith(prefix)), NATIVE)


async def refuse_method(endpoints: dict[str, Endpoint], scope: Scope, send: Send) -> None:
    """Answer a request with a method that a path doesn't have."""
    allowed = ", ".join(sorted({*endpoints, "HEAD"} if "GET" in endpoints else endpoints))
    dialect = next(iter(endpoints.values())).dialect
    status, body = dialect.show(ROUTING[405], f"{scope['method']} is not allowed here: see /docs", None)
    headers: Headers = [(b"allow", allowed.encode())]
    await send_reply(scope, send, Reply(status, body, headers))
