"""From a version in the store to a model that answers, with what its calls cost."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from pydantic import ValidationError

from model_store.classifier import PROVIDERS, Classifier, OnnxClassifier, largest_difference, to_scores
from model_store.disk import write_whole
from model_store.encoding import EncodedText, TextItem
from model_store.errors import ClassifierError, InferenceError, SuccessorError
from model_store.machine import processor
from model_store.manifest import Artifact, Manifest, ModelId
from model_store.seats import Seats
from model_store.store import ModelStore, StoredVersion
from service.background import on_own_thread
from service.cost_model import CostModel, CostState
from service.metrics import Metrics
from service.served_model import LoneSession, ServedModel

log = structlog.get_logger(__name__)

_SELF_TEST = "A text of a common length, as a sentence of a review is, to see that the model answers, and how fast."
# Two sessions of one file may add up in another order.
_SAME_LOGITS = 1e-3
# (texts, tokens) that idle time measures.
_GRID = ((1, 8), (1, 24), (4, 8), (2, 16), (4, 24), (8, 24), (1, 64), (4, 64), (1, 128), (16, 16))
_TYPICAL_TOKENS = 24
_IDLE_POLL_S = 0.2


@dataclass(frozen=True)
class Loader:
    """Opens one version: verified, in ONNX Runtime sessions, tested with one text.

    Of a version's files it takes the one whose calls were measured cheapest on this machine; until all of them were,
    the one that the manifest says was fastest on the provider. If that does not answer here, float32 does.

    Args:
        store: where it is.
        provider: an execution provider, as `choose_provider` returns it.
        workers: cores for a lone request.
        seats: where its threads are kept; None: anywhere.
        lone_max_bytes: files up to this size get the second session that a lone request runs in, and are measured in
            idle time although they are not served.
        max_batch_texts: texts that may run together.
        metrics: the process's instruments.
        costs_dir: where measured costs are kept; None: nowhere.
    """

    store: ModelStore
    provider: str
    workers: int
    seats: Seats | None
    lone_max_bytes: int
    max_batch_texts: int
    metrics: Metrics
    costs_dir: Path | None

    def __call__(self, model: ModelId) -> ServedModel:
        """Load and warm a version.

        Raises:
            SuccessorError: it is not in the store, not what was published, or does not answer.
        """
        version = self.store.open(model)
        chosen = self.choose(version.manifest)
        whole = next((one for one in version.manifest.artifacts if one.precision == "fp32" and one != chosen), None)
        try:
            return self._served(version, chosen)
        except (ClassifierError, InferenceError) as error:
            if whole is None:
                raise
            log.warning("this file does not answer: float32 does", model=str(model), file=chosen.file, error=str(error))
        return self._served(version, whole)

    def _served(self, version: StoredVersion, artifact: Artifact) -> ServedModel:
        """A file, loaded and warm.

        Raises:
            ClassifierError: it can't be loaded.
            InferenceError: it fails, or answers with no finite number.
        """
        model = version.manifest.id
        classifier = OnnxClassifier(version, provider=self.provider, artifact=artifact)
        on_cpu = self.provider == PROVIDERS["cpu"]
        served = ServedModel(
            classifier=classifier,
            lone=None,
            cost=CostModel(self._kept(classifier.artifact.sha256)),
            instruments=self.metrics.for_model(model.name, model.version),
            work_clock=time.thread_time if on_cpu else time.perf_counter,
            max_batch_texts=self._most_texts(classifier.artifact),
        )
        warm_up(served)
        return served

    def choose(self, manifest: Manifest) -> Artifact:
        """The file to serve."""
        length = min(_TYPICAL_TOKENS, manifest.inputs.max_length)
        seconds = []
        for artifact in manifest.artifacts:
            cost = self._measured(manifest, artifact)
            if cost is None:
                return manifest.artifact_for(self.provider)
            seconds.append(cost.seconds_a_text(length, self._most_texts(artifact)))
        return manifest.artifacts[int(np.argmin(seconds))]

    async def calibrate(self, served: ServedModel, idle: Callable[[], bool]) -> None:
        """While the server is idle, open the session for lone requests, measure a grid of calls, and keep the costs.

        With a folder to keep it in, the version's other files are measured too, so that the next load can choose.
        """
        await self._open_lone(served, idle)
        await self._measure_grid(served.classifier, served.cost, served.work_clock, idle)
        if self.costs_dir is None:
            return
        for artifact in served.manifest.artifacts:
            if artifact.bytes <= self.lone_max_bytes and self._measured(served.manifest, artifact) is None:
                await self._measure_other(served, artifact, idle)
        best = self.choose(served.manifest)
        if best != served.classifier.artifact and self._measured(served.manifest, best) is not None:
            log.info("another file is faster here: the next load takes it", model=served.reference, file=best.file)

    def keep(self, classifier: Classifier, cost: CostModel) -> None:
        """Write a file's costs to the state folder, if there is one."""
        path = self._path(classifier.artifact.sha256)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, cost.state().model_dump_json())
        except OSError as error:
            log.warning("costs not kept", model=str(classifier.manifest.id), error=str(error))

    def _most_texts(self, artifact: Artifact) -> int:
        return self.max_batch_texts if artifact.batch_invariant else 1

    def _grid(self, manifest: Manifest, artifact: Artifact) -> list[tuple[int, int]]:
        """The calls, `(texts, tokens)`, that a file is measured with."""
        most_texts, most_tokens = self._most_texts(artifact), manifest.inputs.max_length
        return [(texts, tokens) for texts, tokens in _GRID if texts <= most_texts and tokens <= most_tokens]

    def _measured(self, manifest: Manifest, artifact: Artifact) -> CostModel | None:
        """What is known of a file's costs, if that is enough to compare files by."""
        kept = self._kept(artifact.sha256)
        return CostModel(kept) if kept is not None and kept.calls >= len(self._grid(manifest, artifact)) else None

    async def _open_lone(self, served: ServedModel, idle: Callable[[], bool]) -> None:
        """Give a model the session with all cores, if its file may have one."""
        bytes_ = served.classifier.artifact.bytes
        if self.provider != PROVIDERS["cpu"] or self.workers == 1 or bytes_ > self.lone_max_bytes:
            return
        await _until(idle)
        try:
            served.lone = await on_own_thread(self._lone_of, served)
        except SuccessorError as error:
            log.warning("no session for lone requests", model=served.reference, error=str(error))

    def _lone_of(self, served: ServedModel) -> LoneSession:
        lone = self._opened(served, served.classifier.artifact, threads=self.workers, seats=self.seats)
        check_same(served.classifier, lone)
        return LoneSession(lone, self.seats)

    async def _measure_other(self, served: ServedModel, artifact: Artifact, idle: Callable[[], bool]) -> None:
        """Measure a file that is not served, in a session that ends with this."""
        try:
            classifier = await on_own_thread(self._opened, served, artifact)
            await self._measure_grid(classifier, CostModel(), served.work_clock, idle)
        except SuccessorError as error:
            log.warning("file not measured", model=served.reference, file=artifact.file, error=str(error))

    def _opened(
        self, served: ServedModel, artifact: Artifact, *, threads: int = 1, seats: Seats | None = None
    ) -> OnnxClassifier:
        """A file of a served version in one more session."""
        version = self.store.open(served.manifest.id)
        return OnnxClassifier(version, provider=self.provider, intra_op_threads=threads, artifact=artifact, seats=seats)

    async def _measure_grid(
        self, classifier: Classifier, cost: CostModel, clock: Callable[[], float], idle: Callable[[], bool]
    ) -> None:
        grid = self._grid(classifier.manifest, classifier.artifact)
        if cost.calls >= len(grid):
            return
        for texts, tokens in grid:
            await _until(idle)
            await on_own_thread(_measure, classifier, cost, clock, texts, tokens)
        self.keep(classifier, cost)

    def _kept(self, sha256: str) -> CostState | None:
        path = self._path(sha256)
        if path is None:
            return None
        try:
            return CostState.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("kept costs can't be read and are measured again", file=str(path), error=str(error))
            return None

    def _path(self, sha256: str) -> Path | None:
        """The file for one model file on this machine: another CPU, provider or runtime measures for itself."""
        if self.costs_dir is None:
            return None
        key = (sha256, self.provider, processor()[0], _runtime_version())
        return self.costs_dir / f"{hashlib.sha256('|'.join(key).encode()).hexdigest()[:32]}.json"


async def _until(idle: Callable[[], bool]) -> None:
    while not idle():  # noqa: ASYNC110 - the engine has no event for it, and a look is cheap
        await asyncio.sleep(_IDLE_POLL_S)


def warm_up(served: ServedModel) -> None:
    """Run one text, which allocates memory, and begin the cost model.

    Raises:
        InferenceError: the model fails, or answers with no finite number.
    """
    encoded = _sample(served.classifier)
    to_scores(served.classifier.run([encoded]), served.manifest.scores)
    if served.cost.calls == 0:
        started = served.work_clock()
        served.classifier.run([encoded])
        served.cost.observe(1, len(encoded), served.work_clock() - started)


def check_same(shared: Classifier, lone: Classifier) -> None:
    """See that two sessions of one file give the same logits.

    Raises:
        InferenceError: they don't.
    """
    encoded = _sample(shared)
    if largest_difference(lone.run([encoded]), shared.run([encoded])) > _SAME_LOGITS:
        raise InferenceError(f"{shared.manifest.id} answers differently with all cores: publish it again")


def _sample(classifier: Classifier) -> EncodedText:
    return classifier.encode(TextItem(_SELF_TEST, _SELF_TEST if classifier.manifest.inputs.pair else None))


def _runtime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _measure(classifier: Classifier, cost: CostModel, clock: Callable[[], float], texts: int, tokens: int) -> None:
    """Observe the second of two calls, on this thread: the first allocates.

    Raises:
        InferenceError: it fails, or answers with no finite number: how fast does not matter then.
    """
    ids = (_sample(classifier).input_ids * tokens)[:tokens]
    batch = [EncodedText(ids, [0] * tokens)] * texts
    to_scores(classifier.run(batch), classifier.manifest.scores)
    started = clock()
    classifier.run(batch)
    cost.observe(texts, tokens, clock() - started)
