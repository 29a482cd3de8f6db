"""Fakes that obey the project's protocols: tests drive them instead of patching what they stand for."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from model_store.classifier import Logits
from model_store.encoding import EncodedText, TextItem
from model_store.errors import InvalidTextError, TextTooLongError
from model_store.manifest import (
    TOKENIZER_FILE,
    Artifact,
    DataLineage,
    FileDigest,
    InputContract,
    Lineage,
    Manifest,
    ScoreContract,
    Side,
)


def fake_manifest(
    name: str = "fake",
    version: int = 1,
    *,
    pair: bool = False,
    scores: ScoreContract | None = None,
    batch_invariant: bool = True,
    unpadded: bool = False,
    max_length: int = 64,
) -> Manifest:
    """A valid manifest of a version that no store holds."""
    artifact = Artifact(
        file="fp32.onnx",
        sha256="0" * 64,
        bytes=1,
        precision="fp32",
        method="fake",
        batch_invariant=batch_invariant,
        unpadded=unpadded,
        max_logit_difference=0.0,
        agreement=1.0,
        dev_metric=1.0,
    )
    return Manifest(
        name=name,
        version=version,
        created=datetime(2024, 1, 1, tzinfo=UTC),
        scores=scores or ScoreContract(problem="single_label", labels=("negative", "positive"), function="softmax"),
        inputs=InputContract(pair=pair, max_length=max_length),
        artifacts=(artifact,),
        files=(FileDigest(file=TOKENIZER_FILE, sha256="0" * 64, bytes=1),),
        lineage=Lineage(
            predecessor=None,
            encoder="fake",
            encoder_sha256="0" * 64,
            encoder_licence="Apache-2.0",
            recipe={},
            data=DataLineage(source="none", licence="none", splits={}),
            seed=0,
            code_version="0",
            packages={},
        ),
        measurements={},
        gate=(),
    )


def fake_ids(text: str) -> list[int]:
    """One id for each word of a text, the same in every process, between two special tokens."""
    return [1, *(3 + zlib.crc32(word.encode("utf-8", "surrogatepass")) % 9_973 for word in text.split()), 2]


def fake_logits(input_ids: Sequence[int], labels: int = 2) -> Logits:
    """The logits `(labels,)` that `FakeClassifier` gives for these ids, whatever batch they are in."""
    return np.array(
        [zlib.crc32(repr((list(input_ids), i)).encode()) % 1_000 / 250 - 2 for i in range(labels)], np.float32
    )


class FakeClassifier:
    """Obeys `Classifier`, answers `fake_logits` of each item, and fails as a test asks it to.

    Args:
        manifest: what it claims to be; `fake_manifest()` by default.
        errors: single text → what `run` raises when the text is in the batch (an `Exception`, or a
            `BaseException` to kill the worker).
        encode_errors: text → what `encode` raises.
        nan_for: texts whose logits are not finite.
        blocked: `run` waits until `release` is called.
    """

    def __init__(
        self,
        manifest: Manifest | None = None,
        *,
        errors: Mapping[str, BaseException] | None = None,
        encode_errors: Mapping[str, BaseException] | None = None,
        nan_for: Collection[str] = (),
        blocked: bool = False,
    ) -> None:
        self.manifest = manifest or fake_manifest()
        self.artifact = self.manifest.artifacts[0]
        self.batches: list[list[list[int]]] = []
        """The ids of every batch, in the order in which `run` was called."""
        self.started = threading.Semaphore(0)
        """Released once as each `run` begins: `acquire` it to wait for a run."""
        self._errors = {tuple(fake_ids(text)): error for text, error in (errors or {}).items()}
        self._encode_errors = dict(encode_errors or {})
        self._nan_for = {tuple(fake_ids(text)) for text in nan_for}
        self._open = threading.Event()
        self._lock = threading.Lock()
        if not blocked:
            self._open.set()

    def block(self) -> None:
        """Make each `run` from now on wait for `release`."""
        self._open.clear()

    def release(self) -> None:
        """Let waiting and later runs go on."""
        self._open.set()

    def encode(self, item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
        if item.text in self._encode_errors:
            raise self._encode_errors[item.text]
        if (item.text_pair is not None) != self.manifest.inputs.pair or not item.text.strip():
            raise InvalidTextError("the text is empty, or a pair where a single text is read, or the reverse")
        first = fake_ids(item.text)
        second = [] if item.text_pair is None else fake_ids(item.text_pair)[1:]
        ids, types = first + second, [0] * len(first) + [1] * len(second)
        limit = self.manifest.inputs.max_length
        if len(ids) <= limit:
            return EncodedText(ids, types)
        if not truncate:
            raise TextTooLongError(f"the text has {len(ids)} tokens and the model reads {limit}")
        part = slice(None, limit) if (side or self.manifest.inputs.truncation_side) == "right" else slice(-limit, None)
        return EncodedText(ids[part], types[part], truncated=True)

    def run(self, batch: Sequence[EncodedText]) -> Logits:
        with self._lock:
            self.batches.append([list(item.input_ids) for item in batch])
        self.started.release()
        self._open.wait()
        for item in batch:
            if (error := self._errors.get(tuple(item.input_ids))) is not None:
                raise error
        labels = len(self.manifest.scores.labels)
        rows = [
            np.full(labels, np.nan, np.float32)
            if tuple(item.input_ids) in self._nan_for
            else fake_logits(item.input_ids, labels)
            for item in batch
        ]
        return np.stack(rows)
