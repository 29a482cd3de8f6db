"""Make int8 candidates of a float32 ONNX file, measure each as the server runs it, keep the best good one."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field

from model_store.builder.step import Figures, Kind, StepContext, StepParameters

Candidate = Literal[
    "per-token-u8s8",
    "dynamic-u8s8",
    "dynamic-u8u8",
    "static-u8s8",
    "static-u8s8-const",
    "static-qdq-u8u8",
]
ALL_CANDIDATES: tuple[Candidate, ...] = get_args(Candidate)


class Parameters(StepParameters):
    """Which candidates are made, and what one must reach on dev to be chosen."""

    takes: ClassVar[tuple[Kind, ...]] = ("onnx",)
    gives: ClassVar[Kind] = "onnx"

    operator: Literal["quantize"]
    candidates: tuple[Candidate, ...] = Field(default=ALL_CANDIDATES, min_length=1)
    target: Literal["x86_64", "arm64"] = Field(
        default="x86_64", description="arm64: signed weights keep their full range, which x86 without VNNI can't add up"
    )
    embeddings: bool = Field(default=True, description="quantise embedding tables too: smaller, not faster")
    min_agreement: float = Field(default=0.95, ge=0, le=1, description="on dev, with the float32 file")
    max_metric_drop: float = Field(default=0.01, ge=0, description="on dev, float32 minus int8")
    max_megabytes: float | None = Field(default=None, gt=0)
    near: float = Field(
        default=0.15, ge=0, description="candidates this close to the fastest compete on agreement, not on time"
    )
    calibration_rows: int = Field(default=256, ge=1, description="training texts that set the static scales")
    timing_texts: int = Field(default=100, ge=1, description="dev texts that are timed, with one thread")


def apply(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Write `int8.onnx` beside `fp32.onnx`, and what every candidate was worth."""
    from model_store.builder.quantization import quantize

    return quantize(parameters, parent, output, context)
