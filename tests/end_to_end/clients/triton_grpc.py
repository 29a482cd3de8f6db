"""`tritonclient.grpc` and `tritonclient.grpc.aio`: tensors, classification, streams, metadata, deadlines, errors."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from common import main
from tritonclient.utils import InferenceServerException


def tensors(columns: dict[str, list[str]]) -> list[Any]:
    inputs = []
    for name, texts in columns.items():
        tensor = tritonclient.grpc.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=object))
        inputs.append(tensor)
    return inputs


def read(result: Any) -> dict[str, Any]:
    scores, label, truncated = (result.as_numpy(name) for name in ("scores", "label", "truncated"))
    response = result.get_response()
    return {
        "scores": scores.tolist(),
        "labels": [value.decode() for value in label],
        "truncated": truncated.tolist(),
        "response": {"id": response.id, "model_name": response.model_name, "model_version": response.model_version},
    }


def answer(task: dict[str, Any]) -> object:
    client = tritonclient.grpc.InferenceServerClient(task["grpc"])
    texts, pairs = {"text": task["texts"]}, {"text": task["pairs"][0], "text_pair": task["pairs"][1]}
    wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in ("scores", "label", "truncated")]
    found: dict[str, Any] = {
        "all outputs": read(client.infer("tiny", tensors(texts), request_id="7")),
        "wanted outputs": read(client.infer("tiny", tensors(texts), outputs=wanted, priority=1, timeout=30_000_000)),
        "pairs": read(client.infer("pairs", tensors(pairs), model_version="1")),
        "asyncio": asyncio.run(with_asyncio(task, texts)),
        "stream": with_stream(task, texts),
    }
    classes = tritonclient.grpc.InferRequestedOutput("scores", class_count=2)
    classified = client.infer("tiny", tensors(texts), outputs=[classes]).as_numpy("scores")
    found["classification"] = [[value.decode() for value in row] for row in classified]
    found["about"] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("tiny"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata("tiny", as_json=True),
        "config": client.get_model_config("tiny", "2", as_json=True),
        "statistics": client.get_inference_statistics("tiny", as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }
    token = {"authorization": "Bearer secret"}
    client.unload_model("rating", headers=token)
    found["unloaded"] = client.is_model_ready("rating")
    client.load_model("rating", headers=token)
    found["loaded"] = client.is_model_ready("rating")
    found["errors"] = {
        "unknown": failure(lambda: client.infer("nobody", tensors(texts))),
        "empty": failure(lambda: client.infer("tiny", tensors({"text": [""]}))),
        "late": failure(lambda: client.infer("tiny", tensors(texts), timeout=1)),
        "sequence": failure(lambda: client.infer("tiny", tensors(texts), sequence_id=3)),
        "not permitted": failure(lambda: client.unload_model("tiny")),
    }
    client.close()
    return found


def failure(call: Any) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), error.message()]
    return ["", "no error"]


def with_stream(task: dict[str, Any], texts: dict[str, list[str]]) -> list[Any]:
    """Two requests and one that fails between them, on one stream."""
    answers: queue.Queue[Any] = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(task["grpc"])
    client.start_stream(lambda result, error: answers.put(str(error) if error is not None else read(result)))
    for model in ("tiny", "nobody", "tiny"):
        client.async_stream_infer(model, tensors(texts), request_id="7")
    found = [answers.get(timeout=20) for _ in range(3)]
    client.stop_stream()
    client.close()
    return found


async def with_asyncio(task: dict[str, Any], texts: dict[str, list[str]]) -> object:
    async with tritonclient.grpc.aio.InferenceServerClient(task["grpc"]) as client:
        results = await asyncio.gather(*(client.infer("tiny", tensors(texts)) for _ in range(8)))
    answers = [read(result) for result in results]
    assert all(np.allclose(one["scores"], answers[0]["scores"], atol=1e-6) for one in answers)
    return answers[0]


main(answer)
