"""`POST /v1/classify`: the native dialect, in the shape that vLLM serves.

This is the hot path. It is plain ASGI: pydantic-core parses and validates the bytes in one step, the answer is one
dictionary that orjson writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from model_store.encoding import TextItem
from model_store.errors import SuccessorError
from model_store.manifest import ScoreContract
from service.api.classify_schema import ClassifyRequest
from service.api.common import (
    NOWHERE,
    Connection,
    Headers,
    Service,
    deadline_of,
    explain,
    read_body,
    send_json,
)
from service.batcher import Answer
from service.errors import (
    ClientGoneError,
    InvalidRequestError,
    TextTooLargeError,
    TooManyTextsError,
    outcome_of,
)
from service.registry import Route

_validate: Callable[[bytes], ClassifyRequest] = ClassifyRequest.__pydantic_validator__.validate_json


async def classify(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request; every expected error is answered in the native shape."""
    service: Service = scope["state"]["service"]
    connection: Connection = scope["state"].get("connection", NOWHERE)
    try:
        started = service.engine.clock()
        service.engine.check_admission()
        headers = dict(scope["headers"])
        body = await read_body(receive, headers, service.settings.max_body_bytes)
        request = parse(body)
        route = service.registry.route(request.model)
        texts = texts_of(request, service.settings.max_texts_per_request, service.settings.max_text_chars)
        deadline = deadline_of(headers, started, service.settings.request_timeout_ms / 1e3)
        job = service.engine.submit(
            route.model, texts, truncate=request.truncate, raw_scores=request.raw_scores, deadline=deadline
        )
        connection.jobs.add(job)
        try:
            answers = await job.future
        finally:
            connection.jobs.discard(job)
    except SuccessorError as error:
        # A client that was too slow is gone because the server has answered, and counted, that.
        if not connection.timed_out:
            service.metrics.refusals.labels(outcome_of(error).code).inc()
        if not isinstance(error, ClientGoneError):
            await send_json(send, *explain(error))
        return
    total_s = service.engine.clock() - started
    route.model.instruments.total.observe(total_s)
    answer = render(request, route, answers, scope["state"]["request_id"].decode())
    await send_json(send, 200, answer, timing_headers(route, answers, total_s))


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


def texts_of(request: ClassifyRequest, max_texts: int, max_chars: int) -> list[TextItem]:
    """The request's texts, within the server's limits.

    Raises:
        InvalidRequestError: there is none.
        TooManyTextsError: more than `max_texts`.
        TextTooLargeError: one has more than `max_chars` characters.
    """
    given = request.input if isinstance(request.input, list) else [request.input]
    if not given:
        raise InvalidRequestError("input needs at least one text", param="input")
    if len(given) > max_texts:
        raise TooManyTextsError(f"input has {len(given)} texts and one request may have {max_texts}", param="input")
    items = [TextItem(text) if isinstance(text, str) else TextItem(*text) for text in given]
    for index, item in enumerate(items):
        if max(len(item.text), len(item.text_pair or "")) > max_chars:
            raise TextTooLargeError(f"a text may have {max_chars} characters: shorten it", param=f"input[{index}]")
    return items


def render(request: ClassifyRequest, route: Route, answers: list[Answer], request_id: str) -> bytes:
    """The answer's body."""
    contract = route.model.manifest.scores
    tokens = sum(answer.tokens for answer in answers)
    data = [_classification(index, answer, contract, request) for index, answer in enumerate(answers)]
    return orjson.dumps(
        {
            "id": f"classify-{request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": route.model.reference,
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


def timing_headers(route: Route, answers: list[Answer], total_s: float) -> Headers:
    """Who answered, and the milliseconds it took; of several texts the longest wait and run, and all tokenisation."""
    return [
        (b"x-model-version", route.model.reference.encode()),
        (b"x-arm", route.arm.encode()),
        (b"x-queue-time", b"%.3f" % (1e3 * max(answer.queue_s for answer in answers))),
        (b"x-tokenization-time", b"%.3f" % (1e3 * sum(answer.tokenisation_s for answer in answers))),
        (b"x-inference-time", b"%.3f" % (1e3 * max(answer.inference_s for answer in answers))),
        (b"x-total-time", b"%.3f" % (1e3 * total_s)),
    ]
