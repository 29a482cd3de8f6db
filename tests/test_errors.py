"""Every error of the service has its status."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import service.app  # noqa: F401 - declares every error class that a client can see
from model_store.errors import SuccessorError
from service.errors import OUTCOMES, UNEXPECTED, ModelNotLoadedError, outcome_of

# Raised before a server exists or by programs that are none: no client ever sees them.
_ELSEWHERE = (
    "service.access",
    "service.settings",
    "service.cli",
    "service.comparison",
    "model_store.builder",
    "tests",
)


def subclasses(base: type[SuccessorError]) -> Iterator[type[SuccessorError]]:
    yield base
    for child in base.__subclasses__():
        yield from subclasses(child)


@pytest.mark.parametrize("error", sorted(set(subclasses(SuccessorError)), key=str))
def test_every_error_has_a_status_and_a_name_that_ends_in_error(error: type[SuccessorError]) -> None:
    assert error.__name__.endswith("Error")
    if not error.__module__.startswith(_ELSEWHERE):
        assert error in OUTCOMES, f"give {error.__name__} a row in service.errors.OUTCOMES"


def test_statuses_are_those_of_errors_and_codes_tell_errors_apart() -> None:
    assert all(400 <= outcome.status < 600 for outcome in OUTCOMES.values())
    by_code = {outcome.code: outcome for outcome in OUTCOMES.values()}
    assert all(by_code[outcome.code] == outcome for outcome in OUTCOMES.values())


def test_an_error_that_no_row_is_for_is_an_unexpected_one() -> None:
    class UnknownError(SuccessorError):
        pass

    assert outcome_of(UnknownError("x")) == UNEXPECTED
    assert outcome_of(ModelNotLoadedError("x")).status == 404
