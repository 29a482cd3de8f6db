"""Write a classifier as float32 ONNX with its tokenizer, through optimum."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from model_store.builder.step import Figures, Kind, StepContext, StepParameters


class Parameters(StepParameters):
    """How the file is written."""

    takes: ClassVar[tuple[Kind, ...]] = ("classifier",)
    gives: ClassVar[Kind] = "onnx"

    operator: Literal["export"]
    opset: int = Field(default=18, ge=14, le=20)
    trim: bool = Field(
        default=True, description="compute the last layer at position 0 alone where the head reads only that: lossless"
    )
    unpad: bool = Field(default=True, description="compute no padding: texts of any lengths share a batch, lossless")


def apply(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Export, then compare the file's logits with torch's on dev texts."""
    from model_store.builder.export import export_onnx

    return export_onnx(parameters, parent, output, context)
