"""BERT-of-Theseus: replace the predecessor's layers by fewer ones while the whole keeps working.

Source: Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing" (EMNLP 2020), sections 3.1-3.3.
Each of the n successor modules stands for L/n consecutive layers of the predecessor, or for as many as it is told. At
every step each module is drawn on its own to be used in place of those layers with probability p, and p grows until
only the successor is left. A draw in which none is used is repeated, so that each is used with p / (1 - (1 - p)^n):
0.46 of 0.3 with three modules, and always if there is one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from model_store.builder.errors import RecipeError
from model_store.builder.step import Figures, Kind, Shape, StepContext, TrainingParameters, spread_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Parameters(TrainingParameters):
    """The schedule of replacing, beside what every training step can be told.

    `p = min(1, k·t + b)` at step t, with b = `base_rate`. k is either given as `rate_per_step`, or follows from
    `replacing_share`, the share of the steps after which p reaches 1 and phase 2, the successor alone, begins.
    """

    takes: ClassVar[tuple[Kind, ...]] = ("classifier",)
    gives: ClassVar[Kind] = "classifier"

    operator: Literal["theseus"]
    layers: int | None = Field(default=None, ge=1, description="n: the successor's layers; divides the predecessor's")
    modules: tuple[PositiveInt, ...] | None = Field(
        default=None, min_length=1, description="in place of layers: how many predecessor layers each module stands for"
    )
    schedule: Literal["linear", "constant", "reversed"] = Field(
        default="linear", description="constant: p = b; reversed: p falls from 1 to b; both until phase 2"
    )
    initialisation: Literal["first", "spread"] = Field(
        default="first",
        description="successor layers start as the predecessor's first n, or each as the first that it replaces",
    )
    base_rate: float = Field(default=0.3, ge=0.01, le=1, description="b; a lower one would draw gates again and again")
    replacing_share: float | None = Field(
        default=None, ge=0, le=0.95, description="share of the steps in phase 1; 0.6 unless rate_per_step is given"
    )
    rate_per_step: float | None = Field(default=None, gt=0, description="k, in place of replacing_share")

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.layers is None) == (self.modules is None):
            raise ValueError("give layers, or modules where they are uneven: one of the two")
        if self.rate_per_step is not None:
            if self.replacing_share is not None:
                raise ValueError("give rate_per_step or replacing_share, not both")
            if self.schedule != "linear":
                raise ValueError("rate_per_step is for the linear schedule: use replacing_share")
        return self

    def shape_after(self, before: Shape) -> Shape:
        """The same model with n layers."""
        return replace(super().shape_after(before), layers=len(self.spans(before.layers)))

    def spans(self, count: int) -> tuple[int, ...]:
        """How many of the predecessor's `count` layers each module stands for.

        Raises:
            RecipeError: they don't add up to `count`, or nothing would be replaced by less.
        """
        if self.modules is not None:
            if sum(self.modules) != count or len(self.modules) == count:
                raise RecipeError(
                    f"modules: {', '.join(map(str, self.modules))} is not the {count} layers it replaces, in fewer"
                    f" modules: their sum is {sum(self.modules)}, their number {len(self.modules)}"
                )
            return self.modules
        modules = self.layers or 1
        if count % modules or modules == count:
            fitting = [str(n) for n in range(1, count) if count % n == 0]
            raise RecipeError(
                f"layers: {modules} does not divide the {count} layers it replaces:"
                f" use {', '.join(fitting) or 'a predecessor with more layers'}"
            )
        return (count // modules,) * modules

    def check_rows(self, train_rows: int) -> None:
        """Refuse a schedule that is longer than training: phase 2 would never begin."""
        total = self.total_steps(train_rows)
        if self.phase_two(total) > total - 1:
            key, remedy = (
                ("replacing_share", "lower it, or train for more epochs")
                if self.rate_per_step is None
                else ("rate_per_step", "raise it, or use replacing_share")
            )
            raise RecipeError(
                f"{key}: p reaches 1 only after {self.phase_two(total):.1f} of {total} steps, so the successor would"
                f" never train alone: {remedy}"
            )

    def kept_layers(self, count: int) -> tuple[int, ...]:
        """Which of the predecessor's `count` layers the successor starts from."""
        spans = self.spans(count)
        return tuple(range(len(spans))) if self.initialisation == "first" else spread_layers(spans)

    def phase_two(self, total: int) -> float:
        """The step at which phase 2 begins."""
        if self.rate_per_step is not None:
            return (1 - self.base_rate) / self.rate_per_step
        return (0.6 if self.replacing_share is None else self.replacing_share) * total

    def rate(self, step: int, total: int) -> float:
        """P at a step, 0-based, of `total`."""
        end = self.phase_two(total)
        if step >= end:
            return 1.0
        grown = (1 - self.base_rate) * step / end
        return {
            "linear": self.base_rate + grown,
            "constant": self.base_rate,
            "reversed": 1 - grown,
        }[self.schedule]


def draw_gates(rate: float, modules: int, seed: int, step: int) -> list[bool]:
    """Which successor modules are used at a step, each drawn alone; drawn again when none is, for want of a gradient.

    A function of (seed, step) and of nothing else, so that a resumed training draws what it would have drawn.
    """
    generator = np.random.default_rng((seed, step))
    while True:
        gates = generator.random(modules) < rate
        if gates.any():
            return [bool(gate) for gate in gates]


def apply(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Train the successor's layers inside the predecessor; the result has the predecessor's embeddings and head.

    As in the paper's code, all else stays frozen in both phases, and frozen layers keep their dropout while training.
    """
    from model_store.builder.layers import ReplaceableLayers, set_layers, stack_of
    from model_store.builder.training import Method, train

    class Replacing(Method):
        routed: ReplaceableLayers
        rate = 0.0

        def __init__(self) -> None:
            self.opened: list[list[bool]] = []  # the gates of the steps since figures were last asked for

        def build_student(self, parent: PreTrainedModel) -> PreTrainedModel:
            parent.requires_grad_(requires_grad=False)
            stack = stack_of(parent)
            self.routed = ReplaceableLayers(stack, parameters.kept_layers(len(stack)), parameters.spans(len(stack)))
            set_layers(parent, self.routed)
            return parent

        def trainable(self, student: PreTrainedModel) -> list[torch.nn.Parameter]:  # noqa: ARG002
            return list(self.routed.successor.parameters())

        def before_step(self, step: int, total: int) -> None:
            self.rate = parameters.rate(step, total)
            self.routed.gates = draw_gates(self.rate, len(self.routed.successor), context.seed, step)
            self.opened.append(self.routed.gates)

        def patient_from(self, total: int) -> float:
            return parameters.phase_two(total)

        def figures(self) -> dict[str, float]:
            shares = np.mean(self.opened, axis=0)
            self.opened = []
            return {"replacing_rate": self.rate} | {f"gate_{i}": float(share) for i, share in enumerate(shares)}

        def finish(self, student: PreTrainedModel) -> PreTrainedModel:
            set_layers(student, self.routed.successor)
            return student

    return train(Replacing(), parameters, parent, output, context)
