"""The metrics that fields report their tasks with; a recipe names them under `data.metrics`, the main one first.

They are counted here, in numpy, because a bootstrap calls them thousands of times; tests hold them to scikit-learn's
and scipy's. Sources: Matthews, "Comparison of the predicted and observed secondary structure" (1975); for the choice
by task Wang et al., "GLUE" (2019), table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import Problem
from model_store.statistics import concordance, correlation

Predictions = NDArray[Any]
MetricName = Literal["accuracy", "f1", "macro_f1", "micro_f1", "matthews", "pearson", "spearman", "concordance"]

METRICS_OF: dict[Problem, tuple[MetricName, ...]] = {
    "single_label": ("accuracy", "f1", "macro_f1", "matthews"),
    "multi_label": ("micro_f1", "macro_f1", "accuracy"),
    "regression": ("pearson", "spearman", "concordance"),
}
"""What each kind of problem can be judged by; the first is what a recipe gets that names none."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `positive` is the label's position that `f1` is about. Higher is better, for all of them."""

    name: MetricName
    positive: int = 1

    def __call__(self, predictions: Predictions, targets: Predictions) -> float:
        """The metric of predictions and targets, both `(rows,)`, or `(rows, labels)` of 0 and 1.

        - accuracy: share of rows decided as the target is, in all labels
        - f1: `2·TP / (2·TP + FP + FN)` of the positive label; micro_f1: the same over all labels' counts;
          macro_f1: its mean over the labels that occur in predictions or targets (multi-label: over all labels)
        - matthews: `cov(p, t) / √(cov(p, p)·cov(t, t))` over the labels' indicators; 0 where a side is constant
        - pearson, spearman: the correlation of the numbers, or of their ranks; 0 where a side is constant
        - concordance: `2·cov(p, t) / (var(p) + var(t) + (mean(p) - mean(t))²)`: the correlation, less what another
          scale or offset takes away
        """
        if predictions.shape != targets.shape:
            raise ValueError(f"{self.name} of {predictions.shape} predictions and {targets.shape} targets")
        if self.name == "f1":
            return _f1(predictions == self.positive, targets == self.positive)
        return _FUNCTIONS[self.name](predictions, targets)


def _accuracy(predictions: Predictions, targets: Predictions) -> float:
    same = predictions == targets
    return float((same.all(axis=-1) if same.ndim == 2 else same).mean())


def _f1(predictions: Predictions, targets: Predictions, none: float = 0.0) -> float:
    """F1 over all entries, 0 or 1 each; `none` where none is set on either side."""
    hits = float((predictions.astype(bool) & targets.astype(bool)).sum())
    total = float(predictions.sum() + targets.sum())
    return 2 * hits / total if total else none


def _micro_f1(predictions: Predictions, targets: Predictions) -> float:
    return _f1(predictions, targets, none=1.0)


def _macro_f1(predictions: Predictions, targets: Predictions) -> float:
    if predictions.ndim == 2:
        return float(np.mean([_f1(ours, theirs) for ours, theirs in zip(predictions.T, targets.T, strict=True)]))
    present = np.union1d(predictions, targets)
    return float(np.mean([_f1(predictions == label, targets == label) for label in present]))


def _matthews(predictions: Predictions, targets: Predictions) -> float:
    count = len(targets)
    size = int(max(predictions.max(initial=0), targets.max(initial=0))) + 1
    ours, theirs = (np.bincount(side, minlength=size).astype(float) for side in (predictions, targets))
    covariance = count * float((predictions == targets).sum()) - float(ours @ theirs)
    scale = (count**2 - float(ours @ ours)) * (count**2 - float(theirs @ theirs))
    return covariance / math.sqrt(scale) if scale else 0.0


def _pearson(predictions: Predictions, targets: Predictions) -> float:
    return correlation(predictions, targets, constant=0.0)  # one that says the same of every text says nothing


def _spearman(predictions: Predictions, targets: Predictions) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(predictions), rankdata(targets))


_FUNCTIONS: dict[str, Callable[[Predictions, Predictions], float]] = {
    "accuracy": _accuracy,
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "concordance": concordance,
}
