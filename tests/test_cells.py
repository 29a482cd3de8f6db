"""A study's cells, computed for real with a model of a few thousand numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model_store.builder.cells import Bench
from model_store.builder.errors import RecipeError, StudyError
from model_store.builder.records import CellRecord, Record, TaskRecord, TrialRecord, expanded
from model_store.builder.results import Results
from model_store.builder.study import PREDECESSOR, Cell, Study, Trial
from model_store.builder.study_report import study_report
from tests.tiny_studies import cell_record, keep, load_study, study_document, trial_record
from tests.tiny_torch import Killed, Recorder, write_records

pytestmark = pytest.mark.slow
THESEUS = Cell("words", "theseus", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the study's file, its data and weights, and the records and work folder of one whole run."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(study_document(folder)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return load_study(folder / "study.yaml")


@pytest.fixture(scope="module")
def finished(folder: Path, study: Study) -> Results:
    results = Results(folder / "study")
    bench = Bench(study, results, folder / "work", Recorder())
    while missing := results.missing(study):
        bench.keep(missing[0], bench.compute(missing[0]))
    return results


def cell_of(results: Results, cell: Cell) -> CellRecord:
    record = results.read(results.path(cell), CellRecord)
    assert record is not None
    return record


def timeless(record: Record) -> dict[str, Any]:
    return record.model_dump(exclude={"p50_ms", "speedup", "seconds", "steps"})


def test_every_cell_leaves_one_small_record_with_a_decision_for_every_test_row(study: Study, finished: Results) -> None:
    for cell in study.cells():
        record = cell_of(finished, cell)
        assert finished.path(cell).stat().st_size < 4000
        assert len(record.predictions) == 60
        assert record.unit == str(cell)
        assert set(record.test) == {"accuracy", "f1"}
        assert record.parity <= 1e-5
        assert record.machine
    predecessor, theseus = (cell_of(finished, Cell("words", arm, 0)) for arm in (PREDECESSOR, "theseus"))
    assert theseus.bytes < predecessor.bytes == theseus.predecessor_bytes
    assert theseus.predictions != predecessor.predictions


def test_every_arm_gets_the_same_search_on_dev_with_the_first_seed(study: Study, finished: Results) -> None:
    for arm in study.arms_of("words"):
        scores = finished.dev_scores(study, "words", arm)
        assert list(scores) == [0.003, 0.01]
        best = max(scores, key=lambda rate: (scores[rate], -rate))
        assert finished.rate(study, "words", arm) == best
        for seed in study.seeds:
            assert cell_of(finished, Cell("words", arm, seed)).learning_rates[arm] == best
        first = cell_of(finished, Cell("words", arm, study.search_seed))
        trial = finished.read(finished.path(Trial("words", arm, best)), TrialRecord)
        assert trial is not None
        assert first.steps[-2].dev == trial.dev_history


def test_what_a_task_has_in_common_is_kept_once_with_the_overlap_counted_and_the_baseline(finished: Results) -> None:
    task = finished.read(finished.task_path("words"), TaskRecord)
    assert task is not None
    assert {name: split.rows for name, split in task.splits.items()} == {"train": 96, "dev": 40, "test": 60}
    assert all(split.dropped_overlap == 0 for split in task.splits.values())
    assert set(task.tfidf) == {"accuracy", "f1"}
    assert len(task.targets) == len(task.tfidf_predictions) == 60


def test_no_record_says_where_the_files_lie(folder: Path, finished: Results) -> None:
    for path in finished.folder.rglob("*.json"):
        assert str(folder) not in path.read_text(encoding="utf-8")


def test_a_fresh_clone_computes_a_single_cell_again_with_the_same_decisions(
    study: Study, finished: Results, tmp_path: Path
) -> None:
    copy = Results(tmp_path / "records")
    shutil.copytree(finished.folder, copy.folder)
    again = Bench(study, copy, tmp_path / "work", Recorder()).compute(THESEUS)
    assert timeless(again) == timeless(cell_of(finished, THESEUS))


def test_without_any_record_a_single_cell_is_computed_with_the_trials_that_it_rests_on(
    study: Study, finished: Results, tmp_path: Path
) -> None:
    results = Results(tmp_path / "records")
    again = Bench(study, results, tmp_path / "work", Recorder()).compute(THESEUS)
    assert timeless(again) == timeless(cell_of(finished, THESEUS))
    trials = {str(unit) for unit in study.units() if isinstance(unit, Trial) and results.path(unit).exists()}
    assert trials == {f"words/{arm}/rate{rate}" for arm in (PREDECESSOR, "theseus") for rate in ("0.003", "0.01")}


def test_a_killed_study_goes_on_inside_the_cell(study: Study, finished: Results, tmp_path: Path) -> None:
    copy = Results(tmp_path / "records")
    shutil.copytree(finished.folder, copy.folder)
    with pytest.raises(Killed):
        Bench(study, copy, tmp_path / "work", Recorder(kill=("theseus", 13))).compute(THESEUS)
    progress = Recorder()
    again = Bench(study, copy, tmp_path / "work", progress).compute(THESEUS)
    assert "fine_tune: already done" in progress.notes
    assert timeless(again) == timeless(cell_of(finished, THESEUS))


def test_models_are_thrown_away_when_no_missing_unit_needs_them(folder: Path, finished: Results) -> None:
    assert list((folder / "work" / "steps").iterdir()) == []


def test_the_models_of_other_tasks_are_left_alone(folder: Path, tmp_path: Path) -> None:
    document = study_document(folder) | {"learning_rates": [0.01], "seeds": [0]}
    document["tasks"]["others"] = document["tasks"]["words"] | {"max_length": 20}
    (folder / "two.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    two, results, work = load_study(folder / "two.yaml"), Results(tmp_path / "records"), tmp_path / "work"
    bench, progress = Bench(two, results, work, Recorder()), Recorder()
    for task in ("words", "others"):  # each by a process that knows nothing of the other's task
        cell = Cell(task, PREDECESSOR, 0)
        Bench(two, results, work, Recorder()).keep(cell, bench.compute(cell))
    cell = Cell("words", "control", 0)
    Bench(two, results, work, progress).compute(cell)
    assert progress.notes.count("fine_tune: already done") == 2  # in the predecessor, and before control's own


def test_the_models_of_an_arms_trials_stay_until_its_first_cell(
    study: Study, finished: Results, tmp_path: Path
) -> None:
    results = Results(tmp_path / "records")
    shutil.copytree(finished.folder, results.folder)
    for unit in study.units():
        if unit.arm == "theseus":
            results.path(unit).unlink()
    work, progress = tmp_path / "work", Recorder()
    bench = Bench(study, results, work, progress)
    for unit in study.trials("words", "theseus"):
        bench.keep(unit, bench.compute(unit))
    assert len(list((work / "steps").glob("theseus-*"))) == 2
    progress.notes.clear()
    cell = Cell("words", "theseus", 0)
    bench.keep(cell, bench.compute(cell))
    assert "theseus: already done" in progress.notes
    assert not list((work / "steps").glob("theseus-*"))


def test_records_of_another_study_are_refused(study: Study, finished: Results, tmp_path: Path) -> None:
    copy = Results(tmp_path / "records")
    shutil.copytree(finished.folder, copy.folder)
    path = copy.path(Cell("words", "control", 0))
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"key": "other"}), encoding="utf-8")
    with pytest.raises(StudyError, match=r"seed0\.json was made of other steps than the study has now"):
        Bench(study, copy, tmp_path / "work", Recorder()).compute(THESEUS)
    with pytest.raises(StudyError, match=r"seed0\.json was made of other steps"):
        study_report(study, copy)


@pytest.mark.parametrize("part", ["weights", "data"])
def test_records_of_other_weights_or_data_are_refused_where_both_are_there(
    study: Study, finished: Results, tmp_path: Path, part: str
) -> None:
    copy = Results(tmp_path / "records")
    shutil.copytree(finished.folder, copy.folder)
    path = copy.path(Cell("words", "control", 0))
    changed = json.loads(path.read_text(encoding="utf-8")) | {f"{part}_sha256": "0" * 64}
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(StudyError, match=rf"seed0\.json was made of other {part} than"):
        Bench(study, copy, tmp_path / "work", Recorder()).check(["words"])


def test_a_tasks_record_of_other_data_is_refused(study: Study, finished: Results, tmp_path: Path) -> None:
    copy = Results(tmp_path / "records")
    shutil.copytree(finished.folder, copy.folder)
    task = copy.read(copy.task_path("words"), TaskRecord)
    assert task is not None
    other = task.splits | {"test": task.splits["test"].model_copy(update={"sha256": "0" * 64})}
    copy.write(copy.task_path("words"), task.model_copy(update={"splits": other}))
    with pytest.raises(StudyError, match=r"words\.json was made of other data than"):
        Bench(study, copy, tmp_path / "work", Recorder()).check(["words"])
    with pytest.raises(StudyError, match=r"\.json was made of other data than"):
        study_report(study, copy)


def test_what_another_number_of_threads_has_made_is_another_studys(study: Study, finished: Results) -> None:
    with pytest.raises(StudyError, match="was made of other steps"):
        study_report(study.model_copy(update={"threads": 3}), finished)


def test_cells_whose_best_epoch_was_chosen_by_another_metric_are_another_studys(
    folder: Path, finished: Results
) -> None:
    study_report(load_study(folder / "study.yaml", ["tasks.words.data.metrics=[accuracy]"]), finished)
    with pytest.raises(StudyError, match="was made of other steps"):
        study_report(load_study(folder / "study.yaml", ["tasks.words.data.metrics=[f1, accuracy]"]), finished)


def test_a_step_that_does_not_fit_the_weights_is_found_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    study = load_study(folder / "study.yaml", ["arms.theseus.steps.0.layers=3"])
    with pytest.raises(RecipeError, match=r"^arms\.theseus\.steps\.0\.layers: 3 does not divide"):
        Bench(study, Results(tmp_path / "records"), tmp_path / "work", Recorder()).check(["words"])


def test_a_cell_is_not_judged_before_the_trials_that_choose_its_rate_are_there_again(
    study: Study, finished: Results, tmp_path: Path
) -> None:
    copy = Results(tmp_path / "records")
    shutil.copytree(finished.folder, copy.folder)
    path = copy.path(THESEUS)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"key": "other"}), encoding="utf-8")
    trial = study.trials("words", "theseus")[0]
    copy.path(trial).unlink()
    bench = Bench(study, copy, tmp_path / "work", Recorder())
    record = bench.compute(trial)
    with pytest.raises(StudyError, match=r"seed4\.json was made of other steps"):
        bench.keep(trial, record)
    assert copy.path(trial).exists()


def test_processes_that_share_a_study_take_different_units_and_none_that_rests_on_a_missing_one(
    study: Study, finished: Results, tmp_path: Path
) -> None:
    copy = Results(tmp_path / "records")
    first, second, third = (Bench(study, copy, tmp_path / "work", Recorder()) for _ in range(3))
    units = study.units()
    with first.claimed(units) as one, second.claimed(units) as two, third.claimed(units) as none:
        assert (one, two, none) == (*study.trials("words", PREDECESSOR), None)
    shutil.copytree(finished.folder, copy.folder)
    trial = study.trials("words", "theseus")[0]
    for unit in (trial, Cell("words", PREDECESSOR, 4)):
        copy.path(unit).unlink()
    missing = [unit for unit in units if unit != trial]
    with first.claimed(missing) as one, second.claimed(missing) as none:
        assert (one, none) == (Cell("words", PREDECESSOR, 4), None)
    for rests_on in (Cell("words", "control", 4), Cell("words", "theseus", 0)):  # a missing cell, a missing trial
        copy.path(rests_on).unlink()
        with first.claimed([rests_on]) as none:
            assert none is None


def test_the_number_of_torchs_threads_is_the_studys_and_is_put_back(
    study: Study, finished: Results, tmp_path: Path
) -> None:
    class Watching(Recorder):
        seen: set[int] = set()  # noqa: RUF012  # of this one test

        def record(self, title: str, done: int) -> None:
            self.seen.add(torch.get_num_threads())

    before = torch.get_num_threads()
    three = study.model_copy(update={"threads": before + 1})
    Bench(three, Results(tmp_path / "records"), tmp_path / "work", Watching()).compute(
        study.trials("words", PREDECESSOR)[0]
    )
    assert Watching.seen == {before + 1}
    assert torch.get_num_threads() == before


def test_the_time_left_is_judged_by_units_of_the_same_arm_and_kind(study: Study, tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.seconds_left(study) is None
    for unit, seconds in zip(study.units(), (100.0, 140.0, 10.0, 50.0), strict=False):
        record = trial_record(0.5) if isinstance(unit, Trial) else cell_record([1], 1.0)
        keep(results, unit, record.model_copy(update={"seconds": seconds}))
    # Trained: the predecessor's cell (120), control's trial and cell (50 each), three of Theseus (as the mean, 290/3).
    # Taken from a trial: two cells, as the predecessor's (10).
    assert results.seconds_left(study) == pytest.approx(120 + 2 * 50 + 290 + 2 * 10)


def test_models_that_another_task_shares_are_left_alone(folder: Path, tmp_path: Path) -> None:
    document = study_document(folder) | {"learning_rates": [0.01], "seeds": [0]}
    document["tasks"]["short"] = document["tasks"]["words"] | {"epochs": 1, "predecessor_epochs": 3}
    (folder / "shared.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    shared, results, progress = load_study(folder / "shared.yaml"), Results(tmp_path / "records"), Recorder()
    bench = Bench(shared, results, tmp_path / "work", progress)
    for unit in shared.units("words"):
        bench.keep(unit, bench.compute(unit))
    assert len(list((tmp_path / "work" / "steps").glob("fine_tune-*"))) == 1  # the predecessor of both
    progress.notes.clear()
    cell = Cell("short", PREDECESSOR, 0)
    bench.keep(cell, bench.compute(cell))
    assert "fine_tune: already done" in progress.notes


def test_the_records_of_a_regression_hold_what_their_figures_are_counted_from(tmp_path: Path) -> None:
    document = study_document(tmp_path) | {"learning_rates": [0.01], "seeds": [0], "epochs": 1}
    write_records(tmp_path / "data" / "words", "regression")
    document["tasks"]["words"]["data"] |= {"problem": "regression", "metrics": ["pearson", "spearman"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    study, results = load_study(tmp_path / "study.yaml"), Results(tmp_path / "records")
    bench = Bench(study, results, tmp_path / "work", Recorder())
    for unit in study.units():
        bench.keep(unit, bench.compute(unit))
    task = results.check(study, "words")
    assert task is not None
    for metric in task.metrics:
        assert task.tfidf[metric.name] == metric(expanded(task.tfidf_predictions), expanded(task.targets))
