"""A study: arms × tasks × seeds, compared under one search and one budget, from a YAML file.

Every arm starts from the same trained predecessor of its task and seed. A learning rate that a step does not state is
searched: each of the study's rates is tried with the first seed and judged on dev, for every arm alike, the
predecessor included; all seeds then use the best. The test split is looked at once a cell, after that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from model_store.builder.documents import Document, DocumentKind, checked
from model_store.builder.errors import RecipeError, StudyError
from model_store.builder.knobs import Knobs
from model_store.builder.recipe import Recipe, located, resolve
from model_store.builder.sources import DataSource
from model_store.builder.step import Precision, StepParameters, TrainingParameters, operator_module, operator_names
from model_store.builder.weights import Weights
from model_store.manifest import Name, Side

PREDECESSOR = "predecessor"
STUDIES = DocumentKind("study", "recipes/studies")
Steps = tuple[dict[str, Any], ...]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"{', '.join(map(str, values))} has a value twice")
    return values


def _told_apart(rates: tuple[float, ...]) -> tuple[float, ...]:
    _distinct(tuple(f"{rate:g}" for rate in rates))  # as their records are named
    return rates


Rates = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(_told_apart), Field(min_length=1)]


class Task(Knobs):
    """What is learnt."""

    data: DataSource
    max_length: int = Field(default=128, ge=4, le=8192)
    truncation_side: Side = "right"
    epochs: PositiveInt | None = Field(default=None, description="in place of the study's, on this task")
    predecessor_epochs: PositiveInt | None = Field(
        default=None, description="of the predecessor's steps that state none; by default those of the arms"
    )
    learning_rates: Rates | None = Field(default=None, description="in place of the study's, on this task")
    precision: Precision | None = Field(default=None, description="in place of the study's, on this task")


class Arm(Knobs):
    """One way to make a successor: steps of a recipe, between the predecessor and the export."""

    steps: Steps = Field(min_length=1)
    tasks: tuple[str, ...] | None = Field(default=None, description="only for these; by default for all")


class Study(Knobs):
    """What is compared, and how often."""

    name: Name
    about: str = ""
    predecessor: Weights
    predecessor_steps: Steps = Field(min_length=1, description="make the predecessor of the weights")
    epochs: PositiveInt = Field(description="of every training step that states none: the common budget")
    learning_rates: Rates
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(_distinct)] = Field(min_length=1)
    precision: Precision = Field(default="float32", description="of every training step that states none")
    data_folder: Path = Field(
        default=Path(), description="where relative paths of tasks start, from the study's folder"
    )
    threads: PositiveInt = Field(default=1, description="of torch: another number rounds otherwise, and ends elsewhere")
    tasks: dict[Name, Task] = Field(min_length=1)
    arms: dict[Name, Arm] = Field(min_length=1)
    references: tuple[Name, ...] = Field(default=(), description="arms that every other one is tested against")

    @model_validator(mode="after")
    def _names_that_are_there(self) -> Self:
        if PREDECESSOR in self.arms:
            raise ValueError(f"arms: {PREDECESSOR} is the arm that every study has: choose another name")
        for name in self.references:
            if name not in self.arms:
                raise ValueError(f"references: no arm {name!r}: there are {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            unknown = [task for task in arm.tasks or () if task not in self.tasks]
            if unknown:
                raise ValueError(f"arms.{name}.tasks: no task {unknown[0]!r}: there are {', '.join(self.tasks)}")
        for task in self.tasks:
            if len(self.arms_of(task)) == 1:
                raise ValueError(f"tasks.{task}: no arm is for it")
        return self

    @property
    def search_seed(self) -> int:
        """The seed that learning rates are searched with."""
        return self.seeds[0]

    def arms_of(self, task: str) -> list[str]:
        """The arms of a task, the predecessor first."""
        return [PREDECESSOR, *(name for name, arm in self.arms.items() if arm.tasks is None or task in arm.tasks)]

    def rates_on(self, task: str) -> tuple[float, ...]:
        """The learning rates to try on a task, for every arm that states none."""
        return self.tasks[task].learning_rates or self.learning_rates

    def rates_of(self, task: str, arm: str) -> tuple[float, ...]:
        """The learning rates to try for an arm; none where its steps state their own."""
        steps = self.predecessor_steps if arm == PREDECESSOR else self.arms[arm].steps
        return self.rates_on(task) if any(_is_searched(step) for step in steps) else ()

    def cells(self) -> Iterator[Cell]:
        """Every cell, in the order in which they are worked on: what is finished is useful at any time."""
        for task in self.tasks:
            for seed in self.seeds:
                for arm in self.arms_of(task):
                    yield Cell(task, arm, seed)

    def cell(self, text: str) -> Cell:
        """The cell that is written `task/arm/seedN`.

        Raises:
            StudyError: the study has none of that name.
        """
        found = next((cell for cell in self.cells() if str(cell) == text), None)
        if found is None:
            raise StudyError(f"{text}: the study has no such cell; they are written like {next(self.cells())}")
        return found

    def trials(self, task: str, arm: str) -> list[Trial]:
        """The trials that an arm's learning rate is chosen from; none where there is no choice."""
        rates = self.rates_of(task, arm)
        return [Trial(task, arm, rate) for rate in rates] if len(rates) > 1 else []

    def units(self, task: str | None = None) -> list[Cell | Trial]:
        """All there is to do, on `task` or on all, in order: before an arm's first cell on a task, its trials."""
        units: list[Cell | Trial] = []
        for cell in self.cells():
            if task not in {None, cell.task}:
                continue
            if cell.seed == self.search_seed:
                units += self.trials(cell.task, cell.arm)
            units.append(cell)
        return units

    def recipe(self, task: str, arm: str, seed: int, rates: dict[str, float]) -> Recipe:
        """The recipe of one cell, with `rates` of the predecessor and of the arm where they are searched.

        A rate that isn't given is the first of those to try: enough to check the recipe. For the
        predecessor itself, that of the task's first arm: the predecessor's own steps are the same in all.
        """
        own = self.tasks[task]
        chosen = self.arms_of(task)[1] if arm == PREDECESSOR else arm
        any_rate = self.rates_on(task)[0]
        common = {"epochs": own.epochs or self.epochs, "precision": own.precision or self.precision}
        earlier = common | {"epochs": own.predecessor_epochs or common["epochs"]}
        before = [_completed(step, rates.get(PREDECESSOR, any_rate), earlier) for step in self.predecessor_steps]
        after = [_completed(step, rates.get(arm, any_rate), common) for step in self.arms[chosen].steps]
        document = {
            "name": f"{self.name}-{task}-{chosen}"[:64].rstrip("-._"),
            "predecessor_name": PREDECESSOR,
            "seed": seed,
            "max_length": own.max_length,
            "truncation_side": own.truncation_side,
            "data": own.data,
            "predecessor": self.predecessor,
            "steps": [*before, *after, {"operator": "export"}],
        }
        return resolve(document, Path())


@dataclass(frozen=True, slots=True)
class Cell:
    """One result of the grid, written `task/arm/seedN`."""

    task: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.arm}/seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One learning rate of an arm's search, judged on dev."""

    task: str
    arm: str
    rate: float

    def __str__(self) -> str:
        return f"{self.task}/{self.arm}/rate{self.rate:g}"


def study_of(document: Document) -> Study:
    """The study of a document, with its relative paths taken from the document's folder.

    Raises:
        RecipeError: a key or value is not allowed.
    """
    study = checked(Study, document.content)
    study = study.model_copy(update=_located(study, document.folder))
    for task in study.tasks:
        for arm in study.arms_of(task)[1:]:
            _check_arm(study, task, arm)
    return study


def _check_arm(study: Study, task: str, arm: str) -> None:
    """Refuse what can be seen to fail before anything is trained.

    Raises:
        RecipeError: it names the arm.
    """
    steps = study.arms[arm].steps
    if not _trains(steps[-1]):
        raise RecipeError(
            f"arms.{arm}.steps: the last one must be trained, since its dev score is what rates are chosen by"
        )
    try:
        study.recipe(task, arm, study.search_seed, {})
    except RecipeError as error:
        raise of_arm(study, arm, error) from error


def of_arm(study: Study, arm: str, error: RecipeError) -> RecipeError:
    """An error of a cell's recipe, with its step named as the study's file has it."""
    found = re.match(r"steps\.(\d+)", str(error))
    if found is None:
        return RecipeError(f"arms.{arm}: {error}")
    index, own = int(found[1]), len(study.predecessor_steps)
    place = f"predecessor_steps.{index}" if index < own else f"arms.{arm}.steps.{index - own}"
    return RecipeError(place + str(error)[found.end() :])


def steps_to(study: Study, recipe: Recipe, arm: str) -> tuple[StepParameters, ...]:
    """A recipe's steps from the weights to an arm's model, without the export."""
    own = len(study.predecessor_steps) if arm == PREDECESSOR else len(recipe.steps) - 1
    return recipe.steps[:own]


def _located(study: Study, folder: Path) -> dict[str, Any]:
    """The study's parts that hold paths, relative ones taken from `folder`."""
    data = folder / study.data_folder
    tasks = {name: task.model_copy(update={"data": located(task.data, data)}) for name, task in study.tasks.items()}
    return {"tasks": tasks, "predecessor": located(study.predecessor, folder)}


def _is_searched(step: dict[str, Any]) -> bool:
    return "learning_rate" not in step and _trains(step)


def _trains(step: dict[str, Any]) -> bool:
    name = step.get("operator")
    return name in operator_names() and issubclass(operator_module(str(name)).Parameters, TrainingParameters)


def _completed(step: dict[str, Any], rate: float, common: dict[str, Any]) -> dict[str, Any]:
    """A step with the learning rate and the common budget that it does not state itself."""
    return common | {"learning_rate": rate} | step if _trains(step) else step
