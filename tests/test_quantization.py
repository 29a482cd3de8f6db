from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from model_store.builder.artifacts import (
    FP32_FILE,
    INT8_FILE,
    new_artifact,
    open_candidate,
    read_artifacts,
    write_artifacts,
)
from model_store.builder.data import load_data
from model_store.builder.errors import QuantizeError
from model_store.builder.evaluate import measured
from model_store.builder.operators.quantize import ALL_CANDIDATES, Parameters, apply
from model_store.builder.quantization import LARGEST_SAFE_WEIGHT, Verdict, _judge, choose, largest_signed_weight
from model_store.builder.sources import FileSource
from model_store.builder.step import StepContext
from model_store.manifest import TOKENIZER_FILE, LatencyMeasurement
from model_store.store import ModelStore
from tests.tiny import make_tiny_version
from tests.tiny_torch import Recorder, write_records


@pytest.fixture
def context(tmp_path: Path, store: ModelStore) -> StepContext:
    """Tiny texts and the contracts of a tiny published model."""
    manifest = store.manifest(make_tiny_version(store))
    files = {split: Path(path) for split, path in write_records(tmp_path / "data").items()}
    data = load_data(FileSource(source="files", licence="CC0-1.0", **files))
    (tmp_path / "scratch").mkdir()
    return StepContext(data, manifest.scores, manifest.inputs, manifest.lineage, 0, Recorder(), tmp_path / "scratch")


@pytest.fixture
def parent(tmp_path: Path, store: ModelStore, context: StepContext) -> Path:
    """An export's folder: a float32 file, measured, with its tokenizer."""
    folder = tmp_path / "parent"
    folder.mkdir()
    for file in (FP32_FILE, TOKENIZER_FILE):
        shutil.copyfile(store.root / "tiny" / "1" / file, folder / file)
    classifier = open_candidate(folder, new_artifact(folder, FP32_FILE, "fp32", "export"), context)
    write_artifacts(folder, [measured(classifier, context.data)])
    return folder


def parameters(**changes: object) -> Parameters:
    given = {"operator": "quantize", "min_agreement": 0, "max_metric_drop": 1, "timing_texts": 5, "calibration_rows": 8}
    return Parameters.model_validate(given | changes)


def test_every_candidate_is_made_measured_and_reported_and_one_is_kept(
    tmp_path: Path, parent: Path, context: StepContext
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    figures = apply(parameters(), parent, output, context)
    assert [entry["method"] for entry in figures["candidates"]] == list(ALL_CANDIDATES)
    exact, chosen = read_artifacts(output)
    assert (exact.file, chosen.file, chosen.precision) == (FP32_FILE, INT8_FILE, "int8")
    assert chosen.method == figures["chosen"]
    assert chosen.sha256 == new_artifact(output, INT8_FILE, "int8", "again").sha256
    assert exact.latency[0].p50_ms > 0
    assert json.dumps(figures)
    assert not list(context.scratch.iterdir())


def test_scales_that_span_the_batch_depend_on_batch_mates_and_others_do_not(
    tmp_path: Path, parent: Path, context: StepContext
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    invariant = {
        entry["method"]: entry["batch_invariant"]
        for entry in apply(parameters(), parent, output, context)["candidates"]
    }
    assert invariant == {name: name.startswith(("static", "per-token")) for name in ALL_CANDIDATES}


def test_when_no_candidate_is_good_enough_every_reason_is_said(
    tmp_path: Path, parent: Path, context: StepContext
) -> None:
    (tmp_path / "output").mkdir()
    with pytest.raises(QuantizeError, match="no int8 candidate is good enough") as refusal:
        apply(parameters(max_megabytes=1e-6), parent, tmp_path / "output", context)
    assert str(refusal.value).count("MB is more than") == len(ALL_CANDIDATES)


def test_a_candidate_is_rejected_for_weights_that_saturate_for_disagreement_and_for_a_lower_metric(
    tmp_path: Path, parent: Path
) -> None:
    signed_product(tmp_path / "m.onnx", np.array([[127]], dtype=np.int8))
    reference = read_artifacts(parent)[0].model_copy(update={"dev_metric": 0.9})
    latency = LatencyMeasurement(provider="cpu", machine="any", threads=1, tokens=5, p50_ms=1.0, texts=1)
    poor = new_artifact(tmp_path, "m.onnx", "int8", "m").model_copy(
        update={"dev_metric": 0.8, "agreement": 0.9, "latency": (latency,)}
    )
    rejected = _judge(parameters(min_agreement=0.95, max_metric_drop=0.05), reference, poor, tmp_path).rejected
    assert rejected == (
        "a signed weight of 127 saturates on processors without VNNI; agreement 0.900 is below 0.95;"
        " the dev metric falls by 0.100, more than 0.05"
    )


def verdict(busy_ms: float, agreement: float, rejected: str = "") -> Verdict:
    return Verdict("x", 1, 0.9, agreement, batch_invariant=True, p50_ms=9.0, busy_ms=busy_ms, rejected=rejected)


def test_among_about_equally_fast_candidates_the_most_faithful_is_chosen() -> None:
    assert choose([verdict(1.0, 0.97), verdict(1.04, 0.99), verdict(1.2, 1.0)], near=0.05) == 1
    assert choose([verdict(1.0, 0.97), verdict(1.04, 0.99), verdict(1.2, 1.0)], near=0.0) == 0


def test_a_rejected_candidate_is_never_chosen_however_fast_it_is() -> None:
    assert choose([verdict(0.1, 1.0, "too large"), verdict(1.0, 0.9)], near=0.05) == 1
    assert choose([verdict(0.1, 1.0, "too large")], near=0.05) is None


def signed_product(path: Path, weight: NDArray[np.int8]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, len(weight)])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph), str(path))
    return path


def test_the_largest_signed_weight_is_that_of_products_only(tmp_path: Path) -> None:
    path = signed_product(tmp_path / "m.onnx", np.array([[3, -127], [64, 5]], dtype=np.int8))
    assert largest_signed_weight(path) == 127


def test_a_full_range_of_signed_weights_is_found_in_a_real_file_and_ours_are_safe(
    tmp_path: Path, parent: Path, context: StepContext
) -> None:
    for reduced in (True, False):
        quantize_dynamic(
            parent / FP32_FILE,
            tmp_path / f"{reduced}.onnx",
            weight_type=QuantType.QInt8,
            reduce_range=reduced,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    assert largest_signed_weight(tmp_path / "True.onnx") <= LARGEST_SAFE_WEIGHT
    assert largest_signed_weight(tmp_path / "False.onnx") > LARGEST_SAFE_WEIGHT


@pytest.mark.parametrize("target", ["x86_64", "arm64"])
def test_only_a_file_for_arm64_has_signed_weights_of_full_range(
    tmp_path: Path, parent: Path, context: StepContext, target: str
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    apply(parameters(candidates=["dynamic-u8s8"], target=target), parent, output, context)
    assert (largest_signed_weight(output / INT8_FILE) > LARGEST_SAFE_WEIGHT) == (target == "arm64")


def test_without_signed_products_nothing_can_saturate(parent: Path) -> None:
    assert largest_signed_weight(parent / FP32_FILE) == 0


def test_embeddings_are_left_alone_where_the_recipe_says_so(tmp_path: Path, parent: Path, context: StepContext) -> None:
    sizes = {}
    for embeddings in (True, False):
        output = tmp_path / str(embeddings)
        output.mkdir()
        figures = apply(parameters(embeddings=embeddings, candidates=["dynamic-u8s8"]), parent, output, context)
        sizes[embeddings] = figures["candidates"][0]["bytes"]
    operators = {node.op_type for node in onnx.load(str(tmp_path / "False" / INT8_FILE)).graph.node}
    assert "MatMulInteger" in operators
    assert sizes[True] != sizes[False]
