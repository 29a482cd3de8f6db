"""A server that speaks just enough HTTP to stand in for `successor serve`: real sockets, answers made by the test."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from service.comparison.connection import Origin

Classify = Callable[[dict[str, Any]], "tuple[int, Any] | bytes | None"]


def entry(model: str, **changes: object) -> dict[str, Any]:
    """One model as `GET /v1/models` lists it."""
    name, _, version = model.partition("@")
    shown = {
        "id": model,
        "object": "model",
        "name": name,
        "version": int(version),
        "aliases": [],
        "file": "fp32.onnx",
        "precision": "fp32",
        "bytes": 1000,
        "labels": ["negative", "positive"],
        "problem": "single_label",
        "pair": False,
        "provider": "CPUExecutionProvider",
        "threads": 1,
    }
    return {**shown, **changes}


def labelled(label: str) -> tuple[int, Any]:
    """An answer of 200 with a label."""
    return 200, {"object": "list", "data": [{"index": 0, "label": label}]}


def requests(url: str, count: int) -> list[bytes]:
    """Prepared requests to classify `text 0`, `text 1`, …"""
    return [Origin.parse(url).post("/v1/classify", {"input": f"text {index}"}) for index in range(count)]


class StubServer:
    """Answers in a thread of its own; `asked` are the bodies of the classify requests, in the order of their arrival.

    Args:
        models: entries of `/v1/models`.
        classify: from a request's body to status and answer, to raw bytes, or to None: hang up without an answer.
        close: answer with `Connection: close`, and do so.
        silent: read requests and never answer.
    """

    def __init__(
        self,
        models: Sequence[dict[str, Any]] = (),
        classify: Classify = lambda _: labelled("positive"),
        *,
        close: bool = False,
        silent: bool = False,
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self._models = models
        self._classify = classify
        self._close = close
        self._silent = silent
        self._loop = asyncio.new_event_loop()
        self._served: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _shut(self) -> None:
        # asyncio loses a connection that it is accepting when its server closes: let it finish first.
        while accepting := self._accepting():
            await asyncio.gather(*accepting)
        self._server.close()
        for writer in self._served:
            writer.transport.abort()
        await asyncio.gather(*self._served.values())

    def _accepting(self) -> set[asyncio.Task[Any]]:
        """The tasks that are not ours."""
        return asyncio.all_tasks() - {asyncio.current_task(), *self._served.values()}

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._served[writer] = self._loop.create_task(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has hung up
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        lengths = [line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length")]
        body = await reader.readexactly(int(lengths[0]) if lengths else 0)
        if self._silent:
            return True
        answer = self._find(path, body)
        if answer is None:
            return False
        if not isinstance(answer, bytes):
            content = json.dumps(answer[1]).encode()
            closing = "Connection: close\r\n" if self._close else ""
            answer = f"HTTP/1.1 {answer[0]} X\r\nContent-Length: {len(content)}\r\n{closing}\r\n".encode() + content
        writer.write(answer)
        await writer.drain()
        return not self._close

    def _find(self, path: str, body: bytes) -> tuple[int, Any] | bytes | None:
        if path == "/v1/models":
            return 200, {"object": "list", "data": self._models}
        if path == "/v1/classify":
            self.asked.append(json.loads(body))
            return self._classify(self.asked[-1])
        return 200, {}
