"""A recipe: every knob of a build, typed. What can't work is refused here, before anything is fetched or trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

import yaml
from pydantic import Field, model_validator

from model_store.builder.documents import DocumentKind, checked
from model_store.builder.errors import RecipeError
from model_store.builder.knobs import Knobs
from model_store.builder.sources import SPLITS, DataSource, FileSource
from model_store.builder.step import Shape, StepParameters, operator_module, operator_names
from model_store.builder.weights import LocalWeights, Weights
from model_store.manifest import Alias, Name, Side
from model_store.store import DEFAULT_ALIAS

if TYPE_CHECKING:
    AnyStep = StepParameters
else:  # the union of every operator's parameters, told apart by the operator's name
    AnyStep = Annotated[
        reduce(or_, (operator_module(name).Parameters for name in operator_names())), Field(discriminator="operator")
    ]


RECIPES = DocumentKind("recipe", "recipes")
Located = TypeVar("Located", bound=Knobs)


class Gate(Knobs):
    """Thresholds that a build must pass before it may be published; a missing one is not checked."""

    min_retention: float | None = Field(default=None, description="successor's metric ÷ predecessor's, on test")
    min_predecessor_margin: float | None = Field(default=None, description="predecessor's metric minus tf-idf's")
    min_successor_margin: float | None = Field(default=None, description="successor's metric minus tf-idf's")
    min_agreement: float | None = Field(default=None, ge=0, le=1, description="served file with its float32, on dev")
    min_size_ratio: float | None = Field(default=None, description="predecessor's bytes ÷ successor's")
    min_test_rows: int | None = Field(default=None, ge=1)
    max_parity_difference: float = Field(
        default=1e-4, gt=0, description="of torch and float32 ONNX: largest |Δlogit|, ÷ the largest |logit| above 1"
    )


class Recipe(Knobs):
    """How one successor is built: data → predecessor → steps → gate → publish."""

    name: Name = Field(description="the successor's name in the store")
    predecessor_name: Name = Field(description="the predecessor's name in the store")
    alias: Alias = DEFAULT_ALIAS
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_length: int = Field(default=128, ge=4, le=8192, description="tokens a text, special tokens included")
    truncation_side: Side = "right"
    data: DataSource
    predecessor: Weights
    steps: tuple[AnyStep, ...] = Field(min_length=1)
    gate: Gate = Gate()
    report_to: tuple[str, ...] = Field(
        default=(), description="where training logs go besides the report: tensorboard, or any that transformers knows"
    )

    @model_validator(mode="after")
    def _names_that_differ(self) -> Self:
        if self.name == self.predecessor_name:
            raise ValueError("name and predecessor_name must differ: the store keeps both")
        return self

    @property
    def own_predecessor_steps(self) -> int:
        """How many of the first steps make the predecessor: the fine-tuning of an encoder, or none."""
        return int(self.steps[0].operator == "fine_tune")

    def check_steps(self, start: Shape) -> Shape:
        """Fold the steps over the shape of the weights that they start from.

        Raises:
            RecipeError: a step can't follow the one before it, or nothing would be compressed.
        """
        shape = start
        for index, step in enumerate(self.steps):
            try:
                shape = step.shape_after(shape)
            except RecipeError as error:
                raise RecipeError(f"steps.{index}.{error}") from error
        if shape.kind != "onnx":
            raise RecipeError("steps: the last ones must export the model: add {operator: export}")
        rest = {step.operator for step in self.steps[self.own_predecessor_steps :]}
        if rest == {"export"}:
            raise RecipeError("steps: none of them compresses the predecessor: add theseus or quantize")
        return shape


def load_recipe(reference: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by its name, or a file by its path, with `a.b=c` overrides applied.

    Relative paths in it are taken from the file's folder (from the working folder, for a shipped recipe).

    Raises:
        RecipeError: it isn't there, is not YAML, or has a key or value that is not allowed.
    """
    document = RECIPES.read(reference, Recipe.model_fields, overrides)
    return resolve(document.content, document.folder)


def resolve(document: dict[str, Any], folder: Path) -> Recipe:
    """The recipe of a parsed document, with its relative paths taken from `folder`.

    Raises:
        RecipeError: a key or value is not allowed.
    """
    recipe = checked(Recipe, document)
    places = {"data": located(recipe.data, folder), "predecessor": located(recipe.predecessor, folder)}
    return recipe.model_copy(update=places)


def located(part: Located, folder: Path) -> Located:
    """A source of data or weights, with its relative paths taken from `folder`."""
    keys = SPLITS if isinstance(part, FileSource) else ("path",) if isinstance(part, LocalWeights) else ()
    return part.model_copy(update={key: (folder / getattr(part, key)).absolute() for key in keys})


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
