"""A client of the app in this process: its lifespan runs on a loop of its own, requests go through httpx."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service.api.common import Service


class WebClient:
    """Sends requests to an app whose lifespan is running on `loop`."""

    def __init__(self, app: FastAPI, state: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = dict(state)
            await app(scope, receive, send)

        transport = httpx.ASGITransport(with_state, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test")
        self.loop = loop
        self.service: Service = state["service"]

    def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request and wait for its answer."""
        body = content if content is None or isinstance(content, bytes) else _in_pieces(content)
        options: dict[str, Any] = {"json": json} if json is not None else {"content": body}
        sent = self._client.request(method, path, headers=headers, **options)
        return asyncio.run_coroutine_threadsafe(sent, self.loop).result(20)

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """Send a GET."""
        return self.request("GET", path, headers=headers)

    def post(
        self,
        path: str,
        json: object = None,
        content: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Send a POST."""
        return self.request("POST", path, json=json, content=content, headers=headers)


@contextlib.contextmanager
def running_app(app: FastAPI) -> Iterator[WebClient]:
    """Run the app's lifespan on a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="app")
    thread.start()
    lifespan = app.router.lifespan_context(app)

    async def start() -> WebClient:
        return WebClient(app, dict(await lifespan.__aenter__() or {}), loop)

    try:
        client = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        try:
            yield client
        finally:
            asyncio.run_coroutine_threadsafe(lifespan.__aexit__(None, None, None), loop).result(20)
            asyncio.run_coroutine_threadsafe(client._client.aclose(), loop).result(20)
            asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _in_pieces(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
