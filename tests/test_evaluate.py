from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from model_store.builder.data import Row, TaskData, load_data, sample
from model_store.builder.evaluate import (
    agreement,
    batch_difference,
    latencies_alone,
    measured,
    predictions_of,
    run_classifier,
    targets_of,
    tfidf_predictions,
    times_alone,
)
from model_store.builder.metrics import Metric
from model_store.builder.sources import SPLITS, FileSource
from model_store.classifier import Logits, OnnxClassifier, largest_difference
from model_store.encoding import EncodedText, TextItem
from model_store.machine import processor
from model_store.manifest import Artifact, DataLineage, Problem
from model_store.store import ModelStore
from tests.tiny import make_tiny_version
from tests.tiny_torch import write_records

LINEAGE = DataLineage(source="none", licence="none", splits={})
ITEMS = [TextItem(text) for text in ("good film", "a", "dull story and a cold film is not great .", "bad", "warm it")]


def tiny_classifier(store: ModelStore, *, batch_invariant: bool = True) -> OnnxClassifier:
    model = make_tiny_version(store, batch_invariant=batch_invariant)
    return OnnxClassifier(store.open(model))


def test_a_single_label_is_the_largest_logit() -> None:
    predicted = predictions_of("single_label", np.array([[1, 2], [3, 0], [0, 1]], dtype=np.float32))
    assert predicted.tolist() == [1, 0, 1]


def test_multi_label_decides_at_one_half() -> None:
    predicted = predictions_of("multi_label", np.array([[0.1, -0.1], [2, 3]], dtype=np.float32))
    assert predicted.tolist() == [[1, 0], [1, 1]]


def test_a_regression_is_the_logit_itself() -> None:
    assert predictions_of("regression", np.array([[1.5], [2]], dtype=np.float32)).tolist() == [1.5, 2.0]


def test_agreement_is_the_share_of_texts_with_the_same_decision() -> None:
    assert agreement("single_label", np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])) == 0.75
    assert agreement("multi_label", np.array([[0, 1], [1, 1]]), np.array([[0, 1], [1, 0]])) == 0.5
    assert agreement("regression", np.array([1.0, 2.0]), np.array([2.0, 1.0])) == 0.0
    assert agreement("regression", np.array([1.0, 2.0, 4.0]), np.array([103.0, 106.0, 112.0])) < 0.01


def test_a_difference_of_large_logits_is_relative_to_them() -> None:
    large, small = np.array([[20_000.0], [1.0]], np.float32), np.array([[0.5], [0.25]], np.float32)
    assert largest_difference(large + np.float32(1), large) == pytest.approx(1 / 20_000)
    assert largest_difference(small + np.float32(0.1), small) == pytest.approx(0.1)
    for wrong in (np.nan, np.inf):
        assert largest_difference(np.array([[wrong], [1.0]], np.float32), large) > 1e30
        assert largest_difference(large, np.array([[wrong], [1.0]], np.float32)) > 1e30


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_logits_come_in_the_order_of_the_texts_however_they_are_batched(
    store: ModelStore, batch_invariant: bool
) -> None:
    classifier = tiny_classifier(store, batch_invariant=batch_invariant)
    alone = np.concatenate([classifier.run([classifier.encode(item)]) for item in ITEMS])
    assert np.allclose(run_classifier(classifier, ITEMS), alone, atol=1e-6)


def test_a_model_whose_answers_ignore_batch_mates_has_no_batch_difference(store: ModelStore) -> None:
    assert batch_difference(tiny_classifier(store), ITEMS * 3) < 1e-6


def test_classifiers_are_timed_on_the_same_texts_and_the_machine_is_named(store: ModelStore) -> None:
    classifier = tiny_classifier(store)
    first, second = latencies_alone([classifier, classifier], ITEMS)
    assert first.p50_ms > 0
    assert (first.texts, first.threads, first.tokens) == (second.texts, 1, second.tokens)
    assert first.machine == processor()[0] != ""


def test_times_are_of_the_same_text_one_classifier_after_the_other(store: ModelStore) -> None:
    classifier = tiny_classifier(store)
    times = times_alone([classifier, classifier], ITEMS, rounds=3)
    assert times.shape == (2, len(ITEMS), 3)
    assert (times > 0).all()


def test_a_sample_is_evenly_spaced_and_never_longer_than_asked_for() -> None:
    items = [TextItem(str(index)) for index in range(10)]
    assert [item.text for item in sample(items, 3)] == ["0", "3", "6"]
    assert sample(items, 100) == items


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_the_baseline_learns_words_for_every_kind_of_problem(tmp_path: Path, problem: Problem) -> None:
    files = {split: Path(path) for split, path in write_records(tmp_path, problem).items()}
    data = load_data(FileSource(source="files", licence="CC0-1.0", problem=problem, **files))
    predicted = tfidf_predictions(data, "test")
    targets = targets_of(data.splits["test"])
    assert predicted.shape == targets.shape
    assert data.metric(predicted, targets) > 0.6


def test_the_baseline_of_one_label_that_may_be_set_has_the_shape_of_its_targets() -> None:
    rows = tuple(
        Row(TextItem(f"{'awful' if index % 3 == 0 else 'fine'} word"), (int(index % 3 == 0),)) for index in range(30)
    )
    task = TaskData("multi_label", False, ("toxic",), dict.fromkeys(SPLITS, rows), LINEAGE, (Metric("micro_f1"),))
    predicted = tfidf_predictions(task, "test")
    assert predicted.shape == (30, 1)
    assert task.metric(predicted, targets_of(rows)) == 1


def test_the_baseline_of_texts_without_words_goes_by_their_characters() -> None:
    rows = tuple(Row(TextItem("a !" if index % 2 else "b ?"), index % 2) for index in range(20))
    task = TaskData("single_label", False, ("b", "a"), dict.fromkeys(SPLITS, rows), LINEAGE, (Metric("accuracy"),))
    assert task.metric(tfidf_predictions(task, "test"), targets_of(rows)) == 1


def test_a_sample_goes_to_the_end_of_what_may_be_sorted() -> None:
    for rows, count in ((199, 100), (500, 256), (101, 100)):
        places = [int(item.text) for item in sample([TextItem(str(index)) for index in range(rows)], count)]
        assert len(set(places)) == count
        assert places[0] == 0
        assert rows - places[-1] <= rows / count + 1


def test_a_file_that_answers_with_no_number_agrees_with_none(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = tiny_classifier(store)
    rows = tuple(Row(item, index % 2) for index, item in enumerate(ITEMS))
    task = TaskData("single_label", False, ("a", "b"), dict.fromkeys(SPLITS, rows), LINEAGE, (Metric("accuracy"),))
    good = measured(classifier, task)
    assert good.agreement == 1
    right = classifier.run

    def overflow(batch: Sequence[EncodedText]) -> Logits:
        logits = right(batch).copy()
        logits[0, 0] = np.nan
        return logits

    monkeypatch.setattr(classifier, "run", overflow)
    bad = measured(classifier, task, run_classifier(tiny_classifier(store), ITEMS))
    assert bad.agreement == 0
    assert Artifact.model_validate_json(bad.model_dump_json()) == bad
