"""What one would write without this project: a FastAPI `def` endpoint around one ONNX Runtime session, on uvicorn.

It is given every advantage: the same session options, tokenizer code and file choice as the service, ids made straight
from the text, a lean request model, no response model, uvloop and httptools, no access log.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from model_store.classifier import OnnxClassifier, to_scores
from model_store.encoding import TextItem
from model_store.store import ModelStore


class Request(BaseModel):
    """One text."""

    text: str


def create_app(classifier: OnnxClassifier) -> FastAPI:
    """The application around one session."""
    app = FastAPI()
    contract = classifier.manifest.scores

    @app.post("/classify", response_model=None)
    def classify(request: Request) -> dict[str, Any]:
        logits = classifier.run([classifier.encode(TextItem(request.text))])
        scores = to_scores(logits, contract)[0].tolist()
        return {"label": contract.labels[scores.index(max(scores))], "probs": scores}

    @app.get("/health/ready", response_model=None)
    def ready() -> dict[str, Any]:
        return {}

    return app


def main() -> None:
    """Serve one version: `python -m tests.benchmarks.plain_endpoint STORE REFERENCE THREADS PORT`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("reference")
    parser.add_argument("threads", type=int)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    store = ModelStore(arguments.store)
    version = store.open(store.resolve(arguments.reference))
    app = create_app(OnnxClassifier(version, intra_op_threads=arguments.threads))
    uvicorn.run(app, port=arguments.port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
