"""JSON bodies to typed requests in one step, and what is wrong with a body in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from service.errors import InvalidRequestError

# pydantic makes Python's objects of what is wrong, once for each form that it might have had.
_MOST_CONTAINERS = 2**16
# Up to the end of what is no JSON: nothing is looked at twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)

Model = TypeVar("Model", bound=BaseModel)
Element = TypeVar("Element")


class _FailFast:
    """pydantic's `FailFast`, which can't be part of a union since it has no hash."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        return {**handler(source), "fail_fast": True}


Elements = Annotated[list[Element], _FailFast()]
"""A list of what clients send: the first wrong element ends it, else one request could have a million errors."""


def parse_body(model: type[Model], body: bytes, hints: Mapping[str, str]) -> Model:
    """Validate a body.

    Args:
        model: what it must be; one that knows no other keys has `extra="allow"`, and they are refused here. With
            "forbid", pydantic would describe each of them.
        body: JSON.
        hints: field → the sentence for whatever is wrong in it, where pydantic's would not help.

    Raises:
        InvalidRequestError: not JSON, or not what `model` says; one sentence names the field.
    """
    if len(body) > _MOST_CONTAINERS and _containers(body) > _MOST_CONTAINERS:
        raise InvalidRequestError(f"the body has more than {_MOST_CONTAINERS} lists and objects: send fewer texts")
    try:
        parsed: Model = model.__pydantic_validator__.validate_json(body)
    except ValidationError as error:
        raise refusal_of(error, model, hints) from None
    if parsed.__pydantic_extra__:
        name = next(iter(parsed.__pydantic_extra__))
        known = ", ".join(model.model_fields)
        raise InvalidRequestError(f"unknown key {name[:80]!r}: use {known}", param=name[:200])
    return parsed


def _containers(body: bytes) -> int:
    """How many lists and objects a body has, at most."""
    count = body.count(b"[") + body.count(b"{")
    if count <= _MOST_CONTAINERS:
        return count
    outside = _STRING.sub(b"", body)  # texts may be full of brackets
    return outside.count(b"[") + outside.count(b"{")


def refusal_of(error: ValidationError, model: type[BaseModel], hints: Mapping[str, str]) -> InvalidRequestError:
    """The first thing that pydantic found wrong, in one sentence; see `parse_body`."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    kind, location, message = first["type"], first["loc"], first["msg"]
    if kind == "json_invalid":
        return InvalidRequestError("the body is not valid JSON: " + message.removeprefix("Invalid JSON: "))
    if not location:
        required = next((name for name, field in model.model_fields.items() if field.is_required()), None)
        return InvalidRequestError(
            "the body must be a JSON object" + (f" with the key {required!r}" if required is not None else "")
        )
    name = ".".join(str(part) for part in location)[:200]
    if kind == "missing":
        return InvalidRequestError(f"the key {name!r} is missing", param=name)
    field = str(location[0])
    if field in hints:
        return InvalidRequestError(hints[field], param=field)
    return InvalidRequestError(f"{name}: {message[:1].lower()}{message[1:]}", param=name)
