"""The fp16 file: made from a real tiny model, run by the server's classifier, refused when it decides otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from model_store.builder.artifacts import FP16_FILE, FP32_FILE, INT8_FILE, open_candidate, read_artifacts
from model_store.builder.errors import ExportError
from model_store.builder.operators import fp16, quantize
from model_store.builder.step import StepContext
from model_store.classifier import PROVIDERS
from model_store.encoding import TextItem
from model_store.manifest import best_artifact
from tests.test_quantization import context, parameters, parent

__all__ = ["context", "parent"]

CUDA = PROVIDERS["cuda"]


def added(parent: Path, output: Path, context: StepContext, **changes: object) -> dict[str, float]:
    output.mkdir()
    return fp16.apply(fp16.Parameters.model_validate({"operator": "fp16"} | changes), parent, output, context)


def test_its_weights_are_halves_and_its_logits_near_those_of_float32(
    parent: Path, tmp_path: Path, context: StepContext
) -> None:
    figures = added(parent, tmp_path / "half", context)
    exact, half = read_artifacts(tmp_path / "half")
    assert (half.file, half.precision, half.batch_invariant) == (FP16_FILE, "fp16", True)
    assert half.max_logit_difference == figures["max_logit_difference"] < 0.01
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "half" / FP16_FILE).graph.initializer}
    assert TensorProto.FLOAT16 in types
    assert TensorProto.FLOAT not in types
    one, other = (open_candidate(tmp_path / "half", artifact, context) for artifact in (exact, half))
    batch = [one.encode(TextItem("a good film"))]
    np.testing.assert_allclose(other.run(batch), one.run(batch), atol=0.01)


def test_a_gpu_that_was_not_measured_takes_it_and_the_cpu_does_not(
    parent: Path, tmp_path: Path, context: StepContext
) -> None:
    added(parent, tmp_path / "half", context)
    artifacts = read_artifacts(tmp_path / "half")
    assert best_artifact(artifacts, CUDA).file == FP16_FILE
    assert best_artifact(artifacts, PROVIDERS["cpu"]).file == FP32_FILE


def test_quantising_before_or_after_keeps_it(parent: Path, tmp_path: Path, context: StepContext) -> None:
    added(parent, tmp_path / "half", context)
    for start, output in ((tmp_path / "half", tmp_path / "after"), (parent, tmp_path / "before")):
        output.mkdir()
        quantize.apply(parameters(candidates=["dynamic-u8u8"]), start, output, context)
    added(tmp_path / "before", tmp_path / "both", context)
    for folder in ("after", "both"):
        files = {artifact.file for artifact in read_artifacts(tmp_path / folder)}
        assert files == {FP32_FILE, FP16_FILE, INT8_FILE}
        assert files <= {path.name for path in (tmp_path / folder).iterdir()}


def test_a_file_that_decides_otherwise_is_refused(parent: Path, tmp_path: Path, context: StepContext) -> None:
    model = onnx.load(parent / FP32_FILE)
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "bias"]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[:] = [3000.2, 3000.9]  # halves near 3000 are two apart
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "bias"))
    onnx.save(model, parent / FP32_FILE)
    with pytest.raises(ExportError, match="agrees with float32 on"):
        added(parent, tmp_path / "half", context, min_agreement=1.0)
