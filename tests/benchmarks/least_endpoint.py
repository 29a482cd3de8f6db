"""The least that an answer over HTTP costs on uvicorn: an ASGI application without routes, validation or a queue.

Without a model it reads the body and answers a constant. With one it tokenises and runs the text on the event loop,
with every core: no service on uvicorn answers a lone request sooner, and none could take a second one meanwhile.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from model_store.classifier import OnnxClassifier, to_scores
from model_store.encoding import TextItem
from model_store.store import ModelStore


def create_app(answer: Callable[[bytes], bytes]) -> ASGIApp:
    """The application around a function of a request's body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        body: bytes = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        content = answer(body) if scope["method"] == "POST" else b"{}"
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app


def constant(_: bytes) -> bytes:
    """Answers without a model."""
    return b'{"label":"positive","probs":[0.25,0.75]}'


def inline(classifier: OnnxClassifier) -> Callable[[bytes], bytes]:
    """Answers with a model, on the calling thread."""
    contract = classifier.manifest.scores

    def answer(body: bytes) -> bytes:
        logits = classifier.run([classifier.encode(TextItem(json.loads(body)["input"]))])
        scores: list[Any] = to_scores(logits, contract)[0].tolist()
        return json.dumps({"label": contract.labels[scores.index(max(scores))], "probs": scores}).encode()

    return answer


def main() -> None:
    """Serve: `python -m tests.benchmarks.least_endpoint PORT [--store STORE --model REFERENCE --threads N]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    answer: Callable[[bytes], bytes] = constant
    if arguments.store is not None:
        store = ModelStore(arguments.store)
        version = store.open(store.resolve(arguments.model))
        answer = inline(OnnxClassifier(version, intra_op_threads=arguments.threads))
    options: dict[str, Any] = {"loop": "uvloop", "http": "httptools", "lifespan": "off", "access_log": False}
    uvicorn.run(create_app(answer), port=arguments.port, log_level="warning", **options)


if __name__ == "__main__":
    main()
