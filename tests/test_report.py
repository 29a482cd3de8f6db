"""The figures of a build's report."""

from __future__ import annotations

import numpy as np

from model_store.builder.data import Row, TaskData
from model_store.builder.metrics import Metric
from model_store.builder.report import quality_figures
from model_store.encoding import TextItem
from model_store.manifest import DataLineage

LINEAGE = DataLineage(source="none", licence="none", splits={})


def regression(targets: list[float]) -> TaskData:
    rows = tuple(Row(TextItem("text"), target) for target in targets)
    return TaskData("regression", False, ("score",), {"test": rows}, LINEAGE, (Metric("pearson"),))


def test_of_a_predecessor_that_is_worse_than_nothing_nothing_is_retained() -> None:
    targets = [0.0, 1.0, 2.0, 3.0]
    against = np.array([3.0, 1.0, 2.5, 0.0])
    figures = quality_figures(
        regression(targets), {"predecessor": against, "successor": -np.array(targets), "tfidf": against}
    )
    assert figures["estimates"]["predecessor"]["value"] < 0
    assert figures["estimates"]["retention"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_draws_in_which_a_predecessor_is_worth_nothing_say_nothing_of_retention() -> None:
    draw = np.random.default_rng(0)
    targets = draw.normal(size=12)
    old = targets + draw.normal(size=12)
    figures = quality_figures(regression(targets.tolist()), {"predecessor": old, "successor": old, "tfidf": old})
    assert figures["estimates"]["retention"] == {"value": 1.0, "low": 1.0, "high": 1.0}
