"""The ONNX files that a step leaves in its folder, with their figures, and how they are opened for measuring."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from model_store.builder.step import StepContext
from model_store.classifier import OnnxClassifier
from model_store.manifest import TOKENIZER_FILE, Artifact, FileDigest, Manifest, Precision
from model_store.store import StoredVersion, digest_file

FP32_FILE = "fp32.onnx"
FP16_FILE = "fp16.onnx"
INT8_FILE = "int8.onnx"
ARTIFACTS_FILE = "artifacts.json"
_ARTIFACTS = TypeAdapter(tuple[Artifact, ...])


def new_artifact(folder: Path, file: str, precision: Precision, method: str) -> Artifact:
    """The description of a file that has not been measured yet: the figures are those of a file of no worth."""
    from model_store.builder.unpadding import is_unpadded

    sha256, size = digest_file(folder / file)
    return Artifact(
        file=file,
        sha256=sha256,
        bytes=size,
        precision=precision,
        method=method,
        batch_invariant=False,
        unpadded=is_unpadded(folder / file),
        max_logit_difference=0.0,
        agreement=0.0,
        dev_metric=0.0,
    )


def open_candidate(folder: Path, artifact: Artifact, context: StepContext) -> OnnxClassifier:
    """A file of a step's folder in the classifier that the server runs, with one thread."""
    sha256, size = digest_file(folder / TOKENIZER_FILE)
    manifest = Manifest(
        name="candidate",
        version=1,
        created=datetime.now(UTC),
        scores=context.scores,
        inputs=context.inputs,
        artifacts=(artifact,),
        files=(FileDigest(file=TOKENIZER_FILE, sha256=sha256, bytes=size),),
        lineage=context.lineage,
        measurements={},
        gate=(),
    )
    return OnnxClassifier(StoredVersion(folder, manifest), artifact=artifact)


def write_artifacts(folder: Path, artifacts: Sequence[Artifact]) -> None:
    """Keep the description of a folder's ONNX files beside them."""
    (folder / ARTIFACTS_FILE).write_bytes(_ARTIFACTS.dump_json(tuple(artifacts), indent=2))


def read_artifacts(folder: Path) -> tuple[Artifact, ...]:
    """The ONNX files of a folder, float32 first."""
    return _ARTIFACTS.validate_json((folder / ARTIFACTS_FILE).read_bytes())


def copy_artifacts(parent: Path, output: Path, *, but: str) -> list[Artifact]:
    """Copy the tokenizer and the ONNX files, except the one that is made anew; returns what was copied."""
    kept = [artifact for artifact in read_artifacts(parent) if artifact.file != but]
    for file in (TOKENIZER_FILE, *(artifact.file for artifact in kept)):
        shutil.copyfile(parent / file, output / file)
    return kept
