"""Bodies that are wrong a hundred thousand times over: what is made of them stays small."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.api.classify_schema import ClassifyRequest
from service.api.hugging_face import PipelineRequest
from service.api.open_inference_schema import InferRequest
from service.api.parsing import parse_body
from service.api.text_embeddings_inference import PredictRequest
from service.errors import InvalidRequestError

MANY = 100_000
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
THREE = ["a", "b", "c"]
WRONG: list[Any] = [1, [1], {}, None, THREE]


@pytest.mark.parametrize(
    ("model", "key", "wrong"),
    [
        (model, key, wrong)
        for model, key in (
            (ClassifyRequest, "input"),
            (PipelineRequest, "inputs"),
            (PredictRequest, "inputs"),
            (InferRequest, "inputs"),
        )
        for wrong in WRONG
        if model is not PredictRequest or wrong != THREE  # there their number is for `texts_of` to refuse
    ],
)
def test_a_list_of_wrong_elements_is_one_error_in_each_of_its_forms(
    model: type[BaseModel], key: str, wrong: object
) -> None:
    body = json.dumps({key: [wrong] * MANY}).encode()
    with pytest.raises(ValidationError) as refusal:
        model.model_validate_json(body)
    assert refusal.value.error_count() <= 6
    with pytest.raises(InvalidRequestError):
        parse_body(model, body, {})


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (PredictRequest, {"inputs": [[1] * MANY]}),
        (InferRequest, {"inputs": [TENSOR | {"shape": ["a"] * MANY}]}),
        (InferRequest, {"inputs": [TENSOR], "outputs": [{}] * MANY}),
    ],
)
def test_so_is_a_list_within(model: type[BaseModel], document: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate_json(json.dumps(document))
    assert refusal.value.error_count() <= 6


DEEP = "[" * 150 + "]" * 150


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (ClassifyRequest, '{"input": [[%s]]}'),
        (PipelineRequest, '{"inputs": [[%s]]}'),
        (PredictRequest, '{"inputs": [[%s]]}'),
        (InferRequest, '{"inputs": [{"data": [%s]}]}'),
    ],
)
def test_a_body_of_many_lists_is_refused_before_it_is_parsed(model: type[BaseModel], document: str) -> None:
    many, fewer = (document % ",".join([DEEP] * count) for count in (450, 400))
    with pytest.raises(InvalidRequestError, match="has more than 65536 lists and objects: send fewer texts"):
        parse_body(model, many.encode(), {})
    with pytest.raises(InvalidRequestError, match=r"should|must|missing"):
        parse_body(model, fewer.encode(), {})


def test_texts_may_be_full_of_brackets() -> None:
    texts = ["[" * 70_000, 'a "quoted" {' + "{" * 70_000, "\\"]
    assert parse_body(ClassifyRequest, json.dumps({"input": texts}).encode(), {}).input == texts


@pytest.mark.parametrize("end", [b"", b"\\", b'"'])
def test_what_never_ends_is_looked_at_once(end: bytes) -> None:
    body = b"[" * 70_000 + b'"' + b'\\"' * 2_000_000 + end
    with pytest.raises(InvalidRequestError, match="lists and objects"):
        parse_body(ClassifyRequest, body, {})


def test_unknown_keys_are_refused_by_the_first_and_described_by_no_error() -> None:
    unknown = {f"key{index}": 1 for index in range(MANY)}
    body = json.dumps({"input": "a", **unknown}).encode()
    ClassifyRequest.model_validate_json(body)
    with pytest.raises(InvalidRequestError, match="unknown key 'key0': use model, input, truncate") as refusal:
        parse_body(ClassifyRequest, body, {})
    assert refusal.value.param == "key0"
