"""Tensors of the Open Inference Protocol, whatever carries them: texts out of inputs, outputs out of answers.

The bytes of a BYTES tensor are, for each element, its length as 32 bits, little endian, and then the element.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from model_store.encoding import TextItem
from model_store.manifest import ScoreContract
from service.api.endpoint import Answered, check_count
from service.api.scores import best_first
from service.batcher import Answer
from service.errors import InvalidRequestError, NotSupportedError
from service.settings import Settings

TEXT, TEXT_PAIR = "text", "text_pair"
SCORES, LABEL, TRUNCATED = "scores", "label", "truncated"
_LENGTH = struct.Struct("<I")


class Tensor(NamedTuple):
    """An input as it came: its elements in a list, which may be nested, or their bytes."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: list[Any] | None = None
    raw: memoryview | None = None


def texts_of(inputs: Sequence[Tensor], settings: Settings, *, pair: bool) -> list[TextItem]:
    """The texts of a request, from its input `text` and, for a model of pairs, `text_pair`.

    Raises:
        InvalidRequestError: other inputs than those, or one that is not what it says.
        NoTextsError: one has no elements.
        TooManyTextsError: one has more elements than a request may have texts.
    """
    wanted = (TEXT, TEXT_PAIR) if pair else (TEXT,)
    given = [tensor.name for tensor in inputs]
    if sorted(given) != sorted(wanted):
        raise InvalidRequestError(
            f"this model reads the inputs {', '.join(wanted)}, each once: the request has"
            f" {', '.join(given)[:200] or 'none'}",
            param="inputs",
        )
    columns = {tensor.name: _strings(tensor, settings) for tensor in inputs}
    if not pair:
        return [TextItem(text) for text in columns[TEXT]]
    if len(columns[TEXT]) != len(columns[TEXT_PAIR]):
        raise InvalidRequestError("text and text_pair must have as many elements", param="inputs")
    return [TextItem(*both) for both in zip(columns[TEXT], columns[TEXT_PAIR], strict=True)]


def _strings(tensor: Tensor, settings: Settings) -> list[str]:
    name = f"inputs.{tensor.name}"
    if tensor.datatype != "BYTES":
        raise InvalidRequestError(f"input {tensor.name} must have the datatype BYTES", param=f"{name}.datatype")
    # One dimension, or a second one of size 1 where a client thinks in batches of rows.
    if not (len(tensor.shape) == 1 or (len(tensor.shape) == 2 and tensor.shape[1] == 1)) or tensor.shape[0] < 0:
        raise InvalidRequestError(
            f"input {tensor.name} must have the shape [texts] or [texts, 1]", param=f"{name}.shape"
        )
    if (tensor.data is None) == (tensor.raw is None):
        raise InvalidRequestError(f"input {tensor.name} needs its elements once, as data or as bytes", param=name)
    count = tensor.shape[0]
    if tensor.raw is None and len(tensor.data or ()) != count:
        raise InvalidRequestError(
            f"input {tensor.name} has {len(tensor.data or ())} elements and its shape says {count}",
            param=f"{name}.data",
        )
    check_count(count, settings, "inputs")
    return _flat(tensor.data or [], name) if tensor.raw is None else unpack_strings(tensor.raw, count, name)


def _flat(data: list[Any], name: str) -> list[str]:
    strings: list[str] = []
    for element in data:
        if isinstance(element, list) and len(element) == 1:
            element = element[0]  # noqa: PLW2901 - a row of one
        if isinstance(element, bytes):
            element = _text(element, name)  # noqa: PLW2901 - as gRPC carries it
        if not isinstance(element, str):
            raise InvalidRequestError("data must be a list of strings", param=f"{name}.data")
        strings.append(element)
    return strings


def unpack_strings(raw: memoryview, count: int, name: str) -> list[str]:
    """The `count` elements of a BYTES tensor.

    Raises:
        InvalidRequestError: the bytes are not that many elements, or one is not UTF-8.
    """
    strings: list[str] = []
    position, end = 0, len(raw)
    while position < end and len(strings) < count:
        begin = position + _LENGTH.size
        position = begin + (_LENGTH.unpack_from(raw, position)[0] if begin <= end else 0)
        if position > end:
            raise InvalidRequestError(
                f"the bytes of {name} end within element {len(strings)}: each needs its length in 4 bytes before it",
                param=name,
            )
        strings.append(_text(raw[begin:position], name))
    if len(strings) != count or position != end:
        found = f"{len(strings)}" if position == end else f"more than {count}"
        raise InvalidRequestError(f"the bytes of {name} hold {found} elements and its shape says {count}", param=name)
    return strings


def _text(raw: bytes | memoryview, name: str) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{name} has an element that is not UTF-8: {error.reason}", param=name) from error


class Wanted(NamedTuple):
    """An output that a request asks for."""

    name: str
    classification: int = 0
    """0: as it is; else so many labels, best first, each as `score:index:label`."""
    binary: bool = False


class Output(NamedTuple):
    """One output of an answer, its elements in one flat list."""

    name: str
    datatype: str
    shape: list[int]
    values: list[Any]

    def packed(self) -> bytes:
        """The bytes of its elements."""
        if self.datatype == "FP32":
            return np.asarray(self.values, "<f4").tobytes()
        if self.datatype == "BOOL":
            return bytes(self.values)
        encoded = [value.encode() for value in self.values]
        return b"".join([part for element in encoded for part in (_LENGTH.pack(len(element)), element)])


def outputs_named(contract: ScoreContract) -> tuple[str, ...]:
    """The names of a model's outputs; see `described`."""
    return (SCORES, TRUNCATED) if contract.problem == "regression" else (SCORES, LABEL, TRUNCATED)


def described(contract: ScoreContract) -> list[dict[str, Any]]:
    """The outputs of a model: name, datatype and shape, as model metadata has them; `scores` is the first."""
    kinds = {SCORES: ("FP32", [-1, len(contract.labels)]), LABEL: ("BYTES", [-1]), TRUNCATED: ("BOOL", [-1])}
    return [{"name": name, "datatype": kinds[name][0], "shape": kinds[name][1]} for name in outputs_named(contract)]


def outputs_of(answered: Answered, wanted: Sequence[Wanted]) -> list[Output]:
    """The outputs that were asked for; see `check_wanted`."""
    contract = answered.route.model.manifest.scores
    return [_MAKERS[one.name](answered.answers, contract, one.classification) for one in wanted]


def check_wanted(wanted: Sequence[Wanted], contract: ScoreContract) -> None:
    """Refuse outputs that a model doesn't have.

    Raises:
        InvalidRequestError: no such output, one that is asked for twice, or a classification of something else than
            the scores.
    """
    names = outputs_named(contract)
    for one in wanted:
        if one.name not in names:
            raise InvalidRequestError(
                f"no output {one.name[:80]!r}: this model has {', '.join(names)}", param="outputs"
            )
        if one.classification < 0 or (one.classification and one.name != SCORES):
            raise InvalidRequestError(
                f"classification needs a positive number and the output {SCORES}", param="outputs"
            )
    if len({one.name for one in wanted}) != len(wanted):
        raise InvalidRequestError("an output is asked for twice", param="outputs")


def _scores(answers: list[Answer], contract: ScoreContract, classification: int) -> Output:
    labels = contract.labels
    if not classification:
        values = [score for answer in answers for score in answer.scores]
        return Output(SCORES, "FP32", [len(answers), len(labels)], values)
    count = min(classification, len(labels))
    described_scores: list[str] = []
    for answer in answers:
        order = best_first(answer.scores)[:count]
        described_scores += [f"{answer.scores[index]:.9g}:{index}:{labels[index]}" for index in order]
    return Output(SCORES, "BYTES", [len(answers), count], described_scores)


_MAKERS: Mapping[str, Callable[[list[Answer], ScoreContract, int], Output]] = {
    SCORES: _scores,
    LABEL: lambda answers, contract, _: Output(
        LABEL,
        "BYTES",
        [len(answers)],
        [contract.labels[answer.scores.index(max(answer.scores))] for answer in answers],
    ),
    TRUNCATED: lambda answers, _, __: Output(
        TRUNCATED, "BOOL", [len(answers)], [answer.truncated for answer in answers]
    ),
}


def refuse_unsupported(parameters: Mapping[str, object]) -> None:
    """Refuse what would change the meaning of a request and is not done here.

    Raises:
        NotSupportedError: sequences of requests, or memory that is shared with the client.
    """
    for name in ("sequence_id", "shared_memory_region"):
        if parameters.get(name):
            raise NotSupportedError(f"{name} is not supported: send each request whole and by itself", param=name)
