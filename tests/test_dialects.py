"""Every error in every dialect: the status and shape that README documents, and no dialect forgets one."""

from __future__ import annotations

import json

import pytest

from model_store.errors import SuccessorError
from service.api.common import NATIVE, Dialect, explain, retry_after_ms
from service.api.dialects import TABLE
from service.api.open_inference_grpc import code_of
from service.errors import OUTCOMES, ROUTING, UNEXPECTED, AuthenticationError, Outcome, OverloadedError, outcome_of
from tests.test_documentation import README, rows_of_table

HEADER = "| status or code | Open Inference | gRPC | Text Embeddings Inference | Hugging Face |"
DIALECTS = {endpoint.dialect.name: endpoint.dialect for endpoint in TABLE.endpoints}
COLUMNS = {"open_inference": 0, "text_embeddings_inference": 2, "hugging_face": 3}
KEYS = {
    "native": {"error"},
    "open_inference": {"error"},
    "text_embeddings_inference": {"error", "error_type"},
    "hugging_face": {"error", "error_type"},
}
EVERY_OUTCOME = sorted(
    {*OUTCOMES.values(), *ROUTING.values(), UNEXPECTED, Outcome(401, "x", "unauthenticated")}, key=str
)


def documented(outcome: Outcome) -> list[str]:
    """The cells of an outcome's row: that of its code, else that of its status."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows_of_table(HEADER, README)]
    cells = {row[0].strip("`"): row[1:] for row in rows}
    return cells.get(outcome.code) or cells[str(outcome.status)]


def made(error: type[SuccessorError]) -> SuccessorError:
    return error("do this", retry_after_s=1.5) if issubclass(error, OverloadedError) else error("do this")


def test_all_dialects_are_known_here() -> None:
    assert set(DIALECTS) == {"native", *COLUMNS} == set(KEYS)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("outcome", EVERY_OUTCOME, ids=lambda outcome: f"{outcome.status}-{outcome.code}")
def test_every_outcome_has_its_documented_status_and_shape_in_every_dialect(outcome: Outcome, dialect: Dialect) -> None:
    status, body = dialect.show(outcome, "do this", "input")
    if dialect is NATIVE:
        assert status == outcome.status
        detail = {"message": "do this", "type": outcome.type, "param": "input", "code": outcome.code}
        assert json.loads(body) == {"error": detail}
        return
    wanted = documented(outcome)[COLUMNS[dialect.name]].replace("`", "").split()
    assert str(status) == wanted[0]
    if status == 401 and dialect.name == "text_embeddings_inference":
        assert body == b""
        return
    document = json.loads(body)
    assert set(document) == KEYS[dialect.name]
    assert document["error"].startswith("do this")
    if dialect.name == "text_embeddings_inference":
        assert document["error_type"] == wanted[1]
    if dialect.name == "hugging_face":
        assert document["error_type"] == outcome.code


@pytest.mark.parametrize("outcome", EVERY_OUTCOME, ids=lambda outcome: f"{outcome.status}-{outcome.code}")
def test_every_outcome_has_its_documented_code_in_grpc(outcome: Outcome) -> None:
    assert code_of(outcome).name == documented(outcome)[1].strip("`")


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("error", sorted(OUTCOMES, key=str), ids=lambda error: error.__name__)
def test_every_error_is_explained_in_every_dialect(error: type[SuccessorError], dialect: Dialect) -> None:
    reply = explain(made(error), dialect)
    assert reply.status == dialect.show(outcome_of(made(error)), "do this", None)[0]
    assert reply.body == b"" or b"do this" in reply.body
    headers = dict(reply.headers)
    if error is AuthenticationError:
        assert headers == {b"www-authenticate": b"Bearer"}
    elif issubclass(error, OverloadedError):
        assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"2", b"1500")
    else:
        assert headers == {}


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, 1), (0.0001, 1), (0.0101, 11), (2.0, 2000), (2.0004, 2001)])
def test_who_waits_as_told_has_waited_long_enough(seconds: float, shown: int) -> None:
    assert retry_after_ms(OverloadedError("wait", retry_after_s=seconds)) == shown
