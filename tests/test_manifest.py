"""The types of the manifest: what they take, what they refuse, and which file they choose."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_store.errors import InvalidReferenceError
from model_store.manifest import (
    MAX_VERSION,
    Artifact,
    Check,
    FileDigest,
    InputContract,
    LatencyMeasurement,
    Manifest,
    ModelId,
    ScoreContract,
    check_alias,
    check_file_name,
    check_name,
)
from tests.fakes import fake_manifest

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def artifact(precision: str, **latencies: float) -> Artifact:
    measured = [
        LatencyMeasurement(provider=provider, machine="m", threads=1, tokens=20, p50_ms=p50_ms, texts=10)
        for provider, p50_ms in latencies.items()
    ]
    fields = fake_manifest().artifacts[0].model_dump() | {"file": f"{precision}.onnx", "precision": precision}
    return Artifact.model_validate(fields | {"latency": measured})


def manifest_with(**changes: object) -> Manifest:
    return Manifest.model_validate(fake_manifest().model_dump() | changes)


@pytest.mark.parametrize("name", ["a", "0", "sentiment", "sst2-6l.theseus_v1", "x" * 64])
def test_a_plain_lower_case_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a..b", "A", "a-", "-a", "é", "a b", "a\n", "x" * 65, "a\0", "²"]
)
def test_any_other_name_is_refused_in_one_short_line(name: str) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        check_name(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("alias", ["3", "0", "²", "٣"])
def test_an_alias_that_reads_as_a_number_is_refused(alias: str) -> None:
    with pytest.raises(InvalidReferenceError, match="version number"):
        check_alias(alias)


@given(st.text())
def test_a_file_name_that_is_taken_stays_in_its_folder(file: str) -> None:
    try:
        check_file_name(file)
    except InvalidReferenceError:
        return
    assert "/" not in file
    assert "\\" not in file
    assert not file.startswith(".")


def test_a_model_id_is_written_name_at_version() -> None:
    assert str(ModelId(name="sentiment", version=3)) == "sentiment@3"


@pytest.mark.parametrize(("name", "version"), [("../x", 1), ("a", 0), ("a", -1), ("a", MAX_VERSION + 1)])
def test_a_model_id_outside_the_store_cannot_be_made(name: str, version: int) -> None:
    with pytest.raises(ValidationError):
        ModelId(name=name, version=version)


def test_a_manifest_survives_its_own_json() -> None:
    manifest = fake_manifest(pair=True)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"schema_version": 2},
        {"name": "../x"},
        {"version": 0},
        {"artifacts": []},
        {"files": []},
        {"measurements": {"accuracy": math.nan}},
        {"files": [{"file": name, "sha256": "0" * 64, "bytes": 1} for name in ("tokenizer.json", "fp32.onnx")]},
        {"files": [{"file": name, "sha256": "0" * 64, "bytes": 1} for name in ("tokenizer.json", "manifest.json")]},
        {"files": [{"file": "../tokenizer.json", "sha256": "0" * 64, "bytes": 1}]},
        {"files": [{"file": "tokenizer.json", "sha256": "0" * 63, "bytes": 1}]},
    ],
)
def test_a_manifest_that_is_not_as_documented_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        manifest_with(**changes)


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        fake_manifest().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("problem", "labels", "function"),
    [
        ("single_label", ("a",), "softmax"),
        ("single_label", ("a", "a"), "softmax"),
        ("single_label", (), "softmax"),
        ("multi_label", ("a", "b"), "softmax"),
        ("multi_label", (), "sigmoid"),
        ("regression", ("a", "b"), "identity"),
        ("regression", ("a",), "softmax"),
    ],
)
def test_a_score_contract_that_contradicts_itself_is_refused(
    problem: str, labels: tuple[str, ...], function: str
) -> None:
    with pytest.raises(ValidationError):
        ScoreContract.model_validate({"problem": problem, "labels": labels, "function": function})


@pytest.mark.parametrize("max_length", [3, 8193])
def test_a_length_that_no_model_has_is_refused(max_length: int) -> None:
    with pytest.raises(ValidationError):
        InputContract(max_length=max_length)


def test_the_file_that_was_measured_fastest_on_the_provider_is_served() -> None:
    manifest = manifest_with(
        artifacts=[artifact("fp32", **{CPU: 9.9, CUDA: 1.0}), artifact("int8", **{CPU: 6.4}), artifact("fp16")]
    )
    assert manifest.artifact_for(CPU).precision == "int8"
    assert manifest.artifact_for(CUDA).precision == "fp32"


def test_an_unmeasured_file_is_chosen_by_what_the_provider_is_good_at() -> None:
    manifest = manifest_with(artifacts=[artifact("int8"), artifact("fp16"), artifact("fp32")])
    assert manifest.artifact_for(CPU).precision == "fp32"
    assert manifest.artifact_for(CUDA).precision == "fp16"


@pytest.mark.parametrize(
    ("direction", "value", "passed"),
    [("at_least", 0.97, True), ("at_least", 0.969, False), ("at_most", 0.97, True), ("at_most", 0.971, False)],
)
def test_a_check_passes_on_the_right_side_of_its_bound(direction: str, value: float, passed: bool) -> None:
    fields = {"name": "retention", "value": value, "bound": 0.97, "direction": direction}
    assert Check.model_validate(fields).passed is passed


def test_a_digest_has_as_many_bytes_as_none_or_more() -> None:
    with pytest.raises(ValidationError):
        FileDigest(file="a", sha256="0" * 64, bytes=-1)


@pytest.mark.parametrize("file", ["model.pt", "model.bin", "model.pkl", "model.ort", "model.onnx.pkl", "model"])
def test_a_model_file_of_another_kind_than_onnx_is_refused(file: str) -> None:
    fields = fake_manifest().artifacts[0].model_dump() | {"file": file}
    with pytest.raises(ValidationError, match=r"does not end in '\.onnx'"):
        Artifact.model_validate(fields)
