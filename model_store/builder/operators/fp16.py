"""Add a 16-bit floating-point file for GPUs beside the float32 one."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from model_store.builder.step import Figures, Kind, StepContext, StepParameters


class Parameters(StepParameters):
    """What the file must reach on dev."""

    takes: ClassVar[tuple[Kind, ...]] = ("onnx",)
    gives: ClassVar[Kind] = "onnx"

    operator: Literal["fp16"]
    min_agreement: float = Field(default=0.99, ge=0, le=1, description="on dev, with the float32 file")


def apply(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Write `fp16.onnx` beside what is there, compared with float32 on dev."""
    from model_store.builder.half_precision import add_fp16

    return add_fp16(parent, output, context, min_agreement=parameters.min_agreement)
