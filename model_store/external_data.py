"""Which other files an ONNX file says that it reads: found in its bytes, without the `onnx` package.

A tensor may lie outside the file, at a `location` that a loader opens. Whether it refuses one that leads elsewhere on
the disk depends on the loader and its version, so the store looks first. Only the field numbers below are known here,
from onnx/onnx.proto; everything else, the weights included, is stepped over.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from model_store.errors import ClassifierError

_TENSOR = "TensorProto"
_ENTRY = "StringStringEntryProto"
# message → field → the message in it: every way from a model to its tensors. A test compares it with onnx's own.
MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: _TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: _TENSOR,
        6: "GraphProto",
        10: _TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
    _ENTRY: {},
}
_VALUE_FIELD = 2
_KEY_FIELD = 1
# Bytes of a varint that a 64-bit number can have.
_LONGEST_VARINT = 10
# Wire types, and the bytes of those that have a fixed size.
_VARINT, _DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}


def external_locations(path: Path) -> set[str]:
    """The `location` of every tensor of an ONNX file that lies outside it.

    Raises:
        ClassifierError: not an ONNX file.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise _malformed(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _locations(data)
            except (IndexError, ValueError) as error:
                raise _malformed(path) from error


def _malformed(path: Path) -> ClassifierError:
    return ClassifierError(f"{path.name} is not an ONNX file")


def _locations(data: mmap.mmap) -> set[str]:
    """Walk the messages with a stack of our own: a file may nest them as deeply as it likes."""
    found: set[str] = set()
    ranges = [("ModelProto", 0, len(data))]
    while ranges:
        message, position, end = ranges.pop()
        inner = MESSAGES[message]
        keys: list[bytes] = []
        values: list[bytes] = []
        while position < end:
            tag, position = _varint(data, position)
            if tag >= 1 << 32:  # readers keep 32 bits of it, and would see another field
                raise ValueError("a tag that is too large")
            number, kind = tag >> 3, tag & 7
            if kind == _DELIMITED:
                size, start = _varint(data, position)
                position = start + size
                if number in inner:
                    ranges.append((inner[number], start, position))
                elif message == _ENTRY and number in {_KEY_FIELD, _VALUE_FIELD}:
                    (keys if number == _KEY_FIELD else values).append(data[start:position])
            elif kind == _VARINT:
                _, position = _varint(data, position)
            else:
                position += _fixed_size(kind)
            if position > end:
                raise ValueError("a field goes beyond its message")
        # Of a key or value given twice readers take one: all are looked at.
        if b"location" in keys:
            found.update(value.decode() for value in values)
    return found


def _fixed_size(kind: int) -> int:
    """Bytes of a field; groups, which ONNX has none of, are refused with what is no field."""
    if kind not in _FIXED:
        raise ValueError(f"wire type {kind}")
    return _FIXED[kind]


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("a number without an end")
