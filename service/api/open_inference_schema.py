"""Requests of the Open Inference Protocol over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from model_store.manifest import Side
from service.api.parsing import Elements

Count = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""What fits into the protocol's own INT64."""


class _Lenient(BaseModel):
    """Base of what clients send: strict about types, indifferent to keys that mean nothing here."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class InputParameters(_Lenient):
    """How an input comes."""

    binary_data_size: Count | None = Field(None, ge=0, description="its bytes follow the JSON, so many of them")
    shared_memory_region: str | None = Field(None, description="not supported")


class InferInput(_Lenient):
    """One input tensor: `text`, and for a model of pairs `text_pair`."""

    name: str
    shape: Elements[Count] = Field(description="`[texts]` or `[texts, 1]`")
    datatype: str = Field(description="`BYTES`")
    parameters: InputParameters | None = None
    data: list[Any] | None = Field(None, description="the texts, unless they follow the JSON")


class OutputParameters(_Lenient):
    """How an output is wanted."""

    binary_data: bool | None = Field(None, description="as bytes after the JSON; else as `binary_data_output` says")
    classification: Count = Field(
        0, ge=0, description="the so many best labels, each as `score:index:label`; of scores"
    )
    shared_memory_region: str | None = Field(None, description="not supported")


class InferOutput(_Lenient):
    """One output that is asked for: `scores`, `label` or `truncated`."""

    name: str
    parameters: OutputParameters | None = None


class InferParameters(_Lenient):
    """What else a request may say."""

    timeout: Count | None = Field(
        None, ge=0, description="microseconds until the answer must have been computed; 0: off"
    )
    binary_data_output: bool = Field(default=False, description="outputs follow the JSON as bytes")
    truncate: bool = Field(default=True, description="cut texts that are too long for the model, and say so")
    truncation_side: Side | None = Field(None, description="where to cut; by default as the model was built for")
    raw_scores: bool = Field(default=False, description="logits instead of probabilities")
    sequence_id: int | str = Field(0, description="not supported")


class InferRequest(_Lenient):
    """Texts to classify, as tensors."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "1",
                    "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["dull", "great fun"]}],
                },
                {
                    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a warm film"]}],
                    "outputs": [{"name": "scores", "parameters": {"classification": 2}}],
                    "parameters": {"timeout": 500000, "truncate": False},
                },
            ]
        },
    )

    inputs: Elements[InferInput]
    id: str | None = None
    parameters: InferParameters | None = None
    outputs: Elements[InferOutput] | None = None
