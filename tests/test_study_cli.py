from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from model_store.builder import study_cli
from model_store.builder.cells import Bench
from model_store.builder.documents import Document
from model_store.builder.errors import StudyError
from model_store.builder.results import Results
from model_store.builder.runner import key_of
from model_store.builder.study import PREDECESSOR, STUDIES, Cell
from tests.tiny_studies import cell_record, keep, load_study, study_document, task_record
from tests.tiny_torch import Recorder

ONE_RATE = ["--set", "learning_rates=[0.01]", "--set", "seeds=[0]"]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(study_cli.study)
    return app


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_document(tmp_path)), encoding="utf-8")
    return path


def run(app: typer.Typer, study: Path, *arguments: str) -> str:
    command = [str(study), "--work", str(study.parent / "work"), *ONE_RATE, *arguments]
    return CliRunner().invoke(app, command, catch_exceptions=False).stdout


@pytest.mark.slow
def test_a_study_fills_its_grid_one_unit_or_all_and_a_cell_can_be_doubted(app: typer.Typer, study: Path) -> None:
    table = study.with_suffix("") / "table.md"
    assert run(app, study, "--next") == f"1 of 3 finished; the table is {table}\n"
    assert Results(study.with_suffix("")).path(Cell("words", PREDECESSOR, 0)).exists()
    assert json.loads(run(app, study, "--json"))["finished"] == 3
    assert run(app, study, "--next") == f"3 of 3 finished; the table is {table}\n"
    doubted = run(app, study, "--cell", "words/theseus/seed0")
    assert "inside; 100.0% of the decisions are the same" in doubted
    assert not list((study.parent / "work").glob("*/steps/*"))  # so that it is computed, each time
    assert not list((study.parent / "work").glob("*/doubts"))
    printed = json.loads(run(app, study, "--cell", "words/theseus/seed0", "--json"))
    assert printed["low"] <= printed["value"] == printed["recorded"] <= printed["high"]


@pytest.mark.slow
def test_a_doubted_cell_is_not_compared_with_the_model_that_it_came_from(app: typer.Typer, study: Path) -> None:
    run(app, study, "--next")
    kept = list((study.parent / "work").glob("*/steps/fine_tune-*"))
    assert kept  # the missing cells start from it
    whole, records = load_study(study, ONE_RATE[1::2]), Results(study.with_suffix(""))
    other = Bench(whole, records, kept[0].parents[1], Recorder())
    with other.using(alone=False):  # beside a process that fills the study
        command = [str(study), "--work", str(study.parent / "work"), *ONE_RATE, "--cell", "words/predecessor/seed0"]
        said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "inside; 100.0% of the decisions are the same" in said
    assert "fine_tune: done in" in said
    assert "already done" not in said
    assert list((study.parent / "work").glob("*/steps/fine_tune-*")) == kept


@pytest.mark.slow
def test_a_cell_without_a_record_leaves_one(app: typer.Typer, study: Path) -> None:
    said = run(app, study, "--cell", "words/control/seed0", "--results", str(study.parent / "other"))
    assert said.startswith("words/control/seed0: accuracy 0.")
    assert "recorded" not in said
    assert Results(study.parent / "other").path(Cell("words", "control", 0)).exists()


@pytest.mark.slow
def test_a_process_waits_for_what_another_is_at_and_takes_what_it_leaves(
    app: typer.Typer, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_study(study, ONE_RATE[1::2])
    records = Results(study.with_suffix(""))
    place = key_of(str(records.folder.resolve()))[:12]
    other = Bench(whole, records, study.parent / "work" / place, Recorder())
    with ExitStack() as at_work:
        at_work.enter_context(other.using(alone=False))
        assert at_work.enter_context(other.claimed(whole.units())) == Cell("words", PREDECESSOR, 0)
        looks = []

        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 2:
                at_work.close()

        monkeypatch.setattr(time, "sleep", sleep)
        assert run(app, study, "--next").startswith("1 of 3 finished")
    assert len(looks) == 2


@pytest.mark.slow
def test_one_task_can_be_filled_by_itself(app: typer.Typer, study: Path) -> None:
    elsewhere = yaml.safe_load(study.read_text(encoding="utf-8"))
    elsewhere["tasks"] = {"others": elsewhere["tasks"]["words"], **elsewhere["tasks"]}
    study.write_text(yaml.safe_dump(elsewhere, sort_keys=False), encoding="utf-8")
    assert json.loads(run(app, study, "--task", "words", "--json"))["finished"] == 3
    records = Results(study.with_suffix(""))
    assert [path.parent.parent.name for path in records.folder.glob("cells/*/*/*.json")] == ["words"] * 3


def test_a_task_that_the_study_does_not_have_is_refused(app: typer.Typer, study: Path) -> None:
    with pytest.raises(StudyError, match="--task: no task 'word': there are words"):
        run(app, study, "--task", "word")


def test_a_study_without_an_ending_needs_a_folder_for_its_records(app: typer.Typer, study: Path) -> None:
    bare = study.rename(study.with_suffix(""))
    with pytest.raises(StudyError, match=r"study has no ending like \.yaml: say with --results"):
        run(app, bare, "--report")
    with pytest.raises(StudyError, match="study can't be written"):
        run(app, bare, "--report", "--results", str(bare))


def test_a_report_needs_no_data_and_trains_nothing(app: typer.Typer, study: Path) -> None:
    assert run(app, study, "--report", "--set", "data_folder=nowhere").startswith("0 of 3 finished")


def test_a_cell_that_the_study_does_not_have_is_refused_with_how_they_are_written(
    app: typer.Typer, study: Path
) -> None:
    with pytest.raises(StudyError, match="no such cell; they are written like words/predecessor/seed0"):
        run(app, study, "--cell", "words/theseus/1")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (20, ", about 0 min of work left"),
        (3500, ", about 58 min of work left"),
        (7320, ", about 2 h 2 min of work left"),
    ],
)
def test_what_is_left_is_said_in_hours_and_minutes(seconds: float | None, words: str) -> None:
    assert study_cli._left(seconds) == words


def test_a_dry_run_says_what_is_missing_and_does_nothing(app: typer.Typer, study: Path) -> None:
    records = study.with_suffix("")
    said = run(app, study, "--dry-run").splitlines()
    assert said[0] == f"0 of 3 finished; the records are in {records}"
    assert said[1:] == [f"missing: words/{arm}/seed0" for arm in ("predecessor", "control", "theseus")]
    assert not records.exists()
    assert json.loads(run(app, study, "--dry-run", "--json")) == {
        "finished": 0,
        "units": 3,
        "missing": [line.removeprefix("missing: ") for line in said[1:]],
        "seconds_left": None,
    }


def test_two_things_to_do_at_once_are_refused(app: typer.Typer, study: Path) -> None:
    with pytest.raises(StudyError, match="are four things to do: give one"):
        run(app, study, "--dry-run", "--report")


def test_a_dry_run_refuses_records_of_another_study(app: typer.Typer, study: Path) -> None:
    results, cell = Results(study.with_suffix("")), Cell("words", PREDECESSOR, 0)
    task = task_record([0, 1])
    results.write(results.task_path("words"), task)
    keep(results, cell, cell_record([0, 1], 1.0, data_sha256=task.data_sha256))
    with pytest.raises(StudyError, match="was made of other steps than the study has now"):
        run(app, study, "--dry-run")


@pytest.mark.parametrize("name", STUDIES.shipped)
def test_a_study_that_ships_has_a_name_and_its_records_belong_to_it(
    app: typer.Typer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [name, "--dry-run", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["finished"] > 0


def test_records_of_an_installed_study_go_into_the_working_folder(tmp_path: Path) -> None:
    file = tmp_path / "known.yaml"
    assert study_cli._records_folder(Document({}, file, ships=True)) == Path("artifacts/studies/known")
    assert study_cli._records_folder(Document({}, file, ships=False)) == tmp_path / "known"
    (tmp_path / "known").mkdir()
    assert study_cli._records_folder(Document({}, file, ships=True)) == tmp_path / "known"
