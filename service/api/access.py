"""Who may do what: every route names the permission that it needs, and `authorise` decides."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Literal

from service.api.common import Service
from service.errors import AdministrationError

Permission = Literal["infer", "admin", "metrics"]


def authorise(service: Service, headers: Mapping[bytes, bytes], permission: Permission) -> None:
    """Let a request through that may do what it asks for.

    Raises:
        AdministrationError: no token is set, or another one was sent.
    """
    if permission != "admin":
        return
    token = service.settings.admin_token
    if token is None:
        raise AdministrationError("administration is off: set SUCCESSOR_ADMIN_TOKEN and restart the server")
    if not hmac.compare_digest(headers.get(b"authorization", b""), f"Bearer {token.get_secret_value()}".encode()):
        raise AdministrationError(
            "send the header 'Authorization: Bearer TOKEN' with the server's SUCCESSOR_ADMIN_TOKEN"
        )
