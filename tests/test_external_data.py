"""Which files a model file makes others read: found wherever a tensor may be, and never by guessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from model_store.errors import ClassifierError
from model_store.external_data import MESSAGES, external_locations


def outside(location: str) -> TensorProto:
    """A tensor whose numbers are elsewhere."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def node_with(**attributes: Any) -> onnx.NodeProto:  # noqa: ANN401 - whatever `make_node` takes
    return helper.make_node("Constant", [], ["c"], **attributes)


def graph_with(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return onnx.GraphProto(name="g", node=nodes)


def sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[1])


INSIDE = numpy_helper.from_array(np.zeros(1, np.int64), "inside")
WEIGHT = outside("away")
MODELS = {
    "an initializer": onnx.ModelProto(graph=onnx.GraphProto(initializer=[INSIDE, WEIGHT])),
    "sparse values": onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse(WEIGHT, INSIDE)])),
    "sparse indices": onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse(INSIDE, WEIGHT)])),
    "an attribute": onnx.ModelProto(graph=graph_with(node_with(value=WEIGHT))),
    "a list of an attribute": onnx.ModelProto(graph=graph_with(node_with(value=[INSIDE, WEIGHT]))),
    "a branch": onnx.ModelProto(graph=graph_with(node_with(then_branch=graph_with(node_with(value=WEIGHT))))),
    "one of several graphs": onnx.ModelProto(graph=graph_with(node_with(value=[graph_with(node_with(value=WEIGHT))]))),
    "a sparse attribute": onnx.ModelProto(graph=graph_with(node_with(value=sparse(WEIGHT, INSIDE)))),
    "a function": onnx.ModelProto(functions=[onnx.FunctionProto(node=[node_with(value=WEIGHT)])]),
    "a function's default": onnx.ModelProto(
        functions=[onnx.FunctionProto(attribute_proto=[helper.make_attribute("a", WEIGHT)])]
    ),
    "training": onnx.ModelProto(
        training_info=[onnx.TrainingInfoProto(initialization=onnx.GraphProto(initializer=[WEIGHT]))]
    ),
}


@pytest.mark.parametrize("place", MODELS)
def test_a_tensor_outside_the_file_is_found_wherever_it_is(tmp_path: Path, place: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODELS[place].SerializeToString())
    assert external_locations(path) == {"away"}


def test_a_model_that_holds_its_weights_reads_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.ModelProto(graph=onnx.GraphProto(initializer=[INSIDE])).SerializeToString())
    assert external_locations(path) == set()


def test_a_location_given_twice_counts_twice_whichever_of_them_a_reader_takes(tmp_path: Path) -> None:
    first, second = outside("first"), outside("second")
    path = tmp_path / "model.onnx"
    merged = first.SerializeToString() + second.SerializeToString()
    path.write_bytes(delimited(7, delimited(5, merged)))
    assert external_locations(path) == {"first", "second"}
    entry = delimited(1, b"location") + delimited(2, b"first") + delimited(2, b"second")
    path.write_bytes(delimited(7, delimited(5, delimited(13, entry))))
    assert external_locations(path) == {"first", "second"}


def delimited(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + varint(len(content)) + content


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def test_nesting_without_end_is_walked_without_recursion(tmp_path: Path) -> None:
    content = delimited(5, WEIGHT.SerializeToString())
    for _ in range(5_000):
        content = delimited(1, delimited(5, delimited(6, content)))
    path = tmp_path / "model.onnx"
    path.write_bytes(delimited(7, content))
    assert external_locations(path) == {"away"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x3a",  # a field without its length
        b"\x3a\x05\x00",  # longer than the file
        b"\x3a\x02\x0a\x05",  # an inner field longer than the outer one
        b"\x3b\x3c",  # a group
        b"\x3f",  # no wire type
        b"\x09\x00",  # a fixed number that is cut
        b"\x08" + b"\xff" * 11,  # a number without an end
        b"\xba\x80\x80\x80\x10\x00",  # a tag of which a reader of 32 bits would see field 7
        delimited(7, delimited(5, delimited(13, delimited(1, b"location") + delimited(2, b"\xff")))),
    ],
)
def test_what_is_no_onnx_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ClassifierError, match=r"^model\.onnx is not an ONNX file$"):
        external_locations(path)


@given(st.binary(max_size=200), st.sampled_from(sorted(MODELS)), st.integers(0, 200), st.integers(0, 20))
def test_any_bytes_are_walked_to_an_answer_or_a_refusal(
    tmp_path: Path, noise: bytes, place: str, start: int, removed: int
) -> None:
    whole = MODELS[place].SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[:start] + noise + whole[start + removed :])
    try:
        found = external_locations(path)
    except ClassifierError:
        return
    assert all(isinstance(location, str) for location in found)


@given(st.binary(max_size=60), st.sampled_from(sorted(MODELS)), st.integers(0, 120), st.integers(0, 8))
def test_whatever_protobuf_reads_from_the_bytes_is_found_in_them(
    tmp_path: Path, noise: bytes, place: str, start: int, removed: int
) -> None:
    whole = MODELS[place].SerializeToString()
    content = whole[:start] + noise + whole[start + removed :]
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # noqa: BLE001 - protobuf's error class depends on its implementation
        return
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        found = external_locations(path)
    except ClassifierError:
        return
    read = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert read <= found


def test_the_field_numbers_are_those_of_onnx_and_lead_to_every_tensor() -> None:
    messages: dict[str, Any] = {}
    unseen = [onnx.ModelProto.DESCRIPTOR]
    while unseen:
        message = unseen.pop()
        messages[message.name] = message
        inner = [field.message_type for field in message.fields if field.message_type is not None]
        unseen += [one for one in inner if one.name not in messages]
    leading: dict[str, dict[int, str]] = {"TensorProto": {13: "StringStringEntryProto"}, "StringStringEntryProto": {}}
    for _ in messages:  # each turn finds the messages that are one step further from a tensor
        for name, message in messages.items():
            fields = {
                field.number: field.message_type.name
                for field in message.fields
                if field.message_type is not None
                and field.message_type.name in leading.keys() - {"StringStringEntryProto"}
            }
            if fields and name != "TensorProto":
                leading[name] = fields
    assert leading == MESSAGES
    assert TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == 13
    entry = onnx.StringStringEntryProto.DESCRIPTOR
    assert (entry.fields_by_name["key"].number, entry.fields_by_name["value"].number) == (1, 2)
