"""Traffic in every dialect at once: each answer is compared with what `OnnxClassifier` says of the text alone."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray

from service.api.grpc_messages import SERVICE, load_messages

LABELS = ("negative", "positive")
TOLERANCE = 1e-6
_DIALECTS = 6
_ENOUGH = 50
Ask = Callable[[list[str]], Awaitable[Any]]


class Traffic:
    """Callers in every dialect, each of which asks about other texts of a common pool, until they are stopped.

    Args:
        url: of the server.
        address: of its gRPC port.
        texts: the pool.
        scores: what each must get, `(texts, labels)`.
    """

    def __init__(self, url: str, address: str, texts: Sequence[str], scores: NDArray[np.float32]) -> None:
        self._url, self._address = url, address
        self._texts, self._scores = texts, scores
        self._messages = load_messages()
        self.answered: dict[str, int] = {}
        """Texts, by dialect; `run` counts."""
        self.enough = threading.Event()
        """Set when every dialect has answered some."""
        self.stopped = asyncio.Event()
        """Ends `run`."""

    async def once(self) -> None:
        """Ask over gRPC once, on a connection of its own."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            found = np.asarray(await self._grpc(channel, [*self._texts]))
        assert np.abs(found - self._scores).max() <= TOLERANCE

    async def run(self) -> None:
        """Ask until `stopped`; an answer that is not the model's own raises."""
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=30, limits=httpx.Limits(max_connections=64)) as http,
            grpc.aio.insecure_channel(self._address) as channel,
        ):
            dialects: dict[str, Ask] = {
                "native": lambda texts: self._native(http, texts),
                "open inference, JSON": lambda texts: self._tensors(http, texts),
                "open inference, binary": lambda texts: self._binary(http, texts),
                "open inference, gRPC": lambda texts: self._grpc(channel, texts),
                "text embeddings inference": lambda texts: self._predict(http, texts),
                "hugging face": lambda texts: self._pipeline(http, texts),
            }
            async with asyncio.TaskGroup() as group:
                for start, (name, ask) in enumerate(itertools.chain(dialects.items(), dialects.items())):
                    group.create_task(self._keep_asking(name, ask, start))

    async def _keep_asking(self, name: str, ask: Ask, start: int) -> None:
        count = 1 + start % 4
        for turn in itertools.count(start):
            if self.stopped.is_set():
                return
            rows = [(7 * turn + step) % len(self._texts) for step in range(count)]
            found = np.asarray(await ask([self._texts[row] for row in rows]), np.float64)
            difference = np.abs(found - self._scores[rows]).max()
            assert difference <= TOLERANCE, f"{name}: {rows} differ by {difference}"
            self.answered[name] = self.answered.get(name, 0) + count
            if len(self.answered) == _DIALECTS and min(self.answered.values()) >= _ENOUGH:
                self.enough.set()

    async def _post(self, http: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:  # noqa: ANN401
        response = await http.post(path, **body)
        assert response.status_code == 200, response.text
        return response

    async def _native(self, http: httpx.AsyncClient, texts: list[str]) -> object:
        response = await self._post(http, "/v1/classify", json={"model": "tiny", "input": texts})
        return [entry["probs"] for entry in response.json()["data"]]

    async def _tensors(self, http: httpx.AsyncClient, texts: list[str]) -> object:
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
        response = await self._post(http, "/v2/models/tiny/infer", json={"inputs": [tensor]})
        return np.reshape(response.json()["outputs"][0]["data"], (-1, 2))

    async def _binary(self, http: httpx.AsyncClient, texts: list[str]) -> object:
        raw = packed(texts)
        parameters = {"binary_data_size": len(raw)}
        tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "parameters": parameters}
        wanted = [{"name": "scores", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        name = "inference-header-content-length"
        response = await self._post(http, "/v2/models/tiny/infer", content=head + raw, headers={name: str(len(head))})
        return np.frombuffer(response.content[int(response.headers[name]) :], "<f4").reshape(-1, 2)

    async def _grpc(self, channel: Any, texts: list[str]) -> object:  # noqa: ANN401 - gRPC has no types
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=self._messages["ModelInferRequest"].SerializeToString,
            response_deserializer=self._messages["ModelInferResponse"].FromString,
        )
        request = self._messages["ModelInferRequest"](model_name="tiny", raw_input_contents=[packed(texts)])
        request.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
        response = await infer(request)
        return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(-1, 2)

    async def _predict(self, http: httpx.AsyncClient, texts: list[str]) -> object:
        response = await self._post(http, "/predict", json={"inputs": [[text] for text in texts]})
        return [in_order(ranked) for ranked in response.json()]

    async def _pipeline(self, http: httpx.AsyncClient, texts: list[str]) -> object:
        response = await self._post(http, "/models/tiny", json={"inputs": texts})
        return [in_order(ranked) for ranked in response.json()]


def packed(texts: list[str]) -> bytes:
    """The bytes of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def in_order(ranked: list[dict[str, Any]]) -> list[float]:
    """Scores in the model's order of labels."""
    scores = {entry["label"]: entry["score"] for entry in ranked}
    return [scores[label] for label in LABELS]
