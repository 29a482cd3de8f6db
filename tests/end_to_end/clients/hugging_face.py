"""`huggingface_hub.InferenceClient` and its asyncio twin."""

from __future__ import annotations

import asyncio
from typing import Any

from common import main
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def read(elements: Any) -> dict[str, float]:
    return {element.label: element.score for element in elements}


def answer(task: dict[str, Any]) -> object:
    client, url = InferenceClient(), f"{task['url']}/models/tiny"
    found: dict[str, Any] = {
        "plain": [read(client.text_classification(text, model=url)) for text in task["texts"]],
        "best": [read(client.text_classification(text, model=url, top_k=1)) for text in task["texts"]],
        "sigmoid": [
            read(client.text_classification(text, model=url, function_to_apply="sigmoid")) for text in task["texts"]
        ],
        "asyncio": asyncio.run(with_asyncio(task["texts"], url)),
    }
    try:
        client.text_classification("a", model=f"{task['url']}/models/nobody")
    except HfHubHTTPError as error:
        found["error"] = [error.response.status_code, str(error)]
    return found


async def with_asyncio(texts: list[str], url: str) -> list[dict[str, float]]:
    client = AsyncInferenceClient()
    return [
        read(found) for found in await asyncio.gather(*(client.text_classification(one, model=url) for one in texts))
    ]


main(answer)
