"""FastAPI with the dialects' table before it: its own routing and middleware cost as much as a route's own Python."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from model_store.errors import SuccessorError
from service.api import operations
from service.api.common import Reply, Service, explain, log_fault
from service.api.dialects import TABLE
from service.api.endpoint import Found, refuse_method
from service.api.envelope import Envelope
from service.errors import ROUTING, Outcome


class Application(FastAPI):
    """Every route of the service.

    Args:
        chosen: as FastAPI takes them.
    """

    outermost: ASGIApp | None = None
    """What is around every route, if the settings ask for it; `create_app` sets it."""

    def __init__(self, **chosen: Any) -> None:  # noqa: ANN401 - FastAPI's own arguments
        super().__init__(
            redirect_slashes=False,  # to wherever the request's Host says
            docs_url=None,  # see `docs_page`
            redoc_url=None,
            **chosen,
        )
        self.include_router(operations.router)
        self.add_middleware(Envelope, dialect_of=TABLE.dialect_of)
        self.add_exception_handler(SuccessorError, _expected)
        self.add_exception_handler(HTTPException, _unrouted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan."""
        await (self.outermost or self.answer)(scope, receive, send)

    def answer(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Send what a dialect's table has straight there, everything else through FastAPI."""
        found = TABLE.find(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            return super().__call__(scope, receive, send)
        scope["found"] = found
        return _short_way(scope, receive, send)


def _answer_from_table(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    found: Found = scope["found"]
    endpoints, parameters = found
    method = scope["method"]
    endpoint = endpoints.get("GET" if method == "HEAD" else method)
    if endpoint is None:
        return refuse_method(endpoints, scope, send)
    return endpoint.answer(scope, receive, send, parameters)


_short_way = Envelope(_answer_from_table, TABLE.dialect_of)


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, SuccessorError)  # noqa: S101 - Starlette calls it for no other class
    service: Service = request.state.service
    service.metrics.count_refusal(error)
    log_fault(error, request.scope["path"], request.scope["state"]["request_id"])
    return _response(explain(error, TABLE.dialect_of(request.url.path)))


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    outcome = ROUTING.get(error.status_code, Outcome(error.status_code, "invalid_request_error", "invalid_request"))
    message = {
        404: f"no route {request.url.path[:200]!r}: see /docs",
        405: f"{request.method} is not allowed here: see /docs",
    }.get(error.status_code, str(error.detail))
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    status, body = TABLE.dialect_of(request.url.path).show(outcome, message, None)
    return _response(Reply(status, body, headers))


def _response(reply: Reply) -> Response:
    response = Response(reply.body, status_code=reply.status, media_type=reply.content_type.decode())
    response.raw_headers.extend(reply.headers)
    return response
