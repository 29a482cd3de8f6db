"""The words of the store: a model's id, its files and the manifest that describes one immutable version.

Writer (`model_store.builder`) and reader (`service`) share these types and nothing else. All are frozen and
refuse unknown keys, so a manifest that parses is one that this code understands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from model_store.errors import InvalidReferenceError

SCHEMA_VERSION: Final = 1
DEFAULT_STORE = Path("artifacts/store")
"""The store of every command that is given none, by option or by `SUCCESSOR_STORE_DIR`."""
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"

Precision = Literal["fp32", "fp16", "int8"]
Problem = Literal["single_label", "multi_label", "regression"]
Side = Literal["right", "left"]

MAX_VERSION: Final = 999_999_999

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)


def check_name(name: str) -> str:
    """Return `name` if it may name a model or an alias: lower case, digits, `.`, `_`, `-`, at most 64 characters.

    Raises:
        InvalidReferenceError: for anything else, path separators and leading dots included.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidReferenceError(
            f"{name[:80]!r} is not a valid name: use 1 to 64 of a-z, 0-9, '.', '_', '-', starting and ending with a"
            " letter or digit"
        )
    return name


def check_alias(alias: str) -> str:
    """Return `alias` if it is a valid name that cannot be taken for a version number."""
    if alias.isdigit():
        raise InvalidReferenceError(f"alias {alias[:80]!r} would read as a version number: use a name with a letter")
    return check_name(alias)


def check_file_name(file: str) -> str:
    """Return `file` if it may name a file in a version's folder, and nothing outside it.

    Raises:
        InvalidReferenceError: for anything else.
    """
    if not _FILE.fullmatch(file):
        raise InvalidReferenceError(
            f"{file[:80]!r} is not a plain file name: use at most 128 of A-Z, a-z, 0-9, '.', '_', '-'"
        )
    return file


def _as_validator(check: Callable[[str], str]) -> AfterValidator:
    """The check for pydantic, which collects a ValueError and lets every other error through."""

    def validate(value: str) -> str:
        try:
            return check(value)
        except InvalidReferenceError as error:
            raise ValueError(str(error)) from error

    return AfterValidator(validate)


Name = Annotated[str, _as_validator(check_name)]
Alias = Annotated[str, _as_validator(check_alias)]
FileName = Annotated[str, _as_validator(check_file_name)]
VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION)]


class Record(BaseModel):
    """Base of everything in a manifest: immutable, strict about unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelId(Record):
    """A name in the store and one immutable build of it, written `name@version`."""

    name: Name
    version: VersionNumber

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class ScoreContract(Record):
    """How logits `(batch, outputs)` become scores, and what each column means."""

    problem: Problem
    labels: tuple[str, ...] = Field(description="in the order of the logits; one name of the target for a regression")
    function: Literal["softmax", "sigmoid", "identity"]
    threshold: float = Field(default=0.5, description="multi-label only: labels scored above it are given")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        allowed = {
            "single_label": ("softmax", "sigmoid", "identity"),
            "multi_label": ("sigmoid", "identity"),
            "regression": ("identity", "sigmoid"),
        }[self.problem]
        if self.function not in allowed:
            raise ValueError(f"score function {self.function!r} does not fit a {self.problem} problem: use {allowed}")
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            raise ValueError("labels must be present and distinct")
        if self.problem == "regression" and len(self.labels) != 1:
            raise ValueError("a regression has exactly one output")
        if self.problem == "single_label" and len(self.labels) < 2:
            raise ValueError("a single-label problem needs at least two labels")
        return self


class InputContract(Record):
    """What a text must be before it reaches the model."""

    pair: bool = Field(default=False, description="the model reads (text, text_pair)")
    max_length: int = Field(ge=4, le=8192, description="tokens, special tokens included")
    truncation_side: Side = "right"


class LatencyMeasurement(Record):
    """One file's time for one text, measured by the build on the machine that it names."""

    provider: str
    machine: str
    threads: int
    tokens: int = Field(description="mean tokens a text, special tokens included")
    p50_ms: float = Field(description="median of a text alone")
    busy_ms: float | None = Field(
        default=None, description="mean of a text as a busy server runs it, where the version's files were compared so"
    )
    texts: int = Field(description="how many texts the median is over")


class FileDigest(Record):
    """A file of a version, and what it must contain."""

    file: FileName
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Artifact(FileDigest):
    """One ONNX file of a version, with the proof of what it is worth."""

    precision: Precision
    method: str = Field(description="how it was made, for example 'export' or 'dynamic-u8s8-per-channel'")
    batch_invariant: bool = Field(description="a text's logits do not depend on its batch-mates: it may be batched")
    unpadded: bool = Field(default=False, description="padding is not computed: texts of any lengths share a batch")
    max_logit_difference: float = Field(
        description="on dev, against the form that it was made from; ÷ the largest |logit| where that is above 1"
    )
    agreement: float = Field(ge=0, le=1, description="on dev, with the float32 file")
    dev_metric: float = Field(description="the task's main metric on dev")
    latency: tuple[LatencyMeasurement, ...] = ()

    @model_validator(mode="after")
    def _onnx(self) -> Self:
        # ONNX Runtime chooses its parser by the name.
        if not self.file.endswith(".onnx"):
            raise ValueError(f"a model file must be ONNX and named so: {self.file!r} does not end in '.onnx'")
        return self


class Split(Record):
    """One split of the data, as it was used."""

    rows: int
    sha256: str = Field(description="of the canonical JSON lines of its rows")
    dropped_overlap: int = Field(default=0, description="rows dropped because their text occurs in a later split")


class DataLineage(Record):
    """Where the texts came from."""

    source: str
    licence: str
    splits: dict[str, Split]


class Lineage(Record):
    """Everything that is needed to make this version again."""

    predecessor: str | None = Field(description="id in the store, or None for a version that has none")
    predecessor_sha256: str | None = None
    encoder: str
    encoder_sha256: str
    encoder_licence: str
    recipe: dict[str, Any] = Field(description="the whole resolved recipe")
    data: DataLineage
    seed: int
    code_version: str
    packages: dict[str, str]


class Check(Record):
    """One threshold of a gate, and what was found."""

    name: str
    value: float
    bound: float
    direction: Literal["at_least", "at_most"]

    @property
    def passed(self) -> bool:
        """Whether the value is on the right side of the bound."""
        return self.value >= self.bound if self.direction == "at_least" else self.value <= self.bound


class Manifest(Record):
    """What one version is: written once, by publish, beside the files that it describes."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    version: VersionNumber
    created: datetime
    scores: ScoreContract
    inputs: InputContract
    artifacts: tuple[Artifact, ...] = Field(min_length=1)
    files: tuple[FileDigest, ...]
    lineage: Lineage
    measurements: dict[str, float] = Field(description="named figures of the report, on the test split unless said")
    gate: tuple[Check, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entry.file for entry in (*self.artifacts, *self.files)]
        if len(set(names)) != len(names) or MANIFEST_FILE in names:
            raise ValueError("every file of a version is listed exactly once, and the manifest never")
        if TOKENIZER_FILE not in names:
            raise ValueError(f"a version needs its {TOKENIZER_FILE}")
        return self

    @property
    def id(self) -> ModelId:
        """This version's id."""
        return ModelId(name=self.name, version=self.version)

    def artifact_for(self, provider: str) -> Artifact:
        """The file to serve on `provider`, as `best_artifact` says."""
        return best_artifact(self.artifacts, provider)


def best_artifact(artifacts: Sequence[Artifact], provider: str) -> Artifact:
    """The file for `provider`: the one measured fastest there, under load where that was measured of all, else alone.

    Unmeasured, it is fp16 on a GPU, else float32.
    """
    measured = [
        (latency, index)
        for index, artifact in enumerate(artifacts)
        for latency in artifact.latency
        if latency.provider == provider
    ]
    if measured:
        busy = [(latency.busy_ms, index) for latency, index in measured if latency.busy_ms is not None]
        alone = [(latency.p50_ms, index) for latency, index in measured]
        return artifacts[min(busy if len(busy) == len(measured) else alone)[1]]
    order: tuple[Precision, ...] = (
        ("fp32", "int8", "fp16") if provider == "CPUExecutionProvider" else ("fp16", "fp32", "int8")
    )
    return min(artifacts, key=lambda artifact: order.index(artifact.precision))
