"""`POST /v1/classify`: the native dialect, in the shape that vLLM serves.

This is the hot path. It is plain ASGI: pydantic-core parses and validates the bytes in one step, the answer is one
dictionary that orjson writes, and the OpenAPI description is made from the models below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.types import Receive, Scope, Send

from model_store.encoding import TextItem
from model_store.errors import SuccessorError
from model_store.manifest import ScoreContract
from service.api.common import (
    NOWHERE,
    Connection,
    ErrorAnswer,
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

ANSWER_HEADERS = {
    "x-request-id": "the id that the request carried, or a new one",
    "x-model-version": "the version that answered",
    "x-arm": "the alias that the request named, or `default`",
    "x-queue-time": "milliseconds in the queue; of several texts the longest",
    "x-tokenization-time": "milliseconds of tokenisation of all texts",
    "x-inference-time": "milliseconds of the batch in the engine; of several texts the longest",
    "x-total-time": "milliseconds from the request to its answer",
}
FAILURES = {
    400: "the body, a header or a text is not as it must be",
    404: "no loaded version answers to that model",
    413: "too many bytes, texts or characters",
    429: "the queue is full, or so long that the deadline would be missed",
    500: "the model failed on this request",
    503: "the server is going down, or lost the worker that ran the request",
    504: "the deadline passed before the request was computed",
}


class ClassifyRequest(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={
            "examples": [
                {"model": "sentiment", "input": "a warm, funny and moving film"},
                {"model": "sentiment@production", "input": ["dull", "great fun"], "top_k": 1},
                {"model": "entailment@2", "input": [["A man sleeps.", "A man is awake."]], "truncate": False},
            ]
        },
    )

    model: str | None = Field(
        None, description="`name`, `name@version` or `name@alias`; needed without a default model"
    )
    input: Annotated[str | list[str] | list[tuple[str, str]], Field(union_mode="left_to_right")] = Field(
        description="a text, a list of texts, or a list of [text, pair] for a model that reads pairs"
    )
    truncate: bool = Field(default=True, description="cut texts that are too long for the model, and say so")
    top_k: int | None = Field(None, ge=1, description="also give this many labels with the best scores, best first")
    raw_scores: bool = Field(default=False, description="logits instead of probabilities")


class LabelScore(BaseModel):
    """One label and its score."""

    label: str
    score: float


class Classification(BaseModel):
    """The answer for one text."""

    index: int = Field(description="position in the request's input")
    label: str | None = Field(description="the label with the best score; null for a regression")
    probs: list[float] = Field(description="one score for each label, in the model's order")
    num_classes: int
    truncated: bool = Field(description="the text was cut to what the model reads")
    top: list[LabelScore] | None = Field(None, description="present with top_k")
    labels: list[str] | None = Field(None, description="multi-label models: the labels above the threshold")
    score: float | None = Field(None, description="regressions: the predicted number")


class Usage(BaseModel):
    """What was computed."""

    prompt_tokens: int
    total_tokens: int


class ClassifyAnswer(BaseModel):
    """The answers for all texts, in their order."""

    id: str
    object: str = Field("list", examples=["list"])
    created: int = Field(description="seconds since 1970")
    model: str = Field(description="the version that answered", examples=["sentiment@3"])
    data: list[Classification]
    usage: Usage


_validate: Callable[[bytes], ClassifyRequest] = ClassifyRequest.__pydantic_validator__.validate_json


async def classify(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request; every expected error is answered in the native shape."""
    service: Service = scope["state"]["service"]
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
        connection: Connection = scope["state"].get("connection", NOWHERE)
        connection.jobs.add(job)
        try:
            answers = await job.future
        finally:
            connection.jobs.discard(job)
    except SuccessorError as error:
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


def openapi() -> tuple[dict[str, Any], dict[str, Any]]:
    """The OpenAPI paths of this dialect, and the schemas that they refer to."""
    models: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        (ClassifyRequest, "validation"),
        (ClassifyAnswer, "serialization"),
        (ErrorAnswer, "serialization"),
    ]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")

    def content(model: type[BaseModel]) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}

    def milliseconds(name: str, text: str) -> dict[str, Any]:
        schema = {"type": "integer", "minimum": 1}
        return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}

    answered = {name: {"description": text, "schema": {"type": "string"}} for name, text in ANSWER_HEADERS.items()}
    operation: dict[str, Any] = {
        "tags": ["classify"],
        "summary": "Classify texts",
        "operationId": "classify",
        "parameters": [
            milliseconds("request-timeout-ms", "drop the request if it was not computed after this time"),
            milliseconds("request-deadline-ms", "drop the request if it was not computed by then, in ms since 1970"),
        ],
        "requestBody": {"required": True, "content": content(ClassifyRequest)},
        "responses": {
            "200": {"description": "One answer for each text", "content": content(ClassifyAnswer), "headers": answered},
            **{
                str(status): {"description": text, "content": content(ErrorAnswer)} for status, text in FAILURES.items()
            },
        },
    }
    operation["responses"]["429"]["headers"] = {
        "retry-after": {"description": "seconds until the queue has room", "schema": {"type": "integer"}},
        "retry-after-ms": {"description": "the same in milliseconds", "schema": {"type": "integer"}},
    }
    return {"/v1/classify": {"post": operation}}, definitions["$defs"]
