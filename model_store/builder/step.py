"""What every operator is made of: a typed parameter class that can be checked without torch, and one function.

An operator is a module in `operators/`, found by its name. It has `Parameters`, a `StepParameters`, and
`apply(parameters, parent, output, context)`, which reads the model in the folder `parent` and writes its result into
the empty folder `output`.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model_store.builder.data import TaskData
from model_store.builder.errors import RecipeError
from model_store.builder.knobs import Knobs
from model_store.builder.progress import Progress
from model_store.manifest import InputContract, Lineage, ScoreContract

Kind = Literal["encoder", "classifier", "onnx"]
Precision = Literal["float32", "bfloat16"]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a model before anything is loaded."""

    kind: Kind
    layers: int


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step may use besides its parameters and its parent.

    Attributes:
        scratch: survives a killed build: checkpoints go here.
    """

    data: TaskData
    scores: ScoreContract
    inputs: InputContract
    lineage: Lineage
    seed: int
    progress: Progress
    scratch: Path
    report_to: tuple[str, ...] = ()


Apply = Callable[[Any, Path, Path, StepContext], Figures]


class StepParameters(Knobs):
    """The parameters of one step, and what can be said about it without running it."""

    takes: ClassVar[tuple[Kind, ...]]
    gives: ClassVar[Kind]

    operator: str

    def shape_after(self, before: Shape) -> Shape:
        """The model's shape after this step.

        Raises:
            RecipeError: the step can't be applied to such a model.
        """
        if before.kind not in self.takes:
            raise RecipeError(
                f"{self.operator} can't follow here: it takes {' or '.join(self.takes)}, and the steps before it give"
                f" {before.kind}"
            )
        return replace(before, kind=self.gives)

    def kept_layers(self, count: int) -> tuple[int, ...]:
        """Which of the `count` layers before this step, 0-based and in order, the result's are or start as."""
        return tuple(range(count))

    def spans(self, count: int) -> tuple[int, ...]:  # noqa: ARG002
        """How many of the `count` layers each of the result's stands for while it is trained among them, if it is."""
        return ()

    def check_rows(self, train_rows: int) -> None:
        """Refuse what can't work with so many rows of training data.

        Raises:
            RecipeError: the message says what to change.
        """


class FewerLayers(Knobs):
    """What every step can be told whose result has fewer layers than the model before it."""

    layers: int = Field(ge=1, description="n: how many layers the result has")

    def check_fewer(self, before: Shape) -> None:
        """Refuse a result that has not fewer layers.

        Raises:
            RecipeError: the message says how many there are.
        """
        if self.layers >= before.layers:
            raise RecipeError(f"layers: {self.layers} is not fewer than the {before.layers} layers before this step")


def spread_layers(spans: Sequence[int]) -> tuple[int, ...]:
    """The first of each span of consecutive layers, 0-based."""
    return tuple(itertools.accumulate(spans[:-1], initial=0))


def even_spans(layers: int, parts: int) -> tuple[int, ...]:
    """`layers` consecutive layers cut into `parts` spans, as even as they can be; the longer ones come last."""
    return tuple((index + 1) * layers // parts - index * layers // parts for index in range(parts))


class TrainingParameters(StepParameters):
    """What every step that trains can be told."""

    epochs: int = Field(ge=1, le=1000)
    learning_rate: float = Field(gt=0, le=1)
    batch_size: int = Field(default=32, ge=1)
    warmup_share: float = Field(default=0.0, ge=0, lt=1, description="share of the steps with a growing learning rate")
    learning_rate_schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = Field(default=0.01, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0, description="over the trained parameters only")
    precision: Precision = Field(
        default="float32", description="of training: bfloat16 is mixed precision, faster where the processor has it"
    )
    checkpoint_steps: int = Field(
        default=100, ge=1, description="a killed build resumes from the last of these, or of the epochs' ends"
    )
    best_on_dev: bool = Field(default=False, description="keep the epoch that scored best on dev, not the last one")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many epochs without a better score on dev, of Theseus' phase 2; needs best_on_dev",
    )

    @model_validator(mode="after")
    def _patience_keeps_the_best(self) -> Self:
        if self.patience is not None and not self.best_on_dev:
            raise ValueError("patience: without best_on_dev the last epoch would be kept, not the best: set it too")
        return self

    def total_steps(self, train_rows: int) -> int:
        """Optimiser steps over all epochs."""
        return -(-train_rows // self.batch_size) * self.epochs


def operator_names() -> list[str]:
    """Every operator there is: the modules of `operators/`."""
    package = importlib.import_module("model_store.builder.operators")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def operator_module(name: str) -> ModuleType:
    """The module of an operator that `operator_names` lists."""
    return importlib.import_module(f"model_store.builder.operators.{name}")
