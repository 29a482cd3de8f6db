"""The native dialect's request and answer, and their description in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from service.api.common import ErrorAnswer

ANSWER_HEADERS = {
    "x-request-id": "the id that the request carried, or a new one",
    "x-model-version": "the version that answered",
    "x-arm": "the alias that the request named, or `default`",
    "x-truncated-texts": "how many of the texts were cut to what the model reads",
    "x-queue-time": "milliseconds in the queue; of several texts the longest",
    "x-tokenization-time": "milliseconds of tokenisation of all texts",
    "x-inference-time": "milliseconds of the batch in the engine; of several texts the longest",
    "x-total-time": "milliseconds from the request to its answer",
}
FAILURES = {
    400: "the body, a header or a text is not as it must be",
    404: "no loaded version answers to that model",
    408: "the header and body did not arrive in time",
    413: "too many bytes, texts or characters",
    415: "the body is compressed",
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
    truncation_side: Literal["right", "left"] | None = Field(
        None, description="where to cut; by default as the model was built for"
    )
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
