"""What is measured: a version in a store, and texts for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from model_store.classifier import OnnxClassifier
from model_store.encoding import EncodedText, TextItem
from model_store.manifest import Artifact, Manifest, ModelId
from model_store.store import Draft, ModelStore, StoredVersion
from service.comparison.texts import read_examples

# Of made-up words, a text has as many as a sentence of a review: median 19, rarely above 50.
_MEDIAN_WORDS, _SPREAD, _MOST_WORDS = 19, 0.5, 60
_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "ri",
    "so",
    "tu",
    "va",
    "we",
    "xi",
)


@dataclass(frozen=True)
class Subject:
    """One version, with the texts that it is measured on.

    Attributes:
        label: how the report calls it.
        store: where it is.
        model: its id.
        texts: real or made up; all fit the model.
    """

    label: str
    store: ModelStore
    model: ModelId
    texts: list[str]

    @cached_property
    def version(self) -> StoredVersion:
        """The verified version."""
        return self.store.open(self.model)

    @property
    def artifact(self) -> Artifact:
        """The file that the server takes on a CPU."""
        return self.version.manifest.artifact_for("CPUExecutionProvider")

    @cached_property
    def encoded(self) -> list[EncodedText]:
        """The texts' ids."""
        classifier = self.classifier(threads=1)
        return [classifier.encode(TextItem(text)) for text in self.texts]

    def classifier(self, threads: int) -> OnnxClassifier:
        """The file in a session of its own."""
        return OnnxClassifier(self.version, intra_op_threads=threads)

    def describe(self) -> str:
        """One line about file and texts."""
        lengths = [len(item) for item in self.encoded]
        file = self.artifact
        invariant = "batch-invariant" if file.batch_invariant else "not batch-invariant: one text at a time"
        return (
            f"{self.label}: {self.model}, {file.file}, {file.precision}, {file.method}, {file.bytes / 1e6:.1f} MB,"
            f" {invariant}; {len(self.texts)} texts of {np.mean(lengths):.1f} tokens (at most {max(lengths)})"
        )


def read_texts(file: Path, count: int, seed: int = 0) -> list[str]:
    """`count` texts of a file of JSON lines, drawn without replacement; texts are made up where there is no file."""
    generator = np.random.default_rng(seed)
    if file.is_file():
        texts = [example.text for example in read_examples(file) if example.text_pair is None]
        return [texts[index] for index in generator.permutation(len(texts))[:count]]
    words = ["".join(generator.choice(_SYLLABLES, size)) for size in generator.integers(1, 4, 2_000)]
    sizes = np.clip(generator.lognormal(np.log(_MEDIAN_WORDS), _SPREAD, count), 2, _MOST_WORDS).astype(int)
    return [" ".join(generator.choice(words, size)) for size in sizes]


def republish(source: ModelStore, model: ModelId, target: ModelStore, name: str) -> ModelId:
    """Publish a version of one store in another, under another name and with the next number there."""
    version = source.open(model)
    manifest: Manifest = version.manifest
    draft = Draft(**{field: getattr(manifest, field) for field in Draft.model_fields} | {"name": name})
    entries = (*manifest.artifacts, *manifest.files)
    return target.publish(draft, {entry.file: version.folder / entry.file for entry in entries})
