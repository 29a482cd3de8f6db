"""The OpenAPI description of the dialects' routes, made from the table that routes them.

What a route may be refused with is a list of error classes; each dialect itself says which status and body that is, so
that every status has an example in its dialect's own shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import orjson
from fastapi import FastAPI
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from model_store.errors import SuccessorError
from service.api.access_schema import ALWAYS, KEYED, SECURITY_SCHEMES, add_access
from service.api.classify_schema import ANSWER_HEADERS
from service.api.common import ErrorAnswer, explain
from service.api.endpoint import Endpoint, EndpointTable
from service.api.reference_routes import ANSWERS, ROUTES, WORK, About
from service.errors import OverloadedError

_RETRY = {
    "retry-after": {"description": "seconds until the queue has room", "schema": {"type": "integer"}},
    "retry-after-ms": {"description": "the same in milliseconds", "schema": {"type": "integer"}},
}
_PARAMETERS = {
    "model": "`name`, `name@version` or `name@alias`",
    "version": "a version's number, or an alias",
}


class ErrorLine(BaseModel):
    """An error in the Open Inference Protocol."""

    error: str


class TypedError(BaseModel):
    """An error in the dialects of Text Embeddings Inference and Hugging Face."""

    error: str
    error_type: str = Field(description="README lists them")


_ERRORS: dict[str, type[BaseModel]] = {
    "native": ErrorAnswer,
    "open_inference": ErrorLine,
    "text_embeddings_inference": TypedError,
    "hugging_face": TypedError,
}


def document(app: FastAPI, table: EndpointTable, *, keys: bool) -> None:
    """Put the plain ASGI routes into the OpenAPI document beside those that FastAPI knows, and how to get in."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            paths, schemas = describe(table)
            for operation in (one for path in schema["paths"].values() for one in path.values()):
                # FastAPI's own shape of a refusal: bodies are read by our own code.
                if operation["responses"].pop("422", None) is not None:
                    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
                    operation["responses"]["400"] = {"description": "not as described here", "content": content}
            schema["paths"] = {**paths, **schema["paths"]}
            known = schema.setdefault("components", {}).setdefault("schemas", {})
            for stranger in ("HTTPValidationError", "ValidationError"):
                known.pop(stranger, None)
            known.update(schemas)
            schema["components"]["securitySchemes"] = SECURITY_SCHEMES
            add_access(schema["paths"], table, keys=keys)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def describe(table: EndpointTable) -> tuple[dict[str, Any], dict[str, Any]]:
    """The OpenAPI paths of a table, and the schemas that they refer to."""
    validated = {about.request for about in ROUTES.values() if about.request is not None}
    models: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in sorted(validated, key=lambda model: model.__name__)),
        *((model, "serialization") for model in (*ANSWERS, ErrorAnswer, ErrorLine, TypedError)),
    ]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {}
    for endpoint in table.endpoints:
        about = ROUTES[f"{endpoint.method} {endpoint.path}"]
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, about)
    return paths, definitions["$defs"]


def _operation(endpoint: Endpoint, about: About) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", f"{endpoint.method.lower()}{endpoint.path}").strip("_")
    operation: dict[str, Any] = {
        "tags": [about.tag],
        "summary": about.summary,
        "operationId": "classify" if endpoint.path == "/v1/classify" else name,
        "parameters": [*_path_parameters(endpoint.path), *_header_parameters(about)],
        "responses": {"200": _answer(about), **_refusals(endpoint, about), **_unready(about)},
    }
    if about.request is not None:
        schema = {"$ref": f"#/components/schemas/{about.request.__name__}"}
        examples = about.request.model_config.get("json_schema_extra")
        given = examples.get("examples", []) if isinstance(examples, dict) else []
        content: dict[str, Any] = {"schema": schema}
        if isinstance(given, list) and given:
            content["examples"] = {f"{number}": {"value": value} for number, value in enumerate(given, start=1)}
        bodies: dict[str, Any] = {"application/json": content}
        if about.binary:
            bodies["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": about.needs_body, "content": bodies}
    return operation


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", path):
        schema = {"type": "string", "minLength": 1}
        yield {"name": name, "in": "path", "required": True, "description": _PARAMETERS[name], "schema": schema}


def _header_parameters(about: About) -> Iterator[dict[str, Any]]:
    headers: dict[str, str] = {}
    if set(WORK) <= set(about.refusals):
        headers["request-timeout-ms"] = "drop the request if it was not computed after this time"
        headers["request-deadline-ms"] = "drop the request if it was not computed by then, in ms since 1970"
    if about.binary:
        headers["Inference-Header-Content-Length"] = "how many of the body's bytes are JSON; without it, all"
    for name, text in headers.items():
        schema = {"type": "integer", "minimum": 0 if about.binary and name.startswith("I") else 1}
        yield {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _answer(about: About) -> dict[str, Any]:
    if not about.answer:
        return {"description": about.summary}
    content: dict[str, Any] = {"application/json": {"schema": about.answer, "example": about.example}}
    answer: dict[str, Any] = {"description": about.summary, "content": content}
    if about.binary:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    if set(WORK) <= set(about.refusals):
        answer["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in ANSWER_HEADERS.items()
        }
    return answer


def _unready(about: About) -> dict[str, Any]:
    if about.unready is None:
        return {}
    content = {"application/json": {"schema": {"type": "object"}, "example": about.unready}}
    return {"503": {"description": "not now", "content": content}}


def _refusals(endpoint: Endpoint, about: About) -> dict[str, Any]:
    """By status, what refusals mean it and how each looks."""
    schema = {"$ref": f"#/components/schemas/{_ERRORS[endpoint.dialect.name].__name__}"}
    responses: dict[str, Any] = {}
    keyed = () if endpoint.permission is None else KEYED
    for error in dict.fromkeys((*about.refusals, *ALWAYS, *keyed)):
        sentence = " ".join((error.__doc__ or "").split("\n\n")[0].split())
        reply = explain(_made(error, sentence), endpoint.dialect)
        response = responses.setdefault(str(reply.status), {"description": ""})
        response["description"] = f"{response['description']} {sentence}".strip()
        if issubclass(error, OverloadedError):
            response["headers"] = _RETRY
        if not reply.body:
            continue
        examples = response.setdefault("content", {}).setdefault(
            "application/json", {"schema": schema, "examples": {}}
        )["examples"]
        examples[error.__name__] = {"value": orjson.loads(reply.body)}
    return dict(sorted(responses.items()))


def _made(error: type[SuccessorError], sentence: str) -> SuccessorError:
    return error(sentence, retry_after_s=1.5) if issubclass(error, OverloadedError) else error(sentence)
