"""From a version in the store to a model that answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from model_store.classifier import PROVIDERS, OnnxClassifier, to_scores
from model_store.encoding import TextItem
from model_store.errors import InferenceError
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.cost_model import CostModel
from service.metrics import Metrics
from service.served_model import ServedModel

_SELF_TEST = "A short text, such as most are, to see that the model answers."
# Two sessions of one file may add up in another order.
_SAME_LOGITS = 1e-3


@dataclass(frozen=True)
class Loader:
    """Opens one version: verified, in ONNX Runtime sessions, tested with one text.

    Args:
        provider: an execution provider, as `choose_provider` returns it.
        workers: cores for a lone request.
        lone_max_bytes: files up to this size get the second session that a lone request runs in.
        max_batch_texts: texts that may run together.
    """

    store: ModelStore
    provider: str
    workers: int
    lone_max_bytes: int
    max_batch_texts: int
    metrics: Metrics

    def __call__(self, model: ModelId) -> ServedModel:
        """Load and warm a version.

        Raises:
            SuccessorError: it is not in the store, not what was published, or does not answer.
        """
        version = self.store.open(model)
        classifier = OnnxClassifier(version, provider=self.provider)
        lone = None
        small = classifier.artifact.bytes <= self.lone_max_bytes
        if self.provider == PROVIDERS["cpu"] and self.workers > 1 and small:
            lone = OnnxClassifier(version, provider=self.provider, intra_op_threads=self.workers)
        served = ServedModel(
            classifier=classifier,
            lone_classifier=lone,
            cost=CostModel(),
            instruments=self.metrics.for_model(model.name, model.version),
            max_batch_texts=self.max_batch_texts if classifier.artifact.batch_invariant else 1,
        )
        warm_up(served)
        return served


def warm_up(served: ServedModel) -> None:
    """Run one text through every session, which allocates their memory, and begin the cost model.

    Raises:
        InferenceError: a session fails, or answers with no finite number, or the two sessions disagree.
    """
    classifier = served.classifier
    pair = _SELF_TEST if classifier.manifest.inputs.pair else None
    encoded = classifier.encode(TextItem(_SELF_TEST, pair))
    logits = classifier.run([encoded])
    to_scores(logits, classifier.manifest.scores)
    started = time.perf_counter()
    classifier.run([encoded])
    served.cost.observe(1, len(encoded), time.perf_counter() - started)
    if served.lone_classifier is not None:
        difference = float(np.abs(served.lone_classifier.run([encoded]) - logits).max())
        if not difference <= _SAME_LOGITS:
            raise InferenceError(f"{classifier.manifest.id} answers differently with all cores: publish it again")
