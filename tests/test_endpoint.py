"""The table of endpoints: which route a path is, and in whose shape it is refused."""

from __future__ import annotations

import pytest

from service.api.common import NATIVE, Reply
from service.api.endpoint import Call, Endpoint, EndpointTable
from service.api.hugging_face import HUGGING_FACE
from service.api.open_inference import OPEN_INFERENCE


async def handle(_: Call) -> Reply:
    return Reply(200, b"")


def endpoint(path: str, method: str = "GET") -> Endpoint:
    return Endpoint(OPEN_INFERENCE, method, path, handle, None)


PATHS = ("/v2", "/v2/models/stats", "/v2/models/{m}", "/v2/models/{m}/stats", "/v2/models/{m}/versions/{v}/stats")
TABLE = EndpointTable(
    [*map(endpoint, PATHS), endpoint("/v2", "POST"), Endpoint(HUGGING_FACE, "POST", "/x", handle, None)]
)


@pytest.mark.parametrize(
    ("path", "found", "parameters"),
    [
        ("/v2", "/v2", ()),
        ("/v2/models/stats", "/v2/models/stats", ()),
        ("/v2/models/a", "/v2/models/{m}", ("a",)),
        ("/v2/models/a@b", "/v2/models/{m}", ("a@b",)),
        ("/v2/models/stats/stats", "/v2/models/{m}/stats", ("stats",)),
        ("/v2/models/versions/versions/versions/stats", PATHS[-1], ("versions", "versions")),
    ],
)
def test_a_literal_goes_before_a_parameter_which_is_one_whole_segment(
    path: str, found: str, parameters: tuple[str, ...]
) -> None:
    endpoints, given = TABLE.find(path) or ({}, ())
    assert endpoints["GET"].path == found
    assert given == parameters


@pytest.mark.parametrize("path", ["", "/", "/v2/", "/v2/models", "/v2/models/", "/v2/models//stats", "/v2/models/a/b"])
def test_no_other_path_is_found(path: str) -> None:
    assert TABLE.find(path) is None


def test_a_path_has_its_methods() -> None:
    endpoints, _ = TABLE.find("/v2") or ({}, ())
    assert set(endpoints) == {"GET", "POST"}


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v2/models/a", OPEN_INFERENCE),
        ("/v2/nope", OPEN_INFERENCE),
        ("/x", HUGGING_FACE),
        ("/models/a/b", HUGGING_FACE),
        ("/nope", NATIVE),
        ("/v22", NATIVE),
    ],
)
def test_a_path_without_a_route_is_refused_by_the_dialect_that_it_would_be(path: str, dialect: object) -> None:
    assert TABLE.dialect_of(path) is dialect
