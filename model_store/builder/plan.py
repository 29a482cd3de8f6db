"""What a build works from: a recipe with its data and weights, checked, and the models in the making.

Every step's result has a key, so that it is computed once; see `runner`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model_store.builder.data import TaskData, load_data
from model_store.builder.errors import BuildExtraError, LaunchError, NotFetchedError, RecipeError
from model_store.builder.progress import Progress
from model_store.builder.recipe import Recipe
from model_store.builder.runner import Result, Runner, key_of
from model_store.builder.step import Apply, Figures, StepContext, StepParameters, operator_module
from model_store.builder.weights import PretrainedInfo, inspect_weights
from model_store.classifier import check_runtime_installation
from model_store.encoding import TextEncoder
from model_store.errors import ClassifierError
from model_store.extras import remedy
from model_store.manifest import TOKENIZER_FILE, InputContract, Lineage, ScoreContract

EXTRA_MODULES = ("torch", "transformers", "optimum", "onnx", "accelerate", "sklearn", "matplotlib")
PACKAGES = ("numpy", "onnx", "onnxruntime", "optimum", "scikit-learn", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Chain:
    """A model in the making: the folder that holds it, and the results that led there."""

    key: str
    folder: Path
    results: tuple[Result, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with its data and weights at hand, checked: what is left is work."""

    recipe: Recipe
    data: TaskData
    weights: PretrainedInfo
    scores: ScoreContract
    inputs: InputContract
    lineage: Lineage

    @property
    def start(self) -> Chain:
        """The weights before the first step."""
        return Chain(key_of(self.weights.sha256, self.weights.tokenizer_sha256), self.weights.folder)

    @property
    def exporting(self) -> tuple[StepParameters, ...]:
        """The recipe's own export step, which the predecessor goes through too."""
        return tuple(step for step in self.recipe.steps if step.operator == "export")[:1]

    @property
    def summary(self) -> str:
        """One line on the data."""
        splits = self.data.lineage.splits
        sizes = ", ".join(f"{name} {split.rows}" for name, split in splits.items())
        return f"data: {sizes}; dropped for overlap: {sum(split.dropped_overlap for split in splits.values())}"

    def for_recipe(self, recipe: Recipe) -> Plan:
        """The plan of another recipe on the same data and weights.

        Raises:
            RecipeError: it can't work.
        """
        _check_recipe(recipe, self.weights, len(self.data.splits["train"]))
        _check_room(recipe, self.weights, pair=self.data.pair)
        lineage = self.lineage.model_copy(update={"recipe": recipe.model_dump(mode="json"), "seed": recipe.seed})
        return replace(self, recipe=recipe, lineage=lineage)

    def key(self, before: str, step: StepParameters) -> str:
        """Names the result of a step: a hash of all that it depends on.

        That is its parent, operator, parameters, seed, data, what dev is judged by, and the packages that compute.
        """
        metric = self.data.metric
        parts = (before, step.model_dump(mode="json"), self.recipe.seed, self.data.digest, metric.name, metric.positive)
        return key_of(*parts, self.inputs.model_dump(mode="json"), self.lineage.code_version, self.lineage.packages)

    def context(self, progress: Progress, scratch: Path) -> StepContext:
        """What a step may use."""
        recipe = self.recipe
        return StepContext(
            self.data, self.scores, self.inputs, self.lineage, recipe.seed, progress, scratch, recipe.report_to
        )

    def run(self, runner: Runner, chain: Chain, steps: Sequence[StepParameters]) -> Chain:
        """Run steps one after the other, or take their kept results."""
        for step in steps:
            key, parent = self.key(chain.key, step), chain.folder

            def work(output: Path, scratch: Path, step: StepParameters = step, parent: Path = parent) -> Figures:
                apply: Apply = operator_module(step.operator).apply
                return apply(step, parent, output, self.context(runner.progress, scratch))

            result = runner.run(step.operator, key, work)
            chain = Chain(key, result.folder, (*chain.results, result))
        return chain

    def kept(self, runner: Runner) -> list[bool]:
        """For each step of the recipe, whether its result is there already."""
        return [runner.keeps(folder) for folder in self.folders(runner, self.recipe.steps)]

    def folders(self, runner: Runner, steps: Sequence[StepParameters]) -> list[Path]:
        """Where the results of steps are, or will be, that start from the weights."""
        key, found = self.start.key, []
        for step in steps:
            key = self.key(key, step)
            found.append(runner.folder(step.operator, key))
        return found


def make_plan(recipe: Recipe, *, offline: bool = False) -> Plan:
    """Get the weights and the data, and refuse what can't work before anything is trained.

    Raises:
        BuildError: the message names the key and what is allowed.
        NotFetchedError: `offline`, and something would have to be fetched.
    """
    try:
        weights = inspect_weights(recipe.predecessor.folder(offline=offline))
    except NotFetchedError:
        recipe.data.read(offline=True)  # what is wrong with that can be said all the same
        raise
    _check_recipe(recipe, weights)
    data = load_data(recipe.data, weights.labels, offline=offline)
    _check_recipe(recipe, weights, len(data.splits["train"]))
    _check_room(recipe, weights, pair=data.pair)
    functions = {"single_label": "softmax", "multi_label": "sigmoid", "regression": "identity"}
    return Plan(
        recipe=recipe,
        data=data,
        weights=weights,
        scores=ScoreContract.model_validate(
            {"problem": data.problem, "labels": data.labels, "function": functions[data.problem]}
        ),
        inputs=InputContract(pair=data.pair, max_length=recipe.max_length, truncation_side=recipe.truncation_side),
        lineage=Lineage(
            predecessor=None,
            encoder=recipe.predecessor.describe(),
            encoder_sha256=weights.sha256,
            encoder_licence=recipe.predecessor.licence,
            recipe=recipe.model_dump(mode="json"),
            data=data.lineage,
            seed=recipe.seed,
            code_version=importlib.metadata.version("successor"),
            packages=_package_versions(),
        ),
    )


def _check_recipe(recipe: Recipe, weights: PretrainedInfo, train_rows: int | None = None) -> None:
    recipe.check_steps(weights.shape)
    if weights.max_positions is not None and recipe.max_length > weights.max_positions:
        raise RecipeError(f"max_length: the predecessor reads at most {weights.max_positions} tokens")
    for index, step in enumerate(recipe.steps if train_rows is not None else ()):
        try:
            step.check_rows(train_rows or 0)
        except RecipeError as error:
            raise RecipeError(f"steps.{index}.{error}") from error


def _check_room(recipe: Recipe, weights: PretrainedInfo, *, pair: bool) -> None:
    """Refuse a length that the special tokens fill, where the tokenizer is there as it will be served."""
    try:
        encoder = TextEncoder(weights.folder / TOKENIZER_FILE, InputContract(pair=pair, max_length=recipe.max_length))
    except ClassifierError:  # it will be converted, or refused, by the first step
        return
    if encoder.room < 1 + pair:
        least = recipe.max_length - encoder.room + 1 + pair
        raise RecipeError(
            f"max_length: {recipe.max_length} tokens leave no room for {'both texts' if pair else 'a text'} beside the"
            f" special ones: use at least {least}"
        )


def check_installation() -> None:
    """Refuse to start a build that would fail on its way.

    Raises:
        BuildExtraError: packages of the extra are missing.
        LaunchError: it was started as one of several processes.
        RuntimeInstallationError: ONNX Runtime is missing.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise LaunchError(
            f"this is one of {os.environ['WORLD_SIZE']} processes: start one, without accelerate launch or torchrun;"
            " it uses every GPU that CUDA_VISIBLE_DEVICES shows it"
        )
    missing = [name for name in EXTRA_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise BuildExtraError(f"a build needs {', '.join(missing)}: {remedy('build')}")
    check_runtime_installation()


def _package_versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
