"""`tritonclient.http` and `tritonclient.http.aio`: binary and JSON tensors, classification, metadata, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import tritonclient.http
import tritonclient.http.aio
from common import main
from tritonclient.utils import InferenceServerException


def tensors(columns: dict[str, list[str]], *, binary: bool) -> list[Any]:
    inputs = []
    for name, texts in columns.items():
        tensor = tritonclient.http.InferInput(name, [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
        inputs.append(tensor)
    return inputs


def read(result: Any) -> dict[str, Any]:
    scores, label, truncated = (result.as_numpy(name) for name in ("scores", "label", "truncated"))
    return {
        "scores": scores.tolist(),
        "labels": [value if isinstance(value, str) else value.decode() for value in label],
        "truncated": truncated.tolist(),
        "response": {key: result.get_response().get(key) for key in ("id", "model_name", "model_version")},
    }


def wanted(*, binary: bool) -> list[Any]:
    return [
        tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "label", "truncated")
    ]


def answer(task: dict[str, Any]) -> object:
    client = tritonclient.http.InferenceServerClient(task["url"].removeprefix("http://"), concurrency=4)
    texts, pairs = {"text": task["texts"]}, {"text": task["pairs"][0], "text_pair": task["pairs"][1]}
    found: dict[str, Any] = {}
    for binary in (True, False):
        name = "binary" if binary else "json"
        inputs = tensors(texts, binary=binary)
        found[f"{name} in and out"] = read(client.infer("tiny", inputs, outputs=wanted(binary=binary), request_id="7"))
        found[f"{name} in, other out"] = read(client.infer("tiny", inputs, outputs=wanted(binary=not binary)))
    found["as it comes"] = read(client.infer("tiny", tensors(texts, binary=True), timeout=30_000_000, priority=1))
    found["asynchronous"] = read(client.async_infer("tiny", tensors(texts, binary=True)).get_result())
    found["pairs"] = read(client.infer("pairs", tensors(pairs, binary=True), model_version="1"))
    classes = tritonclient.http.InferRequestedOutput("scores", binary_data=True, class_count=2)
    classified = client.infer("tiny", tensors(texts, binary=True), outputs=[classes]).as_numpy("scores")
    found["asyncio"] = asyncio.run(with_asyncio(task, texts))
    found["classification"] = [[value.decode() for value in row] for row in classified]
    found["about"] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready("tiny"),
        "unknown ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata("tiny"),
        "config": client.get_model_config("tiny", "2"),
        "statistics": client.get_inference_statistics("tiny"),
        "every statistics": client.get_inference_statistics(),
        "index": client.get_model_repository_index(),
    }
    token = {"Authorization": "Bearer secret"}
    client.unload_model("rating", headers=token)
    found["unloaded"] = client.is_model_ready("rating")
    client.load_model("rating", headers=token)
    found["loaded"] = client.is_model_ready("rating")
    found["errors"] = {
        "unknown": failure(lambda: client.infer("nobody", tensors(texts, binary=True))),
        "empty": failure(lambda: client.infer("tiny", tensors({"text": [""]}, binary=True))),
        "late": failure(lambda: client.infer("tiny", tensors(texts, binary=True), timeout=1)),
        "sequence": failure(lambda: client.infer("tiny", tensors(texts, binary=True), sequence_id=3)),
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


async def with_asyncio(task: dict[str, Any], texts: dict[str, list[str]]) -> object:
    async with tritonclient.http.aio.InferenceServerClient(task["url"].removeprefix("http://")) as client:
        results = await asyncio.gather(*(client.infer("tiny", tensors(texts, binary=True)) for _ in range(8)))
    answers = [read(result) for result in results]
    assert all(np.allclose(one["scores"], answers[0]["scores"], atol=1e-6) for one in answers)
    return answers[0]


main(answer)
