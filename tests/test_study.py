from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from model_store.builder.errors import RecipeError
from model_store.builder.sources import FileSource
from model_store.builder.step import TrainingParameters
from model_store.builder.study import PREDECESSOR, Cell, Study, Trial
from model_store.builder.weights import LocalWeights
from tests.tiny_studies import load_study, study_document

STUDIES = sorted((Path(__file__).parent.parent / "model_store" / "recipes" / "studies").glob("*.yaml"))


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def loaded(folder: Path, *overrides: str, **changes: object) -> Study:
    return load_study(write(folder, study_document(folder) | changes), overrides)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_ships_can_be_read_and_its_arms_compose(path: Path) -> None:
    assert list(load_study(path).cells())


def test_the_grid_is_tasks_then_seeds_then_arms_with_an_arms_trials_before_its_first_cell(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    assert [str(unit) for unit in study.units()] == [
        *(f"words/{PREDECESSOR}/rate{rate}" for rate in ("0.003", "0.01")),
        f"words/{PREDECESSOR}/seed0",
        *(f"words/control/rate{rate}" for rate in ("0.003", "0.01")),
        "words/control/seed0",
        *(f"words/theseus/rate{rate}" for rate in ("0.003", "0.01")),
        "words/theseus/seed0",
        f"words/{PREDECESSOR}/seed4",
        "words/control/seed4",
        "words/theseus/seed4",
    ]


def test_an_arm_may_be_of_some_tasks_only(tmp_path: Path) -> None:
    document = study_document(tmp_path)
    document["tasks"]["more"] = document["tasks"]["words"]
    document["arms"]["theseus"]["tasks"] = ["more"]
    study = load_study(write(tmp_path, document))
    assert study.arms_of("words") == [PREDECESSOR, "control"]
    assert study.arms_of("more") == [PREDECESSOR, "control", "theseus"]


def test_an_only_rate_needs_no_trials_and_a_step_that_states_its_own_keeps_it(tmp_path: Path) -> None:
    assert not any(isinstance(unit, Trial) for unit in loaded(tmp_path, "learning_rates=[0.002]").units())
    study = loaded(tmp_path, "arms.theseus.steps.0.learning_rate=0.5")
    assert study.trials("words", "theseus") == []
    recipe = study.recipe("words", "theseus", 0, {"theseus": 0.1, PREDECESSOR: 0.2})
    assert [step.learning_rate for step in recipe.steps if isinstance(step, TrainingParameters)] == [0.2, 0.5]


def test_a_task_may_have_rates_precision_and_epochs_of_its_own(tmp_path: Path) -> None:
    document = study_document(tmp_path)
    own = {"learning_rates": [0.5], "precision": "bfloat16", "epochs": 7}
    document["tasks"]["more"] = document["tasks"]["words"] | own
    study = load_study(write(tmp_path, document))
    assert study.rates_of("words", "theseus") == (0.003, 0.01)
    assert study.rates_of("more", "theseus") == (0.5,)

    def last_step(task: str) -> tuple[object, object, object]:
        step = study.recipe(task, "theseus", 0, {}).steps[-2]
        assert isinstance(step, TrainingParameters)
        return step.learning_rate, step.precision, step.epochs

    assert last_step("words") == (0.003, "float32", 3)
    assert last_step("more") == (0.5, "bfloat16", 7)


def test_a_cells_recipe_has_its_rates_seed_and_the_common_budget(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    recipe = study.recipe("words", "control", 4, {"control": 0.01, PREDECESSOR: 0.003})
    assert (recipe.seed, recipe.max_length) == (4, 24)
    steps = [
        (step.operator, getattr(step, "epochs", None), getattr(step, "learning_rate", None)) for step in recipe.steps
    ]
    assert steps == [
        ("fine_tune", 5, 0.003),
        ("drop_layers", None, None),
        ("fine_tune", 3, 0.01),
        ("export", None, None),
    ]
    both = loaded(tmp_path, "predecessor_steps=[{operator: fine_tune}]", "tasks.words.predecessor_epochs=2")
    recipe = both.recipe("words", "control", 4, {})
    assert [getattr(step, "epochs", None) for step in recipe.steps] == [2, None, 3, None]
    longer = loaded(tmp_path, "tasks.words.epochs=7").recipe("words", "control", 4, {})
    assert [getattr(step, "epochs", None) for step in longer.steps] == [5, None, 7, None]


def test_paths_of_data_start_in_the_data_folder_and_those_of_weights_beside_the_study(tmp_path: Path) -> None:
    study = loaded(tmp_path, "data_folder=elsewhere", "tasks.words.data.dev=dev.csv", "predecessor.path=weights")
    data = study.tasks["words"].data
    assert isinstance(data, FileSource)
    assert data.dev == tmp_path / "elsewhere" / "dev.csv"
    assert isinstance(study.predecessor, LocalWeights)
    assert study.predecessor.path == tmp_path / "weights"


def test_units_are_written_as_a_reader_names_them() -> None:
    assert str(Cell("sst2", "theseus", 1)) == "sst2/theseus/seed1"
    assert str(Trial("sst2", "theseus", 5e-5)) == "sst2/theseus/rate5e-05"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("colour=1", "unknown key colour: allowed are name, about"),
        ("seeds=[1, 1]", "seeds: 1, 1 has a value twice"),
        ("seeds=[]", "seeds: "),
        ("references=[kd]", "no arm 'kd': there are control, theseus"),
        ("arms.control.tasks=[rte]", "arms.control.tasks: no task 'rte': there are words"),
        ("arms.predecessor={steps: [{operator: export}]}", "predecessor is the arm that every study has"),
        (
            "arms.control.steps.0.operator=magic",
            "arms.control.steps.0: input tag 'magic'",
        ),
        ("arms.theseus.steps.0.layers=none", "arms.theseus.steps.0.layers: "),
        ("predecessor_steps.0.warmup_share=2", "predecessor_steps.0.warmup_share: "),
        ("arms.theseus.steps=[{operator: drop_layers, layers: 2}]", "arms.theseus.steps: the last one must be trained"),
        ("learning_rates=[0.001, 20]", "learning_rates.1: "),
        ("seeds=[0, -1]", "seeds.1: "),
        ("name=2024-13-01", "the value is not YAML"),
    ],
)
def test_a_bad_study_is_refused_in_one_line_that_names_the_place(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        loaded(tmp_path, override)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "is not YAML at line 1"),
        ("a: 2024-13-01", "is not YAML: month must be"),
        ("- 1", "is not a study: a mapping"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_study(path)
    with pytest.raises(
        RecipeError, match=r"nowhere\.yaml' can't be read \(No such file.*or one of theseus-12-to-6, theseus-6-to-3"
    ):
        load_study(tmp_path / "nowhere.yaml")


def test_the_predecessors_steps_are_checked_with_an_arm_of_the_task(tmp_path: Path) -> None:
    document = study_document(tmp_path)
    document["tasks"]["others"] = document["tasks"]["words"]
    document["arms"]["control"]["tasks"] = ["others"]
    study = load_study(write(tmp_path, document))
    assert study.recipe("words", PREDECESSOR, 0, {}).name.endswith("-theseus")
    document["arms"]["theseus"]["tasks"] = ["others"]
    with pytest.raises(RecipeError, match=r"tasks\.words: no arm is for it"):
        load_study(write(tmp_path, document))


def test_rates_whose_records_would_have_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has a value twice"):
        loaded(tmp_path, learning_rates=[1e-4, 1.000000001e-4])
