"""Who may do what: every route names the permission that it needs, and `authorise` decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from service.access import Permission
from service.api.common import Service
from service.errors import NotPermittedError, WrongPortError

log = structlog.get_logger(__name__)


def authorise(
    service: Service, headers: Mapping[bytes, bytes], permission: Permission, asked: Callable[[], Mapping[str, str]]
) -> None:
    """Let a request through that may do what it asks for; one that administers is logged.

    Args:
        service: with the keys.
        headers: of the request.
        permission: what it needs.
        asked: what the log says of one that administers.

    Raises:
        AuthenticationError: keys are needed here, and it carries none that is known.
        NotPermittedError: its key lacks the scope, or administration is off.
        RateLimitedError: its key has asked more often than it may.
    """
    if service.keyring is not None:
        name = service.keyring.admit(headers, permission)
        if permission == "admin":
            log.info("administration", key=name, **asked())
    elif permission == "admin":
        raise NotPermittedError("administration is off: give the server keys with SUCCESSOR_API_KEYS_FILE")


def asked_over_http(scope: Mapping[str, Any]) -> dict[str, str]:
    """What the log says of a request inside `Envelope`."""
    request_id: bytes = scope["state"]["request_id"]
    return {"method": scope["method"], "path": scope["path"][:200], "request_id": request_id.decode()}


def check_port(service: Service, scope: Mapping[str, Any], permission: Permission) -> None:
    """Where operations have a port of their own, keep them there and everything else away.

    Raises:
        WrongPortError: the request came to the other port.
    """
    if service.operations_port is None:
        return
    server = scope.get("server")
    at_operations = server is not None and server[1] == service.operations_port
    if at_operations != (permission != "infer"):
        raise WrongPortError(f"nothing at {scope.get('path', '')[:200]!r} on this port: ask the server's other one")
