"""`POST /v1/classify`: the native dialect, in the shape that vLLM serves.

This is the hot path: pydantic-core parses and validates the bytes in one step, the answer is one
dictionary that orjson writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import ValidationError

from model_store.encoding import TextItem
from model_store.manifest import ScoreContract
from service.api.classify_schema import ClassifyRequest
from service.api.common import NATIVE, Reply
from service.api.endpoint import Answered, Call, Endpoint, ask, check_texts, timing_headers
from service.batcher import Answer
from service.errors import InvalidRequestError

_validate: Callable[[bytes], ClassifyRequest] = ClassifyRequest.__pydantic_validator__.validate_json


async def classify(call: Call) -> Reply:
    """Answer one request."""
    service, settings = call.service, call.service.settings
    request = parse(await call.admitted_body())
    route = service.registry.route(request.model)
    given = request.input if isinstance(request.input, list) else [request.input]
    texts = [TextItem(text) if isinstance(text, str) else TextItem(*text) for text in given]
    check_texts(texts, settings, "input")
    answered = await ask(
        service,
        route,
        texts,
        started=call.started,
        deadline=call.deadline(),
        connection=call.connection,
        truncate=request.truncate,
        side=request.truncation_side,
        raw_scores=request.raw_scores,
    )
    return Reply(200, render(request, answered, call.request_id), timing_headers(answered))


def parse(body: bytes) -> ClassifyRequest:
    """Validate a body.

    Raises:
        InvalidRequestError: not JSON, or not what `ClassifyRequest` says; one sentence names the field.
    """
    try:
        return _validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        raise InvalidRequestError("the body is not valid JSON: " + first["msg"].removeprefix("Invalid JSON: "))
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        raise InvalidRequestError(
            f"unknown key {str(name)[:80]!r}: use {', '.join(ClassifyRequest.model_fields)}", param=name
        )
    if first["type"] == "missing":
        raise InvalidRequestError(f"the key {name!r} is missing", param=name)
    if name == "input":
        raise InvalidRequestError("input must be a text, a list of texts, or a list of [text, pair]", param=name)
    if name is None:
        raise InvalidRequestError("the body must be a JSON object with the key 'input'")
    raise InvalidRequestError(f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}", param=name)


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
        order = sorted(range(len(labels)), key=lambda column: -scores[column])[: request.top_k]
        entry["top"] = [{"label": labels[column], "score": scores[column]} for column in order]
    return entry


def _threshold(contract: ScoreContract, *, raw: bool) -> float:
    """The contract's threshold on what is given: on logits, the one that gives the same labels."""
    share = contract.threshold
    if not raw or contract.function == "identity":
        return share
    if share <= 0 or share >= 1:
        return -math.inf if share <= 0 else math.inf
    return math.log(share / (1 - share))


ENDPOINTS = (Endpoint(NATIVE, "POST", "/v1/classify", classify, "infer"),)
