from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from model_store.builder.errors import StudyError
from model_store.builder.metrics import Metric
from model_store.builder.records import CellRecord, Decisions, TaskRecord
from model_store.builder.results import Results
from model_store.builder.study import PREDECESSOR, Cell, Study
from model_store.builder.study_report import (
    REPORT_FILES,
    pareto_front,
    stated_interval,
    study_report,
    write_study_report,
)
from model_store.manifest import Problem
from tests.tiny_studies import cell_record, keep, load_study, study_document, task_record

TARGETS = [int(value) for value in np.random.default_rng(1).integers(0, 2, 300)]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study_document(tmp_path)), encoding="utf-8")
    return load_study(tmp_path / "study.yaml")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Records of all arms with both seeds; Theseus is better than the control, and as fast."""
    results = Results(tmp_path / "records")
    results.write(results.task_path("words"), task_record(TARGETS))
    for arm, right, speedup in ((PREDECESSOR, 0.95, 1.0), ("control", 0.7, 2.0), ("theseus", 0.9, 2.0)):
        for seed in (0, 4):
            record = cell_record(TARGETS, right, speedup=speedup, seed=seed + len(arm))
            keep(results, Cell("words", arm, seed), record)
    return results


def test_an_arm_has_its_mean_its_spread_and_its_retention_seed_by_seed(study: Study, results: Results) -> None:
    arms = study_report(study, results)["tasks"]["words"]["arms"]
    values = arms["theseus"]["test"]["accuracy"]["values"]
    bases = arms[PREDECESSOR]["test"]["accuracy"]["values"]
    assert arms["theseus"]["test"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert arms["theseus"]["test"]["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert arms["theseus"]["retention"]["values"] == pytest.approx([a / b for a, b in zip(values, bases, strict=True)])
    assert arms[PREDECESSOR]["retention"]["mean"] == 1.0
    assert arms["theseus"]["speedup"]["mean"] == 2.0


def test_the_speed_of_one_graph_is_one_figure_whoever_trained_its_weights(study: Study, results: Results) -> None:
    for arm, seed, speedup in (("control", 0, 1.8), ("control", 4, 2.0), ("theseus", 0, 2.2), ("theseus", 4, 2.4)):
        record = cell_record(TARGETS, 0.8, speedup=2.0, seed=seed)
        measured = record.speedup.model_copy(update={"value": speedup})
        keep(results, Cell("words", arm, seed), record.model_copy(update={"speedup": measured}))
    arms = study_report(study, results)["tasks"]["words"]["arms"]
    assert arms["control"]["speedup"]["mean"] == arms["theseus"]["speedup"]["mean"] == pytest.approx(2.1)
    assert arms[PREDECESSOR]["speedup"]["mean"] == 1.0


def test_a_difference_that_one_training_makes_is_not_called_the_methods(study: Study, results: Results) -> None:
    right = [1 - target for target in TARGETS[:30]] + TARGETS[30:]
    for arm, seed, decided in (
        ("control", 0, right),
        ("control", 4, right),
        ("theseus", 0, TARGETS),
        ("theseus", 4, [1 - target for target in TARGETS[:33]] + TARGETS[33:]),
    ):
        keep(results, Cell("words", arm, seed), cell_record(TARGETS, 0.9, decided=decided))
    difference = study_report(study, results)["tasks"]["words"]["arms"]["theseus"]["differences"]["control"]
    assert difference["value"] == pytest.approx(0.045)
    assert difference["low"] < 0 < difference["high"]


def test_differences_are_of_the_same_rows_and_seeds_with_an_interval(study: Study, results: Results) -> None:
    arms = study_report(study, results)["tasks"]["words"]["arms"]
    ours = arms["theseus"]["test"]["accuracy"]["mean"]
    difference = arms["theseus"]["differences"]["control"]
    assert difference["value"] == pytest.approx(ours - arms["control"]["test"]["accuracy"]["mean"])
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    assert difference["seeds"] == 2
    assert set(arms["control"]["differences"]) == {PREDECESSOR}


def test_a_difference_is_over_the_seeds_that_both_arms_have(study: Study, results: Results) -> None:
    results.path(Cell("words", "control", 4)).unlink()
    arms = study_report(study, results)["tasks"]["words"]["arms"]
    assert arms["theseus"]["differences"]["control"]["seeds"] == 1
    assert arms["control"]["test"]["accuracy"]["sd"] is None
    results.path(Cell("words", "theseus", 0)).unlink()
    assert set(study_report(study, results)["tasks"]["words"]["arms"]["theseus"]["differences"]) == {PREDECESSOR}


def test_equal_decisions_differ_by_exactly_nothing(study: Study, results: Results) -> None:
    for seed in (0, 4):
        control, theseus = (results.path(Cell("words", arm, seed)) for arm in ("control", "theseus"))
        theseus.write_bytes(control.read_bytes().replace(b"words/control", b"words/theseus"))
    difference = study_report(study, results)["tasks"]["words"]["arms"]["theseus"]["differences"]["control"]
    assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0)


def test_the_report_is_written_from_the_records_alone_as_table_json_and_plot(study: Study, results: Results) -> None:
    report = write_study_report(study, results)
    assert json.loads((results.folder / "results.json").read_text(encoding="utf-8"))["tasks"].keys() == {"words"}
    text = (results.folder / "table.md").read_text(encoding="utf-8")
    assert "6 of 12 trials and cells are finished" in text
    assert "Dropped because their text is in a later split: 3 of train, 3 of dev." in text
    assert f"| tf-idf |  | {np.mean(np.array(TARGETS) == 0):.4f} |" in text
    assert "- a machine; torch with 1 thread(s)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert (results.folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert all((results.folder / name).exists() for name in REPORT_FILES)
    assert report["machines"] == ["a machine"]


def test_without_records_there_is_a_report_that_says_so(study: Study, tmp_path: Path) -> None:
    report = write_study_report(study, Results(tmp_path / "empty"))
    assert (report["finished"], report["tasks"]) == (0, {})


def test_a_cells_stated_interval_holds_its_value(results: Results) -> None:
    task = results.read(results.task_path("words"), TaskRecord)
    record = results.read(results.path(Cell("words", "theseus", 0)), CellRecord)
    assert task is not None
    assert record is not None
    low, high = stated_interval(Metric("accuracy"), task, record)
    assert low < record.test["accuracy"] < high


def test_figures_that_are_not_those_of_the_decisions_are_refused(study: Study, results: Results) -> None:
    path = results.path(Cell("words", "theseus", 0))
    record = results.read(path, CellRecord)
    assert record is not None
    keep(results, Cell("words", "theseus", 0), record.model_copy(update={"test": {"accuracy": 0.99}}))
    with pytest.raises(
        StudyError, match=r"seed0\.json says accuracy 0\.99, its decisions 0\.\d+: restore or remove it"
    ):
        study_report(study, results)
    keep(results, Cell("words", "theseus", 0), record.model_copy(update={"predictions": record.predictions[:-1]}))
    with pytest.raises(StudyError, match=r"seed0\.json has not one decision of the task for each test row"):
        study_report(study, results)
    keep(results, Cell("words", "theseus", 0), record)
    results.write(results.task_path("words"), task_record(TARGETS).model_copy(update={"targets": TARGETS[:-1]}))
    with pytest.raises(StudyError, match=r"words\.json has not one decision of the task for each test row"):
        study_report(study, results)


def changed(study: Study, **changes: object) -> Study:
    """The study with other data."""
    task = study.tasks["words"]
    words = task.model_copy(update={"data": task.data.model_copy(update=changes)})
    return study.model_copy(update={"tasks": {"words": words}})


def test_a_metric_that_the_study_was_given_later_is_counted_from_the_decisions(study: Study, results: Results) -> None:
    more = changed(study, metrics=("accuracy", "f1", "matthews"))
    task = study_report(more, results)["tasks"]["words"]
    assert set(task["tfidf"]) == set(task["arms"]["theseus"]["test"]) == {"accuracy", "f1", "matthews"}


def test_nothing_is_retained_of_a_metric_that_is_not_above_zero(study: Study, results: Results) -> None:
    wrong = cell_record(TARGETS, 0.0)
    keep(results, Cell("words", PREDECESSOR, 4), wrong)
    report = study_report(changed(study, metrics=("matthews",)), results)
    assert report["tasks"]["words"]["arms"]["theseus"]["retention"] is None


def test_the_front_leaves_out_what_another_is_at_least_as_good_as_in_both() -> None:
    points = {
        "slow": (1.0, 0.9),
        "worse": (1.0, 0.8),
        "fast": (3.0, 0.7),
        "middle": (2.0, 0.8),
        "dominated": (2.0, 0.75),
    }
    assert pareto_front(points) == ["slow", "middle", "fast"]


@pytest.mark.parametrize(
    ("problem", "decisions"),
    [
        ("single_label", ["01"]),
        ("single_label", [-1]),
        ("single_label", [2]),
        ("single_label", [0.5]),
        ("multi_label", ["1"]),
        ("multi_label", ["ab"]),
        ("multi_label", [1]),
        ("regression", ["1"]),
    ],
)
def test_decisions_of_another_kind_of_task_are_refused(
    study: Study, results: Results, problem: Problem, decisions: Decisions
) -> None:
    right: dict[Problem, Decisions] = {"single_label": [1], "multi_label": ["01"], "regression": [0.5]}
    task = task_record([1]).model_copy(
        update={"problem": problem, "targets": right[problem], "tfidf_predictions": decisions}
    )
    results.write(results.task_path("words"), task)
    with pytest.raises(StudyError, match=r"words\.json has not one decision of the task for each test row"):
        study_report(study, results)


def test_a_record_in_anothers_place_is_refused(study: Study, results: Results) -> None:
    first, second = (results.path(Cell("words", "theseus", seed)) for seed in (0, 4))
    second.write_bytes(first.read_bytes())
    with pytest.raises(StudyError, match=r"seed4\.json is the record of words/theseus/seed0"):
        study_report(study, results)
