"""The thresholds between a build and the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_store.builder.errors import GateFailedError
from model_store.builder.recipe import Gate
from model_store.manifest import Check


def check_all(gate: Gate, measurements: dict[str, float]) -> tuple[Check, ...]:
    """One record for every threshold that the recipe sets, passed or not."""
    bounds: list[tuple[str, float | None, bool]] = [
        ("retention", gate.min_retention, True),
        ("predecessor_margin", gate.min_predecessor_margin, True),
        ("successor_margin", gate.min_successor_margin, True),
        ("file_agreement", gate.min_agreement, True),
        ("size_ratio", gate.min_size_ratio, True),
        ("test_rows", gate.min_test_rows, True),
        ("predecessor_parity", gate.max_parity_difference, False),
        ("successor_parity", gate.max_parity_difference, False),
    ]
    return tuple(
        Check(name=name, value=measurements[name], bound=bound, direction="at_least" if least else "at_most")
        for name, bound, least in bounds
        if bound is not None
    )


def enforce(checks: Sequence[Check], kept: Path) -> None:
    """Let a build pass, or stop it before anything is published.

    Raises:
        GateFailedError: which checks failed, by how much, and where the results are kept.
    """
    failed = [
        f"{check.name} is {check.value:.6g}, wanted {'≥' if check.direction == 'at_least' else '≤'} {check.bound:.6g}"
        for check in checks
        if not check.passed
    ]
    if failed:
        raise GateFailedError(f"the gate failed, nothing was published: {'; '.join(failed)} (results are in {kept})")
