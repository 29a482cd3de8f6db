"""What the records of a study hold: of a task, of a trial, and of a cell with its decision for every test text."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from model_store.builder.data import data_digest
from model_store.builder.metrics import Metric, Predictions
from model_store.builder.sources import SPLITS
from model_store.manifest import Problem, Split

Decisions = list[int] | list[float] | list[str]
"""One for each row of the test split: a label's position, a number, or of several labels a text of 0 and 1."""


class Record(BaseModel):
    """What a file of the records holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskRecord(Record):
    """What all cells of a task share."""

    task: str
    problem: Problem
    pair: bool
    licence: str
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    splits: dict[str, Split]
    tfidf: dict[str, float]
    tfidf_predictions: Decisions
    targets: Decisions

    @field_validator("splits")
    @classmethod
    def _every_split(cls, splits: dict[str, Split]) -> dict[str, Split]:
        if missing := [name for name in SPLITS if name not in splits]:
            raise ValueError(f"{missing[0]} is missing")
        return splits

    @property
    def data_sha256(self) -> str:
        """The digest of the task's data, as its cells have it."""
        return data_digest(self.problem, self.labels, self.splits)

    def fits(self, decisions: Decisions) -> bool:
        """Whether there is one for each test row, of the task's kind and labels."""
        count = len(self.labels)
        if self.problem == "regression":
            kind = all(isinstance(decision, int | float) for decision in decisions)
        elif self.problem == "multi_label":
            kind = all(isinstance(one, str) and len(one) == count and set(one) <= {"0", "1"} for one in decisions)
        else:
            kind = all(isinstance(decision, int) and 0 <= decision < count for decision in decisions)
        return kind and len(decisions) == self.splits["test"].rows


class UnitRecord(Record):
    """What trials and cells have in common: what they are, what they were made of, and how good that was on dev."""

    unit: str
    key: str
    learning_rates: dict[str, float]
    weights_sha256: str
    data_sha256: str
    machine: str
    code_version: str
    packages: dict[str, str]
    threads: int
    dev: float
    seconds: float


class TrialRecord(UnitRecord):
    """One learning rate of an arm, with the dev score of every epoch."""

    dev_history: list[float]


class Interval(Record):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Times(Record):
    """The median time of one text, milliseconds, measured in turns."""

    predecessor: float
    this: float


class StepRecord(Record):
    """One step of those that made a cell."""

    operator: str
    seconds: float
    dev: list[float] | None


class CellRecord(UnitRecord):
    """One cell: its figures, and what it decides for every test row."""

    test: dict[str, float]
    bytes: int
    predecessor_bytes: int
    parity: float
    p50_ms: Times
    speedup: Interval
    steps: list[StepRecord]
    predictions: Decisions


def compacted(predictions: Predictions) -> Decisions:
    """Decisions as JSON: positions, numbers to 6 places, or of several labels a text of 0 and 1."""
    if predictions.ndim == 2:
        return ["".join(str(int(entry)) for entry in row) for row in predictions]
    if predictions.dtype.kind == "f":
        return [round(float(value), 6) for value in predictions]
    return [int(value) for value in predictions]


def expanded(compact: Decisions) -> Predictions:
    """Decisions as `predictions_of` gives them, from a record."""
    if compact and isinstance(compact[0], str):
        return np.asarray([[int(entry) for entry in row] for row in compact])
    return np.asarray(compact)
