"""`kserve`'s REST client with protocol v2, and its gRPC client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
from common import main
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def request(texts: list[str], *, binary: bool | None, outputs: bool = False) -> InferRequest:
    column = InferInput("text", [len(texts)], "BYTES")
    if binary is None:
        column.data = texts
    else:
        column.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
    wanted = [RequestedOutput(name, {"binary_data": True}) for name in ("scores", "label")] if outputs else None
    return InferRequest("tiny", [column], request_id="7", request_outputs=wanted)


def read(response: Any) -> dict[str, Any]:
    outputs = {output.name: output.as_numpy() for output in response.outputs}
    labels = [value.decode() if isinstance(value, bytes) else str(value) for value in outputs["label"]]
    return {"scores": outputs["scores"].tolist(), "labels": labels, "id": response.id, "model": response.model_name}


async def over_http(task: dict[str, Any]) -> dict[str, Any]:
    url, texts = task["url"], task["texts"]
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    found: dict[str, Any] = {
        name: read(await client.infer(url, request(texts, binary=binary, outputs=outputs), model_name="tiny"))
        for name, binary, outputs in (
            ("json", False, False),
            ("a list", None, False),
            ("binary in", True, False),
            ("binary in and out", True, True),
        )
    }
    found["about"] = [
        await client.is_server_live(url),
        await client.is_server_ready(url),
        await client.is_model_ready(url, "tiny"),
        await client.is_model_ready(url, "nobody"),
    ]
    try:
        await client.infer(url, request([""], binary=False), model_name="tiny")
    except httpx.HTTPStatusError as error:
        found["error"] = [error.response.status_code, str(error)]
    await client.close()
    return found


async def over_grpc(task: dict[str, Any]) -> dict[str, Any]:
    async with InferenceGRPCClient(task["grpc"]) as client:
        return {
            "contents": read(await client.infer(request([text.encode() for text in task["texts"]], binary=None))),
            "raw": read(await client.infer(request(task["texts"], binary=True))),
            "about": [
                await client.is_server_live(),
                await client.is_server_ready(),
                await client.is_model_ready("tiny"),
            ],
        }


def answer(task: dict[str, Any]) -> object:
    found: dict[str, Any] = {"http": asyncio.run(over_http(task))}
    if task["grpc"]:
        found["grpc"] = asyncio.run(over_grpc(task))
    return found


main(answer)
