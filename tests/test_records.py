from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from model_store.builder.errors import StudyError
from model_store.builder.metrics import Predictions
from model_store.builder.records import CellRecord, Record, TaskRecord, TrialRecord, compacted, expanded
from model_store.builder.results import Results
from tests.tiny_studies import cell_record, keep, load_study, study_document, task_record, trial_record


@pytest.mark.parametrize(
    "predictions",
    [np.array([1, 0, 149]), np.array([[0, 1], [1, 1]]), np.array([0.25, -1.5])],
    ids=["one label", "several", "numbers"],
)
def test_decisions_of_every_kind_come_back_from_a_record(tmp_path: Path, predictions: Predictions) -> None:
    results = Results(tmp_path)
    record = cell_record([1], 1.0).model_copy(update={"predictions": compacted(predictions)})
    results.write(tmp_path / "a" / "b.json", record)
    again = results.read(tmp_path / "a" / "b.json", CellRecord)
    assert again is not None
    assert np.array_equal(expanded(again.predictions), predictions)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert Results(tmp_path).read(tmp_path / "nothing.json", TaskRecord) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"dev": \xff}', '{"colour": 1}'])
@pytest.mark.parametrize("kind", [TaskRecord, TrialRecord, CellRecord])
def test_what_is_no_record_is_refused_by_its_name(tmp_path: Path, content: str, kind: type[Record]) -> None:
    path = tmp_path / "cut.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(StudyError, match=rf"cut\.json is no {kind.__name__} \(.*\): restore or remove it") as refusal:
        Results(tmp_path).read(path, kind)
    assert "\n" not in str(refusal.value)


def test_a_record_that_can_not_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"can't be read \(Is a directory\)"):
        Results(tmp_path).read(tmp_path, TaskRecord)


def test_a_record_that_can_not_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file, where a folder should be", encoding="utf-8")
    results = Results(tmp_path / "records")
    with pytest.raises(StudyError, match=r"records can't be written \(.*\): choose one with --results"):
        results.write(results.task_path("words"), task_record([0, 1]))


def test_a_record_that_is_not_a_number_or_lacks_a_split_is_refused(tmp_path: Path) -> None:
    results, path = Results(tmp_path), tmp_path / "one.json"
    results.write(path, trial_record(0.5))
    path.write_text(path.read_text(encoding="utf-8").replace("60.0", "NaN"), encoding="utf-8")
    with pytest.raises(StudyError, match=r"TrialRecord \(seconds: "):
        results.read(path, TrialRecord)
    task = task_record([0, 1])
    results.write(path, task.model_copy(update={"splits": {"train": task.splits["train"]}}))
    with pytest.raises(StudyError, match=r"TaskRecord \(splits: .*dev is missing"):
        results.read(path, TaskRecord)


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
            keep(results, trial, trial_record(score))
    assert results.rate(study, "words", "theseus") == chosen
