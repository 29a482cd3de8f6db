"""LitServe: worker processes behind a queue, as many processes for HTTP as workers.

Measured before it was chosen: `fast_queue` (ZeroMQ) is faster than the default, as many HTTP processes as workers
faster than one.
"""

from __future__ import annotations

from typing import Any

import litserve

from tests.benchmarks.peers.assignment import Assignment
from tests.benchmarks.peers.inference import Inference


class Classify(litserve.LitAPI):  # type: ignore[misc]  # LitServe is not installed where types are checked
    """One text at a time: JSON in, a dictionary out, without a request model."""

    def setup(self, device: str) -> None:
        self.inference = Inference(Assignment.from_environment())

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, text: str) -> dict[str, Any]:
        return self.inference.answers([text])[0]

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


class ClassifyBatch(Classify):
    """A list of texts at a time, as LitServe's batching makes it."""

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:  # type: ignore[override]  # LitServe passes a batch
        return self.inference.answers(texts)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


def main() -> None:
    """Serve as the environment says."""
    assignment = Assignment.from_environment()
    setting = assignment.setting
    if setting.batch > 1:
        api = ClassifyBatch(max_batch_size=setting.batch, batch_timeout=setting.wait_ms / 1000, api_path="/classify")
    else:
        api = Classify(api_path="/classify")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=setting.workers, timeout=False, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=assignment.port,
        num_api_servers=setting.workers,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
        loop="uvloop",
        http="httptools",
    )


if __name__ == "__main__":
    main()
