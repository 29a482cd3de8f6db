"""The float32 file in 16-bit floating point: half the bytes, and faster where a processor computes in it, as GPUs do.

Its time is not measured here: on the CPU that builds, it says nothing. A server on a provider that no file was measured
on takes it first.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_store.builder.artifacts import (
    FP16_FILE,
    FP32_FILE,
    copy_artifacts,
    new_artifact,
    open_candidate,
    read_artifacts,
    write_artifacts,
)
from model_store.builder.errors import ExportError
from model_store.builder.evaluate import measured, run_classifier
from model_store.builder.step import Figures, StepContext


def add_fp16(parent: Path, output: Path, context: StepContext, *, min_agreement: float) -> Figures:
    """Copy the files that are there, write `fp16.onnx`, and report how close it is to float32.

    Inputs and outputs keep their types, so that the file is a drop-in replacement.

    Raises:
        ExportError: the file decides otherwise than float32 on too many dev texts.
    """
    kept = copy_artifacts(parent, output, but=FP16_FILE)
    half = convert_float_to_float16(onnx.load(str(parent / FP32_FILE)), keep_io_types=True)
    onnx.save(half, str(output / FP16_FILE))
    exact = open_candidate(parent, read_artifacts(parent)[0], context)
    reference = run_classifier(exact, [row.item for row in context.data.splits["dev"]])
    classifier = open_candidate(output, new_artifact(output, FP16_FILE, "fp16", "convert"), context)
    artifact = measured(classifier, context.data, reference)
    if artifact.agreement < min_agreement:
        raise ExportError(
            f"the fp16 file agrees with float32 on {artifact.agreement:.3f} of dev, less than {min_agreement}:"
            " leave the step out, or relax min_agreement"
        )
    write_artifacts(output, [*kept, artifact])
    return {"agreement": artifact.agreement, "max_logit_difference": artifact.max_logit_difference}
