"""The OpenAPI document: valid, whole, with examples that are as their schemas say, and true of real answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from model_store.store import ModelStore
from service.api.dialects import TABLE
from service.api.reference import describe
from service.api.reference_routes import ROUTES
from service.app import create_app
from service.settings import load_settings
from tests.web import WebClient, running_app


@pytest.fixture(scope="module")
def client(tiny_store: ModelStore) -> Iterator[WebClient]:
    settings = load_settings(store_dir=tiny_store.root, threads=1, store_poll_ms=0, default_model="tiny")
    with running_app(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: WebClient) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def check(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """A value is as a schema of the document says."""
    OAS31Validator({"components": document["components"], **schema}).validate(value)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)


def test_every_route_of_every_dialect_is_in_it_once(document: dict[str, Any]) -> None:
    routes = {f"{endpoint.method} {endpoint.path}" for endpoint in TABLE.endpoints}
    described = dict(operations(document))
    assert routes == set(ROUTES) <= set(described)
    names = [operation["operationId"] for operation in described.values()]
    assert len(set(names)) == len(names)
    assert all(operation["summary"] and operation["tags"] for operation in described.values())


def test_every_example_is_as_its_schema_says_and_every_refusal_has_one(document: dict[str, Any]) -> None:
    examined = 0
    paths, _ = describe(TABLE)
    for path, methods in paths.items():
        for operation in methods.values():
            contents = [("request", operation.get("requestBody", {}).get("content", {}))]
            contents += [(status, one.get("content", {})) for status, one in operation["responses"].items()]
            for kind, content in contents:
                if kind == "401" and not content:  # Text Embeddings Inference says nothing there
                    continue
                body = content.get("application/json", {})
                values = [entry["value"] for entry in body.get("examples", {}).values()]
                values += [body["example"]] if "example" in body else []
                assert values or kind in {"request", "200"}, f"{path} has no example for {kind}"
                for value in values:
                    check(document, body["schema"], value)
                    examined += 1
    assert examined > 150


REAL: dict[str, tuple[str, object]] = {
    "POST /v1/classify": ("/v1/classify", {"model": "tiny", "input": ["a", "b"], "top_k": 1}),
    "POST /v2/models/{model}/infer": (
        "/v2/models/tiny/infer",
        {"id": "1", "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]},
    ),
    "GET /v2/models/{model}": ("/v2/models/tiny", None),
    "GET /v2/models/{model}/ready": ("/v2/models/tiny/ready", None),
    "GET /v2/models/{model}/config": ("/v2/models/tiny/config", None),
    "GET /v2/models/{model}/stats": ("/v2/models/tiny/stats", None),
    "GET /v2/models/stats": ("/v2/models/stats", None),
    "GET /v2": ("/v2", None),
    "GET /v2/health/live": ("/v2/health/live", None),
    "GET /v2/health/ready": ("/v2/health/ready", None),
    "POST /v2/repository/index": ("/v2/repository/index", {}),
    "POST /predict": ("/predict", {"inputs": [["a"], ["b"]]}),
    "POST /": ("/", {"inputs": "a"}),
    "GET /info": ("/info", None),
    "POST /models/{model}": ("/models/tiny", {"inputs": "a"}),
    "GET /v1/models": ("/v1/models", None),
    "GET /health/ready": ("/health/ready", None),
}


@pytest.mark.parametrize("route", REAL)
def test_real_answers_are_as_documented(client: WebClient, document: dict[str, Any], route: str) -> None:
    path, body = REAL[route]
    response = client.request(route.split(maxsplit=1)[0], path, json=body)
    assert response.status_code == 200, response.text
    content = dict(operations(document))[route]["responses"]["200"]["content"]
    check(document, content["application/json"]["schema"], response.json())


@pytest.mark.parametrize(
    ("route", "path", "body"),
    [
        ("POST /v1/classify", "/v1/classify", b"{"),
        ("POST /v2/models/{model}/infer", "/v2/models/nobody/infer", b'{"inputs": []}'),
        ("POST /v2/models/{model}/infer", "/v2/models/tiny/infer", b'{"inputs": []}'),
        ("POST /predict", "/predict", b'{"inputs": []}'),
        ("POST /predict", "/predict", b'{"inputs": 5}'),
        ("POST /models/{model}", "/models/nobody", b'{"inputs": "a"}'),
        ("POST /v2/repository/models/{model}/load", "/v2/repository/models/tiny/load", b""),
    ],
)
def test_real_refusals_are_as_documented(
    client: WebClient, document: dict[str, Any], route: str, path: str, body: bytes
) -> None:
    response = client.post(path, content=body)
    documented = dict(operations(document))[route]["responses"][str(response.status_code)]
    check(document, documented["content"]["application/json"]["schema"], response.json())
