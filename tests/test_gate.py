from __future__ import annotations

from pathlib import Path

import pytest

from model_store.builder.errors import GateFailedError
from model_store.builder.gate import check_all, enforce
from model_store.builder.recipe import Gate

FIGURES = {
    "retention": 0.96,
    "predecessor_margin": 0.05,
    "successor_margin": 0.02,
    "file_agreement": 0.99,
    "size_ratio": 5.0,
    "test_rows": 3000.0,
    "predecessor_parity": 1e-6,
    "successor_parity": 2e-6,
}


def test_only_the_thresholds_that_are_set_are_checked_and_parity_always_is() -> None:
    assert [check.name for check in check_all(Gate(), FIGURES)] == ["predecessor_parity", "successor_parity"]
    whole = Gate(
        min_retention=0.9,
        min_predecessor_margin=0.03,
        min_successor_margin=0.01,
        min_agreement=0.95,
        min_size_ratio=4.5,
        min_test_rows=3000,
    )
    checks = check_all(whole, FIGURES)
    assert {check.name for check in checks} == set(FIGURES)
    assert all(check.passed for check in checks)
    enforce(checks, Path())


def test_a_failed_gate_names_each_check_with_its_value_and_where_the_results_are() -> None:
    checks = check_all(Gate(min_retention=0.97, min_successor_margin=0.01, max_parity_difference=1e-6), FIGURES)
    with pytest.raises(GateFailedError) as failure:
        enforce(checks, Path("/kept"))
    assert str(failure.value) == (
        "the gate failed, nothing was published: retention is 0.96, wanted ≥ 0.97;"
        " successor_parity is 2e-06, wanted ≤ 1e-06 (results are in /kept)"
    )
