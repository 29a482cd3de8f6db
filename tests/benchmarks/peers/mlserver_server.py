"""MLServer: the open inference protocol in front of its pool of worker processes.

Measured before it was chosen: the pool, also with one worker, is no slower than the model in MLServer's own process.
"""

from __future__ import annotations

import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from mlserver.utils import install_uvloop_event_loop

from tests.benchmarks.peers.assignment import Assignment
from tests.benchmarks.peers.inference import Inference


class Classify(MLModel):  # type: ignore[misc]  # MLServer is not installed where types are checked
    """Texts in, scores out; MLServer joins the texts of several requests into one where batching is on."""

    async def load(self) -> bool:
        self.inference = Inference(Assignment.from_environment())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        scores = self.inference.scores(payload.inputs[0].data.root)
        shape = [len(scores), len(scores[0])]
        flat = [score for row in scores for score in row]
        output = ResponseOutput(name="scores", datatype="FP32", shape=shape, data=flat)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve(assignment: Assignment) -> None:
    """Serve until a signal; no metrics, no compression, no access log."""
    setting = assignment.setting
    settings = Settings(
        host="127.0.0.1",
        http_port=assignment.port,
        grpc_port=assignment.spare_ports[0],
        metrics_endpoint=None,
        parallel_workers=setting.workers,
        gzip_enabled=False,
        debug=False,
    )
    batching = {"max_batch_size": setting.batch, "max_batch_time": setting.wait_ms / 1000} if setting.batch > 1 else {}
    # The workers import the class by its name, which here would be that of `__main__`.
    model = ModelSettings(name="classify", implementation=f"{__spec__.name}.Classify", **batching)
    await MLServer(settings).start([model])


if __name__ == "__main__":
    install_uvloop_event_loop()
    asyncio.run(serve(Assignment.from_environment()))
