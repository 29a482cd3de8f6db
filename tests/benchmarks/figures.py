"""A figure, the bar that it is held against, and the report that collects them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from model_store import statistics
from model_store.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach."""

    bound: float
    direction: Literal["at_least", "at_most"]

    def __str__(self) -> str:
        return f"{'≥' if self.direction == 'at_least' else '≤'} {self.bound:g}"

    def passed(self, value: float) -> bool:
        """Whether the value is on the right side; NaN is on neither."""
        return value >= self.bound if self.direction == "at_least" else value <= self.bound


def at_least(bound: float) -> Bar:
    """A bar that is passed at or above the bound."""
    return Bar(bound, "at_least")


def at_most(bound: float) -> Bar:
    """A bar that is passed at or below the bound."""
    return Bar(bound, "at_most")


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the report."""

    subject: str
    name: str
    value: float
    unit: str = ""
    interval: tuple[float, float] | None = None
    bar: Bar | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Pass, fail, or nothing where there is no bar."""
        if self.bar is None:
            return ""
        return "pass" if self.bar.passed(self.value) else "FAIL"


@dataclass(slots=True)
class Report:
    """Figures in the order in which they were taken, each shown as it comes, and what could not be measured."""

    console: Console
    figures: list[Figure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, figure: Figure) -> None:
        """Keep and show a figure."""
        self.figures.append(figure)
        shown = f"{figure.subject}: {figure.name}: {_number(figure)} {figure.note}"
        self.console.print(f"{shown}  {figure.verdict} {figure.bar or ''}".rstrip(), highlight=False, markup=False)

    def skip(self, what: str, why: str) -> None:
        """Keep and say what could not be measured."""
        self.skipped[what] = why
        self.console.print(f"{what}: not measured: {why}", highlight=False, markup=False)

    @property
    def failed(self) -> list[Figure]:
        """The figures that miss their bar."""
        return [figure for figure in self.figures if figure.verdict == "FAIL"]

    def verdicts(self) -> Table:
        """The figures that have a bar."""
        shown = Table("subject", "figure", "value", "bar", "verdict")
        for figure in self.figures:
            if figure.bar is not None:
                shown.add_row(figure.subject, figure.name, _number(figure), str(figure.bar), figure.verdict)
        return shown

    def as_json(self) -> list[dict[str, Any]]:
        """All figures, for a program."""
        return [{**asdict(figure), "verdict": figure.verdict or None} for figure in self.figures]


def ratio_of_rounds(numerator: Iterable[float], denominator: Iterable[float]) -> Estimate:
    """The ratio of two rates that were taken in turns, with its interval over rounds."""
    return statistics.ratio_of_rounds(np.array(list(numerator)), np.array(list(denominator)))


def _number(figure: Figure) -> str:
    digits = 1 if abs(figure.value) >= 100 or float(figure.value).is_integer() else 3
    shown = f"{figure.value:.{digits}f} {figure.unit}".rstrip()
    if figure.interval is not None:
        shown += f" [{figure.interval[0]:.{digits}f}, {figure.interval[1]:.{digits}f}]"
    return shown
