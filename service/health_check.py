"""The image's health check: `python -m service.health_check` exits with 0 if the server of this container is ready.

It imports nothing but the standard library, since it runs every few seconds.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_S = 2.0
ROUTE = "/health/ready"


def main() -> int:
    """Ask the server on `SUCCESSOR_PORT` whether it is ready; whether it speaks TLS may be said in a settings file."""
    port = int(os.environ.get("SUCCESSOR_PORT") or 8000)
    return 0 if any(is_ready(port, tls=tls) for tls in (False, True)) else 1


def is_ready(port: int, *, tls: bool) -> bool:
    """Whether a server on a port of this machine says that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    if tls:
        context = ssl.create_default_context()
        # The certificate is for the name that clients use; whose it is does not matter to its own server.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("GET", ROUTE)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
