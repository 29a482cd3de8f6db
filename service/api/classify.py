"""`POST /v1/classify`: the native dialect, in the shape that vLLM serves.

This is the hot path: pydantic-core parses and validates the bytes in one step, the answer is one
dictionary that orjson writes.
"""

from __future__ import annotations

import math
import time
from typing import Any

import orjson

from model_store.encoding import TextItem
from model_store.manifest import ScoreContract
from service.api.classify_schema import ClassifyRequest
from service.api.common import NATIVE, Reply
from service.api.endpoint import Answered, Call, Endpoint, check_count, timing_headers
from service.api.parsing import parse_body
from service.api.scores import ranked
from service.batcher import Answer

HINTS = {"input": "input must be a text, a list of texts, or a list of [text, pair]"}


async def classify(call: Call) -> Reply:
    """Answer one request."""
    service, settings = call.service, call.service.settings
    request = parse_body(ClassifyRequest, await call.body(), HINTS)
    route = service.registry.route(request.model)
    given = request.input if isinstance(request.input, list) else [request.input]
    check_count(len(given), settings, "input")
    texts = [TextItem(text) if isinstance(text, str) else TextItem(*text) for text in given]
    answered = await call.ask(
        route,
        texts,
        truncate=request.truncate,
        side=request.truncation_side,
        raw_scores=request.raw_scores,
        field_name="input",
    )
    return Reply(200, render(request, answered, call.request_id), timing_headers(answered))


def render(request: ClassifyRequest, answered: Answered, request_id: str) -> bytes:
    """The answer's body."""
    answers, model = answered.answers, answered.route.model
    contract = model.manifest.scores
    tokens = sum(answer.tokens for answer in answers)
    data = [_classification(index, answer, contract, request) for index, answer in enumerate(answers)]
    return orjson.dumps(
        {
            "id": f"classify-{request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": model.reference,
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _classification(index: int, answer: Answer, contract: ScoreContract, request: ClassifyRequest) -> dict[str, Any]:
    scores, labels = answer.scores, contract.labels
    best = scores.index(max(scores))
    entry: dict[str, Any] = {
        "index": index,
        "label": labels[best],
        "probs": scores,
        "num_classes": len(labels),
        "truncated": answer.truncated,
    }
    if contract.problem == "regression":
        entry |= {"label": None, "score": scores[0]}
    if contract.problem == "multi_label":
        threshold = _threshold(contract, raw=request.raw_scores)
        entry["labels"] = [label for label, score in zip(labels, scores, strict=True) if score > threshold]
    if request.top_k is not None:
        entry["top"] = ranked(scores, labels, request.top_k)
    return entry


def _threshold(contract: ScoreContract, *, raw: bool) -> float:
    """The contract's threshold on what is given: on logits, the one that gives the same labels."""
    share = contract.threshold
    if not raw or contract.function == "identity":
        return share
    if share <= 0 or share >= 1:
        return -math.inf if share <= 0 else math.inf
    return math.log(share / (1 - share))


ENDPOINTS = (Endpoint(NATIVE, "POST", "/v1/classify", classify, "infer", work=True),)
