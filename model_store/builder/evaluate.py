"""What a model is worth: predictions, the task's metric, agreement, batch invariance, time, and the tf-idf baseline.

Classifiers are measured through `OnnxClassifier`, exactly as the server runs them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from model_store.builder.data import Row, TaskData, sample
from model_store.builder.metrics import Metric, Predictions
from model_store.classifier import PROVIDERS, Classifier, Logits, OnnxClassifier, largest_difference
from model_store.encoding import EncodedText, TextItem
from model_store.machine import processor
from model_store.manifest import Artifact, LatencyMeasurement, Precision, Problem

# Float kernels round differently for other batch shapes; a scale that spans the batch moves logits far more.
INVARIANCE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-4}
_BATCH = 8
_ROUNDS = 3


def targets_of(rows: Sequence[Row]) -> Predictions:
    """Targets `(rows,)` of positions or numbers, or `(rows, labels)` of 0 and 1."""
    return np.asarray([row.target for row in rows])


def predictions_of(problem: Problem, logits: Logits) -> Predictions:
    """What logits `(rows, labels)` decide, in the form of `targets_of`."""
    if problem == "single_label":
        return np.asarray(logits.argmax(axis=-1))
    if problem == "multi_label":
        return (logits > 0).astype(np.int64)
    return np.asarray(logits[:, 0], dtype=np.float64)


def agreement(problem: Problem, first: Predictions, second: Predictions) -> float:
    """Share of texts on which both decide the same; for a regression, their concordance, at least 0.

    A correlation would not see another scale or offset, and it is the number that is served.
    """
    if problem == "regression":
        return max(0.0, Metric("concordance")(first, second))
    return Metric("accuracy")(first, second)


def run_classifier(classifier: Classifier, items: Sequence[TextItem]) -> Logits:
    """Logits `(items, labels)` in the order of `items`, computed as the server would: alone where batches matter."""
    encoded = [classifier.encode(item) for item in items]
    return run_encoded(classifier, encoded, _BATCH if classifier.artifact.batch_invariant else 1)


def run_encoded(classifier: Classifier, encoded: Sequence[EncodedText], batch: int) -> Logits:
    """Logits `(items, labels)` in the order given, in batches of like lengths."""
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    logits = np.zeros((len(encoded), len(classifier.manifest.scores.labels)), dtype=np.float32)
    # A call computes on the thread that makes it: one thread a core, as in the server.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(lambda chosen: classifier.run([encoded[index] for index in chosen]), batches)
        for chosen, answer in zip(batches, answers, strict=True):
            logits[chosen] = answer
    return logits


def batch_difference(classifier: Classifier, items: Sequence[TextItem]) -> float:
    """`largest_difference` of texts alone and the same texts with batch-mates: of like and of other lengths."""
    encoded = [classifier.encode(item) for item in items]
    alone = run_encoded(classifier, encoded, 1)
    alike = run_encoded(classifier, encoded, 4)
    mixed = np.concatenate([classifier.run(encoded[start : start + 8]) for start in range(0, len(encoded), 8)])
    return max(largest_difference(alike, alone), largest_difference(mixed, alone))


def latencies_alone(classifiers: Sequence[Classifier], items: Sequence[TextItem]) -> list[LatencyMeasurement]:
    """Median time of one text alone for each classifier; they take turns, text by text, after a warm-up."""
    machine, _ = processor()
    return [
        LatencyMeasurement(
            provider=PROVIDERS["cpu"],
            machine=machine,
            threads=1,
            tokens=round(float(np.mean([len(classifier.encode(item)) for item in items]))),
            p50_ms=float(np.median(times)),
            texts=len(items),
        )
        for classifier, times in zip(classifiers, times_alone(classifiers, items, _ROUNDS), strict=True)
    ]


def times_alone(classifiers: Sequence[Classifier], items: Sequence[TextItem], rounds: int) -> NDArray[np.float64]:
    """Times in ms `(classifiers, items, rounds)`: those of a text and round were measured one after the other."""
    encoded = [[classifier.encode(item) for item in items] for classifier in classifiers]
    for classifier, texts in zip(classifiers, encoded, strict=True):
        for text in texts[:5]:
            classifier.run([text])
    times = np.empty((len(classifiers), len(items), rounds))
    for turn in range(rounds):
        for position in range(len(items)):
            for index, classifier in enumerate(classifiers):
                start = time.perf_counter()
                classifier.run([encoded[index][position]])
                times[index, position, turn] = (time.perf_counter() - start) * 1000
    return times


def times_under_load(classifiers: Sequence[Classifier], items: Sequence[TextItem]) -> list[float]:
    """Mean ms of one text for each classifier as a busy server runs it, on one thread; they take turns.

    Files whose answers don't depend on the batch run texts of like lengths together, others run them one by one.
    """
    encoded = [sorted((classifier.encode(item) for item in items), key=len) for classifier in classifiers]
    starts = range(0, len(items), _BATCH)
    times = np.empty((len(classifiers), _ROUNDS, len(starts)))
    for turn in range(_ROUNDS):
        for position, first in enumerate(starts):
            for index, classifier in enumerate(classifiers):
                together = encoded[index][first : first + _BATCH]
                size = len(together) if classifier.artifact.batch_invariant else 1
                start = time.perf_counter()
                for offset in range(0, len(together), size):
                    classifier.run(together[offset : offset + size])
                times[index, turn, position] = (time.perf_counter() - start) * 1000
    return [float(total) / len(items) for total in np.median(times, axis=1).sum(axis=-1)]


def tfidf_predictions(data: TaskData, split: str) -> Predictions:
    """What a linear model on unigram tf-idf, trained on the train split, decides: the baseline of every report."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    def texts(rows: Sequence[Row]) -> list[str]:
        return [f"{row.item.text} {row.item.text_pair or ''}" for row in rows]

    models = {
        "single_label": LogisticRegression(max_iter=1000),
        "multi_label": OneVsRestClassifier(LogisticRegression(max_iter=1000)),
        "regression": Ridge(),
    }
    train, wanted = texts(data.splits["train"]), targets_of(data.splits["train"])
    vectorizer = TfidfVectorizer()
    try:
        features = vectorizer.fit_transform(train)
    except ValueError:  # no text has a word of two letters
        vectorizer = TfidfVectorizer(analyzer="char")
        features = vectorizer.fit_transform(train)
    found = np.asarray(
        models[data.problem].fit(features, wanted).predict(vectorizer.transform(texts(data.splits[split])))
    )
    return found.reshape(-1, *wanted.shape[1:])  # of one label in a multi-label problem it gives no axis


def measured(classifier: OnnxClassifier, data: TaskData, reference: Logits | None = None) -> Artifact:
    """The classifier's artifact with its dev figures, against logits `(dev rows, labels)`, its own by default.

    A file with a logit that is not finite agrees with none.
    """
    rows = data.splits["dev"]
    items = [row.item for row in rows]
    difference = batch_difference(classifier, sample(items, 48))
    invariant = difference <= INVARIANCE_TOLERANCE[classifier.artifact.precision]
    classifier.artifact = classifier.artifact.model_copy(update={"batch_invariant": invariant})
    logits = run_classifier(classifier, items)
    finite = bool(np.isfinite(logits).all())
    reference = logits if reference is None else reference
    predictions = predictions_of(data.problem, logits)
    classifier.artifact = classifier.artifact.model_copy(
        update={
            "max_logit_difference": largest_difference(logits, reference),
            "agreement": finite * agreement(data.problem, predictions, predictions_of(data.problem, reference)),
            "dev_metric": data.metric(predictions, targets_of(rows)),
        }
    )
    return classifier.artifact
