"""The tensors of the Open Inference Protocol: the bytes of BYTES, outputs, and bodies that were tampered with.

`pytest --hypothesis-profile fuzz tests/test_tensors.py` tries 60,000 bodies.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.encoding import TextItem
from model_store.errors import SuccessorError
from model_store.manifest import ScoreContract
from service.api.open_inference import decode
from service.api.open_inference_schema import InferParameters
from service.api.tensors import Output, Tensor, Wanted, check_wanted, described, texts_of, unpack_strings
from service.errors import InvalidRequestError, NotSupportedError, TooManyTextsError, outcome_of
from service.settings import Settings

BODIES_IN_AN_EXAMPLE = 20


def packed(texts: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def binary_request(
    texts: list[str], *, pair: bool = False, parameters: dict[str, Any] | None = None
) -> tuple[bytes, bytes]:
    """A valid request's body, and its header Inference-Header-Content-Length."""
    raw = packed(texts)
    names = ("text", "text_pair") if pair else ("text",)
    inputs = [
        {
            "name": name,
            "shape": [len(texts)],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(raw)},
        }
        for name in names
    ]
    head = json.dumps({"id": "1", "inputs": inputs, "parameters": parameters or {}}).encode()
    return head + raw * len(names), b"%d" % len(head)


TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=6)


@given(TEXTS)
def test_bytes_come_back_as_they_were_packed(texts: list[str]) -> None:
    output = Output("label", "BYTES", [len(texts)], texts)
    assert unpack_strings(memoryview(output.packed()), len(texts), "text") == texts


@given(TEXTS.filter(bool), st.booleans())
def test_a_binary_request_says_what_was_packed(texts: list[str], pair: bool) -> None:
    request_id, request = decode(*binary_request(texts, pair=pair), reference="m")
    assert request_id == "1"
    assert texts_of(request.inputs, Settings(), pair=pair) == [TextItem(text, text if pair else None) for text in texts]


@pytest.mark.parametrize(
    ("raw", "count", "message"),
    [
        (b"\1", 1, "end within element 0"),
        (b"\5\0\0\0abc", 1, "end within element 0"),
        (b"\xff\xff\xff\xff", 1, "end within element 0"),
        (b"\1\0\0\0a\1\0\0", 2, "end within element 1"),
        (packed(["a"]), 2, "hold 1 elements and its shape says 2"),
        (packed(["a", "b"]), 1, "hold more than 1 elements and its shape says 1"),
        (packed(["a"]), 0, "hold more than 0 elements"),
        (b"", 1, "hold 0 elements"),
        (b"", 10**30, "hold 0 elements"),
        (b"\1\0\0\0\xff", 1, "not UTF-8"),
    ],
)
def test_bytes_that_are_not_what_they_say_are_refused(raw: bytes, count: int, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        unpack_strings(memoryview(raw), count, "text")


ONE = {"name": "text", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("given_inputs", "message"),
    [
        ([], "the request has none"),
        ([Tensor("input", "BYTES", [1], ["a"])], "the request has input"),
        ([Tensor("text", "BYTES", [1], ["a"])] * 2, "the request has text, text"),
        ([Tensor("text", "BYTES", [1], ["a"]), Tensor("text_pair", "BYTES", [1], ["a"])], "has text, text_pair"),
        ([Tensor("text", "INT64", [1], [1])], "must have the datatype BYTES"),
        ([Tensor("text", "BYTES", [], ["a"])], "must have the shape"),
        ([Tensor("text", "BYTES", [1, 2], ["a", "b"])], "must have the shape"),
        ([Tensor("text", "BYTES", [-1], ["a"])], "must have the shape"),
        ([Tensor("text", "BYTES", [1])], "needs its elements once"),
        ([Tensor("text", "BYTES", [1], ["a"], memoryview(packed(["a"])))], "needs its elements once"),
        ([Tensor("text", "BYTES", [2], ["a"])], "has 1 elements and its shape says 2"),
        ([Tensor("text", "BYTES", [1], [1])], "must be a list of strings"),
        ([Tensor("text", "BYTES", [1], [["a", "b"]])], "must be a list of strings"),
        ([Tensor("text", "BYTES", [1], [b"\xff"])], "not UTF-8"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused(given_inputs: list[Tensor], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        texts_of(given_inputs, Settings(), pair=False)


def test_pairs_need_as_many_of_both() -> None:
    with pytest.raises(InvalidRequestError, match="as many elements"):
        texts_of(
            [Tensor("text", "BYTES", [1], ["a"]), Tensor("text_pair", "BYTES", [2], ["a", "b"])], Settings(), pair=True
        )


def test_a_row_of_one_is_a_text() -> None:
    assert texts_of([Tensor("text", "BYTES", [2, 1], [["a"], ["b"]])], Settings(), pair=False) == [
        TextItem("a"),
        TextItem("b"),
    ]


@pytest.mark.parametrize("header", [b"", b"-1", b"x", b"1" * 19, b"999"])
def test_a_length_of_the_json_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="Inference-Header-Content-Length"):
        decode(b"{}", header, "m")


@pytest.mark.parametrize("off", [-1, 1])
def test_bytes_that_no_input_claims_or_that_are_missing_are_refused(off: int) -> None:
    body, header = binary_request(["a", "b"])
    with pytest.raises(InvalidRequestError, match="bytes follow the JSON"):
        decode(body[:off] if off < 0 else body + b"x", header, "m")


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [ONE | {"parameters": {"shared_memory_region": "r"}}]},
        {"inputs": [], "outputs": [{"name": "scores", "parameters": {"shared_memory_region": "r"}}]},
    ],
)
def test_shared_memory_is_not_supported(document: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedError, match="shared_memory_region"):
        decode(json.dumps(document).encode(), None, "m")


CONTRACT = ScoreContract(problem="single_label", labels=("no", "yes"), function="softmax")
REGRESSION = ScoreContract(problem="regression", labels=("score",), function="identity")


def test_a_regression_has_no_label() -> None:
    assert [output["name"] for output in described(REGRESSION)] == ["scores", "truncated"]
    assert [output["name"] for output in described(CONTRACT)] == ["scores", "label", "truncated"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([Wanted("logits")], "no output 'logits'"),
        ([Wanted("scores"), Wanted("scores")], "asked for twice"),
        ([Wanted("label", classification=1)], "the output scores"),
        ([Wanted("scores", classification=-1)], "positive number"),
    ],
)
def test_outputs_that_a_model_does_not_have_are_refused(wanted: list[Wanted], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        check_wanted(wanted, CONTRACT)


def test_outputs_have_the_bytes_of_their_type() -> None:
    assert Output("scores", "FP32", [1, 2], [0.25, 0.75]).packed() == np.array([0.25, 0.75], "<f4").tobytes()
    assert Output("truncated", "BOOL", [2], [True, False]).packed() == b"\1\0"
    assert Output("label", "BYTES", [1], ["é"]).packed() == b"\2\0\0\0\xc3\xa9"


@st.composite
def tampered(draw: st.DrawFn) -> tuple[bytes, bytes | None]:
    """A request like a client's, with some of its bytes, or its length, changed."""
    options: list[dict[str, Any]] = [{}, {"timeout": 1000}, {"binary_data_output": True}, {"sequence_id": 1}]
    parameters = draw(st.sampled_from(options))
    body, header = binary_request(draw(TEXTS), pair=draw(st.booleans()), parameters=parameters)
    changed = bytearray(body)
    json_ends = int(header)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["byte", "cut", "insert", "length", "repeat", "header"]))
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        if kind == "byte" and changed:
            changed[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            changed[at:at] = draw(st.binary(max_size=12))
        elif kind == "repeat":
            changed[at:at] = changed[at : at + 30]
        elif kind == "length":
            tail = min(json_ends, len(changed))
            changed[tail : tail + 4] = struct.pack("<I", draw(st.integers(0, 2**32 - 1)))
        else:
            header = draw(
                st.one_of(st.integers(-2, len(changed) + 3).map(lambda size: b"%d" % size), st.binary(max_size=4))
            )
    return bytes(changed), draw(st.sampled_from([header, header, header, None]))


@given(st.lists(tampered(), min_size=BODIES_IN_AN_EXAMPLE, max_size=BODIES_IN_AN_EXAMPLE))
def test_a_body_that_was_tampered_with_is_read_or_refused_by_a_4xx(bodies: list[tuple[bytes, bytes | None]]) -> None:
    for body, header in bodies:
        for pair in (False, True):
            refusal = refusal_of(body, header, pair=pair)
            if refusal is not None:
                status = outcome_of(refusal).status
                assert 400 <= status < 500 or isinstance(refusal, NotSupportedError)
                assert "\n" not in str(refusal)


def refusal_of(body: bytes, header: bytes | None, *, pair: bool) -> SuccessorError | None:
    """Why a body is refused, if it is; nothing but a `SuccessorError` may be raised."""
    try:
        _, request = decode(body, header, "m")
        texts = texts_of(request.inputs, Settings(), pair=pair)
        check_wanted(request.wanted, CONTRACT)
    except SuccessorError as error:
        return error
    assert isinstance(request.parameters, InferParameters)
    assert sum(len(item.text) for item in texts) <= len(body)
    return None


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("text", "BYTES", [65], [object()] * 65),
        Tensor("text", "BYTES", [65], None, memoryview(b"")),
    ],
)
def test_too_many_elements_are_refused_before_anything_is_made_of_them(tensor: Tensor) -> None:
    with pytest.raises(TooManyTextsError, match="inputs has 65 texts and one request may have 64"):
        texts_of([tensor], Settings(max_texts_per_request=64), pair=False)
