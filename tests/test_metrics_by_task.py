"""The builder's metrics, held to scikit-learn's and scipy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from model_store.builder.metrics import Metric, MetricName, Predictions

Reference = Callable[[Any, Any], Any]


def decisions(labels: int, rows: int = 200) -> tuple[Predictions, Predictions]:
    generator = np.random.default_rng(labels)
    targets = generator.integers(0, labels, rows)
    predictions = np.where(generator.random(rows) < 0.7, targets, generator.integers(0, labels, rows))
    return predictions, targets


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("accuracy", accuracy_score),
        ("matthews", matthews_corrcoef),
        ("macro_f1", lambda targets, predictions: f1_score(targets, predictions, average="macro")),
    ],
)
def test_a_single_labels_metrics_are_scikit_learns(labels: int, name: MetricName, reference: Reference) -> None:
    predictions, targets = decisions(labels)
    assert Metric(name)(predictions, targets) == pytest.approx(reference(targets, predictions))


@pytest.mark.parametrize("positive", [0, 1])
def test_f1_is_that_of_the_positive_label(positive: int) -> None:
    predictions, targets = decisions(2)
    ours = Metric("f1", positive)(predictions, targets)
    assert ours == pytest.approx(f1_score(targets, predictions, pos_label=positive))
    assert ours != pytest.approx(f1_score(targets, predictions, pos_label=1 - positive))


@pytest.mark.parametrize(
    ("name", "average"), [("micro_f1", "micro"), ("macro_f1", "macro"), ("accuracy", None)], ids=str
)
def test_several_labels_metrics_are_scikit_learns(name: MetricName, average: str | None) -> None:
    generator = np.random.default_rng(0)
    targets, predictions = generator.integers(0, 2, (50, 4)), generator.integers(0, 2, (50, 4))
    reference = (
        accuracy_score(targets, predictions) if average is None else f1_score(targets, predictions, average=average)
    )
    assert Metric(name)(predictions, targets) == pytest.approx(reference)


@pytest.mark.parametrize(("name", "reference"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_a_regressions_metrics_are_scipys_ties_included(name: MetricName, reference: Reference) -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 6, 80).astype(float)
    predictions = targets + generator.normal(size=80).round(1)
    assert Metric(name)(predictions, targets) == pytest.approx(reference(predictions, targets)[0])


def test_concordance_is_the_correlation_less_what_another_scale_or_offset_takes_away() -> None:
    targets = np.arange(20.0)
    concordance = Metric("concordance")
    assert concordance(targets, targets) == 1.0
    assert concordance(-targets, targets) < -0.1
    # of Lin's definition: 2·s₁₂ / (s₁² + s₂² + (x̄₁ - x̄₂)²)
    assert concordance(2 * targets + 3, targets) == pytest.approx(2 * 2 * 33.25 / (5 * 33.25 + 12.5**2))
    assert Metric("pearson")(2 * targets + 3, targets) == pytest.approx(1)
    assert concordance(np.ones(4), np.ones(4)) == 1.0
    assert concordance(np.ones(4), np.full(4, 2.0)) == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
def test_a_side_that_is_constant_correlates_with_nothing(name: MetricName) -> None:
    assert Metric(name)(np.ones(4, dtype=int), np.array([0, 1, 1, 0])) == 0.0


def test_where_no_label_is_set_on_either_side_all_is_right_but_a_label_never_decided_has_no_f1() -> None:
    nothing = np.zeros((3, 2), dtype=int)
    assert Metric("micro_f1")(nothing, nothing) == 1.0
    assert Metric("f1")(np.zeros(3, dtype=int), np.zeros(3, dtype=int)) == 0.0


def test_decisions_of_another_shape_than_the_targets_are_no_figure() -> None:
    with pytest.raises(ValueError, match=r"accuracy of \(3,\) predictions and \(3, 1\) targets"):
        Metric("accuracy")(np.zeros(3), np.zeros((3, 1)))
