"""Delete layers by a rule, without training: a `fine_tune` step after it makes the truncated student that is compared.

It takes no encoder: what nobody has fine-tuned is no predecessor to compare with.

Source: Sajjad et al., "On the Effect of Dropping Layers of Pre-trained Transformer Models" ("Poor Man's BERT", 2020),
section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from model_store.builder.step import FewerLayers, Figures, Kind, Shape, StepContext, StepParameters

Strategy = Literal["top", "bottom", "alternate", "symmetric", "contribution"]


class Parameters(FewerLayers, StepParameters):
    """Which layers go."""

    takes: ClassVar[tuple[Kind, ...]] = ("classifier",)
    gives: ClassVar[Kind] = "classifier"

    operator: Literal["drop_layers"]
    strategy: Strategy = Field(
        default="top",
        description="the top ones, the bottom ones, every second from the top, those in the middle,"
        " or those that change their input least",
    )
    probe_rows: int = Field(default=256, ge=1, description="training texts that contributions are measured on")

    def shape_after(self, before: Shape) -> Shape:
        """The same model with n layers."""
        self.check_fewer(before)
        return replace(super().shape_after(before), layers=self.layers)

    def kept_layers(self, count: int) -> tuple[int, ...]:
        """Which layers stay; of `contribution`, which goes by the weights, a choice with gaps as it may make one."""
        return kept_by_place("alternate" if self.strategy == "contribution" else self.strategy, count, self.layers)


def kept_by_place(strategy: Strategy, count: int, keep: int) -> tuple[int, ...]:
    """Which of `count` layers, 0-based, a strategy keeps that goes by their place alone."""
    if strategy == "top":
        return tuple(range(keep))
    if strategy == "bottom":
        return tuple(range(count - keep, count))
    if strategy == "symmetric":
        below = -(-keep // 2)
        return (*range(below), *range(count - keep + below, count))
    left = list(range(count))
    while len(left) > keep:  # more than half to drop: every second of those that are left
        dropped = left[::-2][: len(left) - keep]
        left = [layer for layer in left if layer not in dropped]
    return tuple(left)


def kept_by_contribution(similarities: Sequence[float], keep: int) -> tuple[int, ...]:
    """The layers, 0-based, whose output is least like their input: `similarities` has each one's mean cosine."""
    return tuple(sorted(sorted(range(len(similarities)), key=similarities.__getitem__)[:keep]))


def apply(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Write the model with fewer layers, and which of the parent's they are."""
    import transformers

    from model_store.builder.layers import keep_layers, layer_similarities, stack_of
    from model_store.builder.loading import load_classifier, quiet_libraries, save_classifier, save_tokenizer

    quiet_libraries()
    transformers.set_seed(context.seed)  # for a new head
    model = load_classifier(parent, context).eval()
    save_tokenizer(parent, output)
    figures: Figures = {}
    if parameters.strategy == "contribution":
        similarities = layer_similarities(model, output, context, parameters.probe_rows)
        figures["similarities"] = similarities
        kept = kept_by_contribution(similarities, parameters.layers)
    else:
        kept = parameters.kept_layers(len(stack_of(model)))
    keep_layers(model, kept)
    save_classifier(model, output, context)
    return figures | {"kept": list(kept)}
