"""BentoML: a service class in worker processes that share a socket; no metrics, no traces, no access log."""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml

from tests.benchmarks.peers.assignment import Assignment
from tests.benchmarks.peers.inference import Inference

_ASSIGNMENT = Assignment.from_environment()
_SETTING = _ASSIGNMENT.setting
# Requests that are not answered within this are refused, and the batching plans with it.
_MAX_LATENCY_MS = 60_000


class Classify:
    """One text at a time."""

    def __init__(self) -> None:
        self.inference = Inference(_ASSIGNMENT)

    @bentoml.api  # type: ignore[untyped-decorator]  # BentoML is not installed where types are checked
    def classify(self, text: str) -> dict[str, Any]:
        return self.inference.answers([text])[0]


class ClassifyBatch:
    """The texts of several requests at a time; BentoML learns for itself how long to wait for them."""

    def __init__(self) -> None:
        self.inference = Inference(_ASSIGNMENT)

    @bentoml.api(batchable=True, max_batch_size=max(2, _SETTING.batch), max_latency_ms=_MAX_LATENCY_MS)  # type: ignore[untyped-decorator]
    def classify(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.inference.answers(texts)


Service = bentoml.service(
    ClassifyBatch if _SETTING.batch > 1 else Classify,
    workers=_SETTING.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)


def main() -> None:
    """Become `bentoml serve` for the service above."""
    command = [sys.executable, "-m", "bentoml", "serve", f"{__spec__.name}:Service"]
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(_ASSIGNMENT.port)])


if __name__ == "__main__":
    main()
