"""What every peer's workers run: the project's own tokenizer and session code, with the options of the service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_store.classifier import OnnxClassifier, to_scores
from model_store.encoding import TextItem
from model_store.store import ModelStore
from tests.benchmarks.peers.assignment import Assignment


class Inference:
    """One session, as the assignment wants it."""

    def __init__(self, assignment: Assignment) -> None:
        store = ModelStore(Path(assignment.store))
        version = store.open(store.resolve(assignment.model))
        self._classifier = OnnxClassifier(version, intra_op_threads=assignment.setting.threads)
        self._contract = version.manifest.scores

    def scores(self, texts: Sequence[str]) -> list[list[float]]:
        """Scores `(texts, labels)`, from one call of the engine."""
        logits = self._classifier.run([self._classifier.encode(TextItem(text)) for text in texts])
        scores: list[list[float]] = to_scores(logits, self._contract).tolist()
        return scores

    def answers(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Label and scores of each text."""
        labels = self._contract.labels
        return [{"label": labels[row.index(max(row))], "probs": row} for row in self.scores(texts)]
