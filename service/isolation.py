"""Runs a batch so that a text which breaks it fails alone, and its batch-mates are answered right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_store.classifier import Classifier, Logits, Scores, to_scores
from model_store.encoding import EncodedText
from model_store.errors import InferenceError, SuccessorError
from service.batcher import Item

TextResult = list[float] | SuccessorError
"""What became of one text: its scores `(labels,)`, or why it has none."""


def run_isolated(classifier: Classifier, items: Sequence[Item]) -> list[TextResult]:
    """Scores `(labels,)` of each item; if the batch fails, each item that has none is run again alone.

    So a text that breaks the engine, or gets logits that are not finite, fails alone.
    """
    outcomes = _attempt(classifier, items)
    if len(items) == 1:
        return outcomes
    return [
        _attempt(classifier, [item])[0] if isinstance(outcome, SuccessorError) else outcome
        for item, outcome in zip(items, outcomes, strict=True)
    ]


def _attempt(classifier: Classifier, items: Sequence[Item]) -> list[TextResult]:
    encoded: list[EncodedText] = [item.encoded for item in items]
    logits: Logits | None = None
    try:
        logits = classifier.run(encoded)
        return _rows(logits, to_scores(logits, classifier.manifest.scores), items)
    except SuccessorError as error:
        if logits is None:
            return [error] * len(items)
    except Exception as error:  # noqa: BLE001 - an engine may fail in any way; its batch fails, not the worker
        return [InferenceError(f"{classifier.manifest.id} failed: {error}") for _ in items]
    bad = InferenceError(f"{classifier.manifest.id} answered with a number that is not finite")
    finite = [bool(np.isfinite(row).all()) for row in logits]
    kept = [item for item, whole in zip(items, finite, strict=True) if whole]
    good = iter(_rows(logits[finite], to_scores(logits[finite], classifier.manifest.scores), kept))
    return [next(good) if whole else bad for whole in finite]


def _rows(logits: Logits, scores: Scores, items: Sequence[Item]) -> list[TextResult]:
    rows: list[list[float]] = scores.tolist()
    if not any(item.job.raw_scores for item in items):
        return [*rows]
    raw: list[list[float]] = logits.tolist()
    return [raw[row] if item.job.raw_scores else rows[row] for row, item in enumerate(items)]
