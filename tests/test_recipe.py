from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from model_store.builder.documents import apply_override
from model_store.builder.errors import RecipeError
from model_store.builder.recipe import RECIPES, Recipe, load_recipe, resolve, to_yaml
from model_store.builder.sources import FileSource
from model_store.builder.step import Shape, operator_names
from model_store.builder.weights import HubWeights, LocalWeights, PackageWeights, SplitWeights

TUNE = {"operator": "fine_tune", "epochs": 1, "learning_rate": 1e-4}
THESEUS = {"operator": "theseus", "layers": 3, "epochs": 1, "learning_rate": 1e-4}
DISTILL = {"operator": "distill", "layers": 3, "epochs": 1, "learning_rate": 1e-4}
DROP = {"operator": "drop_layers", "layers": 3}
EXPORT = {"operator": "export"}
QUANTIZE = {"operator": "quantize"}
ENCODER = Shape("encoder", 6)


def document(**changes: object) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "small",
        "predecessor_name": "large",
        "data": {"source": "movie_reviews"},
        "predecessor": {"path": "weights"},
        "steps": [dict(TUNE), dict(THESEUS), dict(EXPORT)],
    }
    return base | changes


def recipe(**changes: object) -> Recipe:
    return resolve(document(**changes), Path("/somewhere"))


@pytest.mark.parametrize("name", RECIPES.shipped)
def test_every_shipped_recipe_is_valid_and_its_steps_compose(name: str) -> None:
    shipped = load_recipe(name)
    assert shipped.check_steps(Shape("encoder", 12 if name == "example" else 6)).kind == "onnx"


def test_the_shipped_recipes_are_the_demo_and_an_example_to_copy() -> None:
    assert RECIPES.shipped == ["example", "sentiment"]


def test_what_a_dry_run_prints_is_the_same_recipe(tmp_path: Path) -> None:
    whole = load_recipe("sentiment", ["seed=7"])
    (tmp_path / "again.yaml").write_text(to_yaml(whole), encoding="utf-8")
    assert load_recipe(str(tmp_path / "again.yaml")) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown key colour: allowed are name, predecessor_name"),
        ({"data": {"source": "movie_reviews", "path": "x"}}, "data: unknown key path: allowed are problem"),
        ({"data": {"source": "web"}}, "'files', 'hub', 'movie_reviews'"),
        ({"data": {"source": "files", "licence": "MIT"}}, "data.train: field required"),
        (
            {"predecessor": {"folder": "x"}},
            "predecessor: name the weights by one of the keys package, parts, path or hub",
        ),
        ({"predecessor": "weights"}, "predecessor: name the weights by one of the keys"),
        ({"predecessor": {"path": "x", "sha": "y"}}, "predecessor: unknown key sha: allowed are path, licence"),
        ({"steps": []}, "steps: "),
        (
            {"steps": [{"operator": "magic"}]},
            "'distill', 'drop_layers', 'export', 'fine_tune', 'fp16', 'quantize', 'theseus'",
        ),
        ({"steps": [TUNE | {"layers": 3}]}, "steps.0: unknown key layers: allowed are operator, epochs"),
        ({"steps": [TUNE | {"epochs": "many"}]}, "steps.0.epochs: input should be a valid integer"),
        ({"steps": [TUNE | {"learning_rate": float("nan")}]}, "steps.0.learning_rate: "),
        ({"steps": [{"operator": "theseus"}]}, "steps.0.epochs: field required"),
        ({"name": "Small"}, "name: 'Small' is not a valid name"),
        ({"alias": "12"}, "alias '12' would read as a version number"),
        ({"predecessor_name": "small"}, "name and predecessor_name must differ"),
        ({"steps": [THESEUS | {"replacing_share": 0.5, "rate_per_step": 0.1}]}, "rate_per_step or replacing_share"),
        ({"steps": [THESEUS | {"modules": [1, 2]}]}, "give layers, or modules where they are uneven"),
        ({"steps": [TUNE | {"patience": 2}]}, "steps.0: patience: without best_on_dev"),
        ({"steps": [DISTILL | {"layers": 1, "patient_weight": 1}]}, "a student of 1 layer has none below its last"),
        ({"data": {"source": "movie_reviews", "metrics": ["pearson"]}}, "pearson is not for a single_label problem"),
        ({"data": {"source": "movie_reviews", "metrics": ["bleu"]}}, "'accuracy', 'f1', 'macro_f1'"),
        ({"steps": [THESEUS | {"schedule": "constant", "rate_per_step": 0.1}]}, "is for the linear schedule"),
    ],
)
def test_a_bad_recipe_is_refused_naming_the_key_and_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        recipe(**changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("steps", "start", "message"),
    [
        ([THESEUS, EXPORT], ENCODER, "steps.0.theseus can't follow here: it takes classifier"),
        ([TUNE, QUANTIZE, EXPORT], ENCODER, "steps.1.quantize can't follow here: it takes onnx"),
        ([TUNE, THESEUS], ENCODER, "must export the model"),
        ([TUNE, EXPORT], ENCODER, "none of them compresses"),
        ([TUNE, DISTILL | {"layers": 6}, EXPORT], ENCODER, "layers: 6 is not fewer than the 6 layers before this step"),
        ([DISTILL, EXPORT], ENCODER, "distill can't follow here: it takes classifier"),
        ([DROP, TUNE, EXPORT], ENCODER, "steps.0.drop_layers can't follow here: it takes classifier"),
        ([DROP | {"layers": 7}, EXPORT], ENCODER, "layers: 7 is not fewer"),
        ([TUNE, THESEUS | {"layers": 4}, EXPORT], ENCODER, "steps.1.layers: 4 does not divide the 6 layers"),
        ([TUNE, THESEUS | {"layers": 6}, EXPORT], ENCODER, "use 1, 2, 3"),
        ([THESEUS | {"layers": 1}, EXPORT], Shape("classifier", 1), "use a predecessor with more layers"),
    ],
)
def test_steps_that_do_not_fit_are_refused_before_anything_runs(
    steps: list[dict[str, Any]], start: Shape, message: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        recipe(steps=steps).check_steps(start)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("steps", "start", "layers", "own"),
    [
        ([TUNE, THESEUS, EXPORT, QUANTIZE], ENCODER, 3, 1),
        ([TUNE, EXPORT, QUANTIZE], ENCODER, 6, 1),
        ([TUNE, DROP, TUNE, EXPORT], ENCODER, 3, 1),
        ([TUNE, DISTILL, EXPORT], ENCODER, 3, 1),
        ([THESEUS, THESEUS | {"layers": 1}, TUNE, EXPORT], Shape("classifier", 6), 1, 0),
    ],
)
def test_steps_compose_in_any_order_in_which_their_kinds_fit(
    steps: list[dict[str, Any]], start: Shape, layers: int, own: int
) -> None:
    composed = recipe(steps=steps)
    assert composed.check_steps(start) == Shape("onnx", layers)
    assert composed.own_predecessor_steps == own


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        ({"path": "x"}, LocalWeights),
        ({"hub": "org/name"}, HubWeights),
        (
            {"parts": [{"package": "p", "version": "1", "sha256": "0" * 64}], "member": "m", "licence": "MIT"},
            SplitWeights,
        ),
        ({"package": "p", "version": "1", "sha256": "0" * 64, "member": "m", "licence": "MIT"}, PackageWeights),
    ],
)
def test_weights_come_from_a_folder_a_hub_or_a_package(weights: dict[str, Any], kind: type) -> None:
    assert isinstance(recipe(predecessor=weights).predecessor, kind)


def test_a_set_option_changes_keys_and_positions_of_lists_and_makes_missing_sections() -> None:
    changed = document()
    for override in ("steps.0.epochs=3", "gate.min_retention=0.9", "data.overlap=refuse", "steps.2={operator: export}"):
        apply_override(changed, override)
    done = resolve(changed, Path())
    assert (done.steps[0].model_dump()["epochs"], done.gate.min_retention, done.data.overlap) == (3, 0.9, "refuse")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "not of the form a.b=c"),
        ("a..b=1", "not of the form a.b=c"),
        ("steps.9.epochs=1", "steps has the positions 0 to 2"),
        ("steps.first.epochs=1", "steps has the positions 0 to 2"),
        ("name.first=1", "name holds a value, not keys"),
        ("name=[", "the value is not YAML"),
        ("name=2024-13-01", "the value is not YAML"),
        ("name=" + "[" * 5000, "the value is not YAML"),
        ("steps.².epochs=1", "steps has the positions 0 to 2"),
    ],
)
def test_a_set_option_that_fits_nowhere_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match="--set") as refusal:
        apply_override(document(), override)
    assert message in str(refusal.value)


def test_relative_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    data = {"source": "files", "licence": "MIT", "train": "a.csv", "dev": "/abs/b.csv", "test": "sub/c.csv"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document(data=data)), encoding="utf-8")
    mine = load_recipe(str(tmp_path / "mine.yaml"))
    assert isinstance(mine.data, FileSource)
    assert isinstance(mine.predecessor, LocalWeights)
    assert (mine.data.train, mine.data.dev) == (tmp_path / "a.csv", Path("/abs/b.csv"))
    assert mine.predecessor.path == tmp_path / "weights"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not YAML at line"),
        (b"name: 2024-13-01", "is not YAML: month must be"),
        (b"- 1", "is not a recipe: a mapping with name, predecessor_name"),
        (b"\xff\xfe\xfa", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(tmp_path / "r.yaml"))


def test_a_recipe_that_is_not_there_is_refused_with_the_names_of_those_that_ship() -> None:
    with pytest.raises(RecipeError, match="example, sentiment"):
        load_recipe("sentimental")


def test_every_operator_is_a_file_with_parameters_and_a_function() -> None:
    assert operator_names() == ["distill", "drop_layers", "export", "fine_tune", "fp16", "quantize", "theseus"]
