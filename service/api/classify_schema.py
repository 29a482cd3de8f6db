"""The native dialect's request and answer, and their description in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.parsing import Elements

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


class ClassifyRequest(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(
        extra="allow",  # `parse_body` refuses them
        strict=True,
        frozen=True,
        json_schema_extra={
            "additionalProperties": False,
            "examples": [
                {"model": "sentiment", "input": "a warm, funny and moving film"},
                {"model": "sentiment@production", "input": ["dull", "great fun"], "top_k": 1},
                {"model": "entailment@2", "input": [["A man sleeps.", "A man is awake."]], "truncate": False},
            ],
        },
    )

    model: str | None = Field(
        None, description="`name`, `name@version` or `name@alias`; needed without a default model"
    )
    input: Annotated[str | Elements[str] | Elements[tuple[str, str]], Field(union_mode="left_to_right")] = Field(
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
