"""How well the answers of both models fit the labels, and each other; labels are compared by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import Problem
from model_store.statistics import (
    Estimate,
    all_alike,
    concordance,
    correlation,
    difference_of_proportions,
    mcnemar,
    paired_bootstrap,
    proportion,
)
from service.comparison.measure import Answer, Key
from service.comparison.texts import Label


class Quality:
    """One comparison's answers beside its labels; texts without a label count for agreement alone.

    Args:
        problem: what the models decide.
        labels: each text's label, or None.
        a: A's answers, in the order of the texts.
        b: B's answers.
    """

    def __init__(
        self, problem: Problem, labels: Sequence[Label | None], a: Sequence[Answer], b: Sequence[Answer]
    ) -> None:
        self.labelled = [text for text, label in enumerate(labels) if label is not None]
        self._regression = problem == "regression"
        self._answers: dict[Key, Sequence[Answer]] = {"a": a, "b": b}
        self._labels = labels

    def agreement(self) -> Estimate:
        """The share of texts on which both answer the same; for a regression, the concordance of their numbers."""
        if self._regression:
            return paired_bootstrap(concordance, *(np.array(self._answers[key], np.float64) for key in ("a", "b")))
        pairs = list(zip(self._answers["a"], self._answers["b"], strict=True))
        return proportion(sum(a == b for a, b in pairs), len(pairs))

    def accuracy(self, key: Key) -> Estimate | None:
        """The share of labelled texts that a model answers with their label; None where there is nothing to count."""
        right = self._right(key)
        return None if right is None else proportion(int(right.sum()), len(right))

    def difference(self) -> Estimate | None:
        """B's accuracy minus A's, on the same texts."""
        a, b = self._right("a"), self._right("b")
        return None if a is None or b is None else difference_of_proportions(*_only(b, a), len(a))

    def mcnemar_p(self) -> float | None:
        """The p-value of both being right equally often."""
        a, b = self._right("a"), self._right("b")
        return None if a is None or b is None else mcnemar(*_only(a, b))

    def pearson(self, key: Key) -> Estimate | None:
        """Pearson's correlation with the labels; None where it is not defined (fewer than 3 texts, or all alike)."""
        numbers = self._numbers(key)
        return None if numbers is None else paired_bootstrap(_correlation, *numbers)

    def pearson_difference(self) -> Estimate | None:
        """B's correlation with the labels minus A's, on the same texts."""
        a, b = self._numbers("a"), self._numbers("b")
        if a is None or b is None:
            return None
        return paired_bootstrap(lambda wanted, a, b: _correlation(wanted, b) - _correlation(wanted, a), *a, b[1])

    def retention(self) -> float | None:
        """B's accuracy, or correlation, ÷ A's; None where A's is not above zero, or not known."""
        if self._regression:
            numbers = self._numbers("a"), self._numbers("b")
            before, after = (None if one is None else _correlation(*one) for one in numbers)
        else:
            rights = self._right("a"), self._right("b")
            before, after = (None if one is None else float(one.mean()) for one in rights)
        return after / before if before is not None and before > 0 and after is not None else None

    def _numbers(self, key: Key) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """The labels and a model's answers to their texts; None where no correlation of them is defined."""
        if not self._regression or len(self.labelled) < 3:
            return None
        wanted = np.array([self._labels[text] for text in self.labelled], dtype=np.float64)
        given = np.array([self._answers[key][text] for text in self.labelled], dtype=np.float64)
        return None if all_alike(wanted) or all_alike(given) else (wanted, given)

    def _right(self, key: Key) -> NDArray[np.bool_] | None:
        """Whether each labelled text was answered with its label, by name; None where there is nothing to say."""
        if self._regression or not self.labelled:
            return None
        return np.array([self._answers[key][text] == _canonical(self._labels[text]) for text in self.labelled])


def _only(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int]:
    """How many only the first is right about, and how many only the second."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's; not a number for a resample that is all alike, which its interval then leaves out."""
    return correlation(first, second, constant=math.nan)


def _canonical(label: Label | None) -> Answer | None:
    return tuple(sorted(set(label))) if isinstance(label, tuple) else label
