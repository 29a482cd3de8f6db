"""How to get in, and what every caller may be refused for, in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.api.common import NATIVE, ErrorAnswer
from service.api.endpoint import EndpointTable
from service.errors import (
    OUTCOMES,
    AuthenticationError,
    HeaderTooLargeError,
    NotPermittedError,
    RateLimitedError,
    RequestTimeoutError,
    ServiceError,
    TooManyConnectionsError,
    UnsupportedEncodingError,
    WrongPortError,
)

SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key of the server"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same, in another header"},
}
# What stands before every route, whatever it does.
ALWAYS: dict[type[ServiceError], str] = {
    RequestTimeoutError: "the request did not arrive in time",
    UnsupportedEncodingError: "the body is compressed",
    HeaderTooLargeError: "the header is too large",
    TooManyConnectionsError: "the server has as many connections as it may",
}
_SHAPE = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}}
KEYED: dict[type[ServiceError], str] = {
    AuthenticationError: "no API key, or none that is known",
    NotPermittedError: "the API key lacks the scope, or administration is off",
    WrongPortError: "the route is on the server's other port",
    RateLimitedError: "the API key has sent more requests than it may",
}


def add_access(paths: dict[str, Any], table: EndpointTable, *, keys: bool) -> None:
    """Say of every operation which keys it asks for, and document the refusals that don't depend on what it does.

    Args:
        paths: of the document; changed. What an operation says itself of a status stays.
        table: the routes that are not FastAPI's.
        keys: the server has API keys.
    """
    permissions = {(one.path, one.method.lower()): one.permission for one in table.endpoints}
    for path, operations in paths.items():
        dialect = table.dialect_of(path)
        for method, operation in operations.items():
            is_open = (
                path.startswith("/health") if (path, method) not in permissions else (permissions[path, method] is None)
            )
            refusals = ALWAYS if is_open else {**ALWAYS, **KEYED}
            for error, text in refusals.items():
                status, _ = dialect.show(OUTCOMES[error], "", None)
                refusal = {"description": text}
                operation["responses"].setdefault(str(status), refusal | _SHAPE if dialect is NATIVE else refusal)
            if keys and not is_open:
                operation["security"] = [{name: []} for name in SECURITY_SCHEMES]
