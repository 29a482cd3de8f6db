"""Distil a classifier into a student that keeps some of its layers: logits, and hidden states where that is asked for.

Sources: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), for the logits; Sun et al., "Patient
Knowledge Distillation for BERT Model Compression" (EMNLP 2019), section 3, for the hidden states.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model_store.builder.step import (
    FewerLayers,
    Figures,
    Kind,
    Shape,
    StepContext,
    TrainingParameters,
    even_spans,
    spread_layers,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    from model_store.builder.batches import Batch
    from model_store.manifest import Problem


class Parameters(FewerLayers, TrainingParameters):
    """The mix of losses, beside what every training step can be told.

    `(1 - alpha)·task + alpha·distillation(T) + patient_weight·patient`, see `losses`.
    """

    takes: ClassVar[tuple[Kind, ...]] = ("classifier",)
    gives: ClassVar[Kind] = "classifier"

    operator: Literal["distill"]
    initialisation: Literal["first", "spread"] = Field(
        default="first", description="the student starts as the teacher's first n layers, or as n spread over its depth"
    )
    temperature: float = Field(default=2.0, gt=0, description="T: softens both sides' scores")
    alpha: float = Field(default=0.5, ge=0, le=1, description="the weight of the teacher's logits against the labels")
    patient_weight: float = Field(
        default=0.0, ge=0, description="the weight of the hidden states at position 0, below the last layer"
    )

    @model_validator(mode="after")
    def _something_to_match(self) -> Self:
        if self.patient_weight and self.layers == 1:
            raise ValueError("patient_weight: a student of 1 layer has none below its last: set it to 0")
        return self

    def shape_after(self, before: Shape) -> Shape:
        """The same model with n layers."""
        self.check_fewer(before)
        return replace(super().shape_after(before), layers=self.layers)

    def kept_layers(self, count: int) -> tuple[int, ...]:
        """Which of the teacher's `count` layers the student starts from."""
        if self.initialisation == "first":
            return tuple(range(self.layers))
        return spread_layers(even_spans(count, self.layers))

    def matched_layers(self, count: int) -> tuple[int, ...]:
        """The teacher's layer, counted from 1, whose output each but the last of the student's layers learns."""
        return tuple(itertools.accumulate(even_spans(count, self.layers)))[:-1]


def apply(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Train every parameter of the student against the labels and its frozen teacher, the model in `parent`."""
    import copy

    import torch

    from model_store.builder.layers import keep_layers, stack_of
    from model_store.builder.losses import distillation_loss, patient_loss, task_loss
    from model_store.builder.training import Method, train

    class Distilling(Method):
        teacher: torch.nn.Module
        matched: tuple[int, ...]

        def __init__(self) -> None:
            self.parts: list[dict[str, float]] = []  # of the batches since figures were last asked for

        def build_student(self, parent: PreTrainedModel) -> PreTrainedModel:
            self.teacher = copy.deepcopy(parent).eval().requires_grad_(requires_grad=False)
            count = len(stack_of(parent))
            self.matched = parameters.matched_layers(count) if parameters.patient_weight else ()
            keep_layers(parent, parameters.kept_layers(count))
            return parent

        def forward(self, student: torch.nn.Module, inputs: Batch) -> SequenceClassifierOutput:
            outputs: SequenceClassifierOutput = student(**inputs, output_hidden_states=bool(self.matched))
            return outputs

        def loss(self, outputs: SequenceClassifierOutput, batch: Batch, problem: Problem) -> torch.Tensor:
            texts = {name: tensor for name, tensor in batch.items() if name != "labels"}
            with torch.no_grad():
                taught = self.teacher.to(batch["labels"].device)(**texts, output_hidden_states=bool(self.matched))
            assert outputs.logits is not None  # noqa: S101  # transformers types it as optional
            task = task_loss(problem, outputs.logits, batch["labels"])
            soft = distillation_loss(problem, outputs.logits, taught.logits, parameters.temperature)
            parts = {"task_loss": task.item(), "distillation_loss": soft.item()}
            whole = (1 - parameters.alpha) * task + parameters.alpha * soft
            if self.matched:
                assert outputs.hidden_states is not None  # noqa: S101  # asked for in `forward`
                # Entry 0 is the embeddings' output, entry i that of layer i.
                patient = patient_loss(
                    outputs.hidden_states[1 : parameters.layers],
                    [taught.hidden_states[layer] for layer in self.matched],
                )
                parts["patient_loss"] = patient.item()
                whole = whole + parameters.patient_weight * patient
            self.parts.append(parts)
            return whole

        def figures(self) -> dict[str, float]:
            means = {name: statistics.fmean(parts[name] for parts in self.parts) for name in self.parts[0]}
            self.parts = []
            return means

    return train(Distilling(), parameters, parent, output, context)
