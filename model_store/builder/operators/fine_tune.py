"""Train every weight of a model on the task: makes the predecessor of an encoder, or tunes a classifier further.

Source: Devlin et al., "BERT" (2019), section 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from model_store.builder.step import Figures, Kind, StepContext, TrainingParameters


class Parameters(TrainingParameters):
    """Plain training; nothing beyond what every training step can be told."""

    takes: ClassVar[tuple[Kind, ...]] = ("encoder", "classifier")
    gives: ClassVar[Kind] = "classifier"

    operator: Literal["fine_tune"]


def apply(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Train all parameters with the task's loss."""
    from model_store.builder.training import Method, train

    return train(Method(), parameters, parent, output, context)
