"""Ray Serve: replicas behind HAProxy, with Ray's own set of options for throughput.

Measured before it was chosen: behind HAProxy twice as many texts a second as behind Ray's proxy in Python; and calls on
the replica's event loop are faster than in a thread beside it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.assignment import Assignment
from tests.benchmarks.peers.inference import Inference

_ASSIGNMENT = Assignment.from_environment()
_FILES = Path(tempfile.gettempdir())
# Ray reads these when it is imported.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(_FILES / "haproxy.cfg"),
    "RAY_SERVE_HAPROXY_SOCKET_PATH": str(_FILES / "admin.sock"),
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(_FILES),
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(_FILES / "server-state"),
    "RAY_SERVE_HAPROXY_STATS_PORT": str(_ASSIGNMENT.spare_ports[0]),
    "RAY_SERVE_HAPROXY_METRICS_PORT": str(_ASSIGNMENT.spare_ports[1]),
}

import orjson  # noqa: E402
import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.schema import LoggingConfig  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import Response  # noqa: E402

_SETTING = _ASSIGNMENT.setting


class Classify:
    """One text at a time: bytes in, bytes out; any other request asks whether it is up."""

    def __init__(self, assignment: Assignment) -> None:
        self.inference = Inference(assignment)

    async def __call__(self, request: Request) -> Response:
        if request.method != "POST":
            return Response()
        answer = await self.answer(orjson.loads(await request.body())["text"])
        return Response(orjson.dumps(answer), media_type="application/json")

    async def answer(self, text: str) -> dict[str, Any]:
        return self.inference.answers([text])[0]


class ClassifyBatch(Classify):
    """The texts of several requests at a time."""

    @serve.batch(max_batch_size=_SETTING.batch, batch_wait_timeout_s=_SETTING.wait_ms / 1000)  # type: ignore[untyped-decorator]
    async def answer(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.inference.answers(texts)


def main() -> None:
    """Serve until SIGTERM."""
    ray.init(num_cpus=_SETTING.workers, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": _ASSIGNMENT.port},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    deployment = serve.deployment(
        ClassifyBatch if _SETTING.batch > 1 else Classify,
        num_replicas=_SETTING.workers,
        max_ongoing_requests=1_000,
    )
    serve.run(deployment.bind(_ASSIGNMENT), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main()
