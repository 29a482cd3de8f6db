from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from model_store.builder.errors import StudyError
from model_store.builder.metrics import Metric, Predictions
from model_store.builder.records import Results, compacted, expanded, metrics_of
from model_store.builder.study import load_study
from tests.tiny_studies import study_document


@pytest.mark.parametrize(
    "predictions",
    [np.array([1, 0, 149]), np.array([[0, 1], [1, 1]]), np.array([0.25, -1.5])],
    ids=["one label", "several", "numbers"],
)
def test_decisions_of_every_kind_come_back_from_a_record(tmp_path: Path, predictions: Predictions) -> None:
    results = Results(tmp_path)
    results.write(tmp_path / "a" / "b.json", {"predictions": compacted(predictions)})
    record = results.read(tmp_path / "a" / "b.json")
    assert record is not None
    assert np.array_equal(expanded(record["predictions"]), predictions)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert Results(tmp_path).read(tmp_path / "nothing.json") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dev": \xff}'])
def test_what_is_no_record_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cut.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(StudyError, match=r"cut\.json"):
        Results(tmp_path).read(path)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [((0.7, 0.8), 0.01), ((0.8, 0.7), 0.003), ((0.8, 0.8), 0.003), ((0.8, None), None)],
    ids=["second", "first", "equal", "one is missing"],
)
def test_the_learning_rate_is_the_best_on_dev_once_all_have_been_tried(
    tmp_path: Path, scores: tuple[float, float | None], chosen: float | None
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study_document(tmp_path)), encoding="utf-8")
    study, results = load_study(tmp_path / "study.yaml"), Results(tmp_path / "records")
    for trial, score in zip(study.trials("words", "theseus"), scores, strict=True):
        if score is not None:
            results.write(results.path(trial), {"dev": score})
    assert results.rate(study, "words", "theseus") == chosen


def test_a_task_names_its_metrics_with_what_f1_is_about() -> None:
    assert metrics_of({"metrics": [{"name": "f1", "positive": 0}]}) == [Metric("f1", 0)]
