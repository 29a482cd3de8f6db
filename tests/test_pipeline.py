"""The whole build, for real, with a model of a few thousand numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_store.builder.documents import apply_override
from model_store.builder.errors import (
    BuildExtraError,
    DataError,
    ExportError,
    GateFailedError,
    LaunchError,
    RecipeError,
    WeightsError,
    WorkFolderError,
)
from model_store.builder.operators.quantize import ALL_CANDIDATES
from model_store.builder.pipeline import Build, _check_architecture, build
from model_store.builder.plan import check_installation, make_plan
from model_store.builder.recipe import Recipe, resolve
from model_store.builder.report import REPORT_FILES
from model_store.builder.runner import Runner
from model_store.classifier import OnnxClassifier, to_scores
from model_store.encoding import TextItem
from model_store.manifest import ModelId
from model_store.store import ModelStore
from tests.tiny_torch import Killed, Recorder, make_tiny_encoder, tiny_document

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the tiny data and encoder, the work folder and the store of one finished build."""
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def document(folder: Path) -> dict[str, Any]:
    return tiny_document(folder)


@pytest.fixture(scope="module")
def finished(folder: Path, document: dict[str, Any]) -> Build:
    return build(resolve(document, folder), ModelStore(folder / "store"), folder / "work", Recorder())


def changed(document: dict[str, Any], folder: Path, *overrides: str) -> Recipe:
    copy = json.loads(json.dumps(document))
    for override in overrides:
        apply_override(copy, override)
    return resolve(copy, folder)


def test_a_build_publishes_a_predecessor_and_its_successor_in_production(folder: Path, finished: Build) -> None:
    store = ModelStore(folder / "store")
    assert (str(finished.predecessor), str(finished.successor)) == ("tiny-predecessor@1", "tiny@1")
    assert store.resolve("tiny@production") == finished.successor
    assert store.resolve("tiny-predecessor@production") == finished.predecessor
    old, new = store.open(finished.predecessor).manifest, store.open(finished.successor).manifest
    assert [entry.file for entry in old.artifacts] == ["fp32.onnx"]
    assert [entry.precision for entry in new.artifacts] == ["fp32", "int8"]
    assert {*REPORT_FILES, "tokenizer.json"} == {entry.file for entry in new.files}
    assert (new.lineage.predecessor, new.lineage.predecessor_sha256) == ("tiny-predecessor@1", old.artifacts[0].sha256)
    assert (new.lineage.encoder_licence, new.lineage.data.licence) == ("CC0-1.0", "CC0-1.0")
    assert new.lineage.recipe["steps"][1]["layers"] == 2
    assert all(check.passed for check in new.gate)
    assert new.measurements["successor_parity"] <= 1e-4


def test_what_was_published_answers_through_the_servers_own_classifier(folder: Path, finished: Build) -> None:
    version = ModelStore(folder / "store").open(finished.successor)
    for artifact in version.manifest.artifacts:
        classifier = OnnxClassifier(version, artifact=artifact)
        logits = classifier.run([classifier.encode(TextItem("good w1 w2"))])
        assert to_scores(logits, version.manifest.scores).sum() == pytest.approx(1)


def test_the_report_has_quality_with_intervals_files_candidates_and_steps(folder: Path, finished: Build) -> None:
    report = json.loads(finished.report.read_text(encoding="utf-8"))
    assert set(report["quality"]["estimates"]) == {
        "predecessor",
        "successor",
        "tfidf",
        "retention",
        "predecessor_margin",
        "successor_margin",
    }
    assert [entry["method"] for entry in report["candidates"]] == list(ALL_CANDIDATES)
    steps = [(step["model"], step["operator"]) for step in report["steps"]]
    assert steps[:3] == [("predecessor", "fine_tune"), ("predecessor", "export"), ("successor", "theseus")]
    text = finished.report.with_suffix(".md").read_text(encoding="utf-8")
    assert "| tfidf |" in text
    assert set(finished.seconds) == {"fine_tune", "theseus", "export", "quantize", "evaluate"}


def test_building_again_takes_what_is_kept_and_adds_no_version(
    folder: Path, document: dict[str, Any], finished: Build, tmp_path: Path
) -> None:
    shutil.copytree(folder / "store", tmp_path / "store")
    progress = Recorder()
    again = build(resolve(document, folder), ModelStore(tmp_path / "store"), folder / "work", progress)
    assert not progress.advances
    assert (again.predecessor, again.successor) == (finished.predecessor, finished.successor)
    assert again.measurements == finished.measurements
    other = changed(document, folder, "gate.min_test_rows=1")
    judged = build(other, ModelStore(tmp_path / "store"), folder / "work", progress)
    assert (judged.predecessor, judged.successor) == (finished.predecessor, ModelId(name="tiny", version=2))


def test_a_damaged_version_does_not_keep_a_new_one_from_being_published(
    folder: Path, document: dict[str, Any], finished: Build, tmp_path: Path
) -> None:
    shutil.copytree(folder / "store", tmp_path / "store")
    for name in ("tiny", "tiny-predecessor"):
        manifest = tmp_path / "store" / name / "1" / "manifest.json"
        manifest.chmod(0o644)
        manifest.write_text("{")
    again = build(resolve(document, folder), ModelStore(tmp_path / "store"), folder / "work", Recorder())
    assert (str(again.predecessor), str(again.successor)) == ("tiny-predecessor@2", "tiny@2")


def test_a_dry_run_knows_which_steps_are_kept(folder: Path, document: dict[str, Any], finished: Build) -> None:
    runner = Runner(folder / "work", Recorder())
    assert make_plan(resolve(document, folder), offline=True).kept(runner) == [True] * 4
    other = changed(document, folder, "steps.1.base_rate=0.5")
    assert make_plan(other, offline=True).kept(runner) == [True, False, False, False]
    assert make_plan(changed(document, folder, "seed=1"), offline=True).kept(runner) == [False] * 4
    # The best epoch on dev is another by another metric.
    assert make_plan(changed(document, folder, "data.metrics=[f1]"), offline=True).kept(runner) == [False] * 4


def test_a_failed_gate_publishes_nothing_and_keeps_the_results(
    folder: Path, document: dict[str, Any], finished: Build, tmp_path: Path
) -> None:
    recipe = changed(document, folder, "gate.min_size_ratio=100", "gate.min_test_rows=1")
    with pytest.raises(GateFailedError, match=r"size_ratio is .*, wanted ≥ 100 \(results are in"):
        build(recipe, ModelStore(tmp_path / "store"), folder / "work", Recorder())
    assert not (tmp_path / "store").exists()
    report = json.loads(finished.report.read_text(encoding="utf-8"))
    assert [check["passed"] for check in report["gate"] if check["name"] == "size_ratio"] == [False]


def test_a_build_that_is_killed_leaves_the_store_as_it_was_and_goes_on_when_run_again(
    folder: Path, document: dict[str, Any], finished: Build, tmp_path: Path
) -> None:
    recipe, store = resolve(document, folder), ModelStore(tmp_path / "store")
    for kill in (("fine_tune", 7), ("theseus", 13), ("quantize", 2)):
        with pytest.raises(Killed):
            build(recipe, store, tmp_path / "work", Recorder(kill))
        assert store.names() == []
    again = build(recipe, store, tmp_path / "work", Recorder())
    old, new = (ModelStore(folder / "store").manifest(finished.successor), store.manifest(again.successor))
    assert old.artifacts[0].sha256 == new.artifacts[0].sha256


def test_a_predecessor_that_is_fine_tuned_already_needs_no_first_step(folder: Path, tmp_path: Path) -> None:
    labels = ("positive", "negative")
    tuned = tiny_document(tmp_path, encoder=make_tiny_encoder(tmp_path / "tuned", labels=labels))
    del tuned["steps"][0]
    done = build(resolve(tuned, tmp_path), ModelStore(tmp_path / "store"), tmp_path / "work", Recorder())
    assert ModelStore(tmp_path / "store").manifest(done.successor).scores.labels == labels


def test_an_unknown_label_of_a_tuned_predecessor_is_refused_before_training(tmp_path: Path) -> None:
    tuned = tiny_document(tmp_path, encoder=make_tiny_encoder(tmp_path / "tuned", labels=("good", "bad")))
    del tuned["steps"][0]
    with pytest.raises(DataError, match="unknown to the predecessor, which has 'good', 'bad'"):
        make_plan(resolve(tuned, tmp_path))


@pytest.mark.parametrize(("problem", "pair"), [("multi_label", False), ("regression", True)])
def test_other_problems_and_pairs_are_built_the_same_way(tmp_path: Path, problem: str, pair: bool) -> None:
    recipe = resolve(tiny_document(tmp_path, problem=problem, pair=pair), tmp_path)
    done = build(recipe, ModelStore(tmp_path / "store"), tmp_path / "work", Recorder())
    manifest = ModelStore(tmp_path / "store").manifest(done.successor)
    assert (manifest.scores.problem, manifest.inputs.pair) == (problem, pair)


def test_a_successor_may_be_quantised_alone(document: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    plain = json.loads(json.dumps(document))
    del plain["steps"][1]
    done = build(resolve(plain, folder), ModelStore(tmp_path / "store"), folder / "work", Recorder())
    store = ModelStore(tmp_path / "store")
    old, new = store.manifest(done.predecessor).artifacts, store.manifest(done.successor).artifacts
    assert old[0].sha256 == new[0].sha256
    assert new[1].precision == "int8"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_length=64", "max_length: the predecessor reads at most 40 tokens"),
        ("steps.1.layers=3", "steps.1.layers: 3 does not divide the 4 layers"),
        ("steps.1.rate_per_step=0.001", "steps.1.rate_per_step: p reaches 1 only after 700.0 of 24 steps"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_is_trained(
    document: dict[str, Any], folder: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        make_plan(changed(document, folder, override))
    assert message in str(refusal.value)


def test_a_length_that_the_special_tokens_of_a_pair_fill_is_refused(tmp_path: Path) -> None:
    document = tiny_document(tmp_path, pair=True)
    whole = make_plan(changed(document, tmp_path, "max_length=5"))
    short = changed(document, tmp_path, "max_length=4")
    message = "max_length: 4 tokens leave no room for both texts beside the special ones: use at least 5"
    for planning in (make_plan, whole.for_recipe):
        with pytest.raises(RecipeError, match=message):
            planning(short)
    make_plan(changed(tiny_document(tmp_path / "single"), tmp_path, "max_length=4"))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "albert", "num_hidden_groups": 1}, "AlbertForSequenceClassification has 0 lists of 4 layers"),
        ({"model_type": "vit"}, "transformers can't make a classifier of"),
        ({"model_type": "unheard-of"}, "transformers can't make a classifier of"),
        ({"model_type": "ernie"}, "optimum can't export a classifier of the architecture ernie"),
        ({"type_vocab_size": 1}, r"bert is exported with token types 0 and 1, and type_vocab_size .* is 1"),
        (
            {"model_type": "qwen3", "num_key_value_heads": 2},
            r"^steps\.1\.theseus: Qwen3ForSequenceClassification with 2 layers can't be read back",
        ),
    ],
)
def test_an_architecture_that_can_not_be_built_is_refused_before_anything_is_trained(
    document: dict[str, Any], folder: Path, tmp_path: Path, architecture: dict[str, Any], message: str
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(folder / document["predecessor"]["path"], weights)
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps(config | architecture))
    recipe = changed(document, folder, f"predecessor.path={weights}")
    with pytest.raises((ExportError, WeightsError), match=message) as refusal:
        build(recipe, ModelStore(tmp_path / "store"), tmp_path / "work", Recorder())
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "work" / "steps").exists()


def test_a_work_folder_that_has_no_room_to_try_the_steps_is_named(document: dict[str, Any], folder: Path) -> None:
    plan = make_plan(changed(document, folder))
    with pytest.raises(WorkFolderError, match=r"the steps could not be tried .*: see that .*nowhere has room"):
        _check_architecture(plan, Runner(folder / "nowhere", Recorder()))


def test_a_version_that_was_damaged_is_published_again(folder: Path, tmp_path: Path, finished: Build) -> None:
    document = tiny_document(tmp_path)
    recipe = resolve(document, tmp_path)
    store = ModelStore(tmp_path / "store")
    first = build(recipe, store, tmp_path / "work", Recorder())
    damaged = store.root / "tiny-predecessor" / "1" / "fp32.onnx"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    again = build(recipe, store, tmp_path / "work", Recorder())
    assert (str(first.predecessor), str(again.predecessor)) == ("tiny-predecessor@1", "tiny-predecessor@2")
    assert store.resolve("tiny-predecessor@production") == again.predecessor
    store.open(again.predecessor)
    store.remove(first.predecessor)


def test_a_kept_step_that_lost_its_weights_is_done_again(tmp_path: Path) -> None:
    recipe = resolve(tiny_document(tmp_path), tmp_path)
    store = ModelStore(tmp_path / "store")
    first = build(recipe, store, tmp_path / "work", Recorder())
    (quantized,) = (tmp_path / "work" / "steps").glob("quantize-*/int8.onnx")
    quantized.chmod(0o644)
    quantized.write_bytes(b"")
    again = build(recipe, store, tmp_path / "work", Recorder())
    assert store.open(again.successor).manifest.artifacts[1].precision == "int8"
    assert again.predecessor == first.predecessor


def test_missing_packages_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optimum", None)
    with pytest.raises(BuildExtraError, match=r"a build needs optimum: .*pip install '\.\[build\]'"):
        check_installation()


def test_a_build_refuses_to_be_one_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match="this is one of 2 processes: start one"):
        check_installation()
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_installation()


def test_a_build_may_add_a_file_that_is_not_timed_here(
    folder: Path, document: dict[str, Any], finished: Build, tmp_path: Path
) -> None:
    copy = json.loads(json.dumps(document))
    copy["steps"].append({"operator": "fp16", "min_agreement": 0})
    done = build(resolve(copy, folder), ModelStore(tmp_path / "store"), folder / "work", Recorder())
    manifest = ModelStore(tmp_path / "store").open(done.successor).manifest
    assert [entry.precision for entry in manifest.artifacts] == ["fp32", "int8", "fp16"]
    (line,) = [line for line in done.report.with_suffix(".md").read_text().splitlines() if "| fp16.onnx |" in line]
    assert line.endswith("| – |")


def test_both_served_files_are_timed_in_turns(finished: Build) -> None:
    speedup = json.loads(finished.report.read_text(encoding="utf-8"))["quality"]["speedup_alone"]
    assert 0 < speedup["low"] <= speedup["value"] <= speedup["high"]
    assert finished.measurements["speedup_alone"] == speedup["value"]
    assert "text by text in turns" in finished.report.with_suffix(".md").read_text()


def test_a_metric_that_is_asked_for_later_is_counted(
    folder: Path, document: dict[str, Any], finished: Build, tmp_path: Path
) -> None:
    recipe = changed(document, folder, "data.metrics=[accuracy, f1]")
    done = build(recipe, ModelStore(tmp_path / "store"), folder / "work", Recorder())
    assert 0 <= done.measurements["successor_f1"] <= 1


def test_another_tokenizer_makes_all_steps_others(
    folder: Path, document: dict[str, Any], finished: Build, tmp_path: Path
) -> None:
    shutil.copytree(document["predecessor"]["path"], tmp_path / "encoder")
    recipe = changed(document, folder, f"predecessor.path={tmp_path / 'encoder'}")
    runner = Runner(folder / "work", Recorder())
    assert make_plan(recipe).kept(runner) == [True] * 4
    file = tmp_path / "encoder" / "tokenizer.json"
    file.write_text(file.read_text().replace('"good"', '"goods"'))
    assert make_plan(recipe).kept(runner) == [False] * 4


def test_a_predecessor_that_reads_texts_otherwise_is_another_version(tmp_path: Path) -> None:
    labels = ("negative", "positive")
    encoder = make_tiny_encoder(tmp_path / "tuned", labels=labels, spread=0.3)
    document = tiny_document(tmp_path, encoder=encoder)
    document["steps"] = [{"operator": "drop_layers", "layers": 2}, {"operator": "export"}]
    store, built = ModelStore(tmp_path / "store"), []
    for length in (24, 8, 8):
        recipe = changed(document, tmp_path, f"max_length={length}")
        built.append(build(recipe, store, tmp_path / "work", Recorder()))
    assert [str(done.predecessor) for done in built] == [f"tiny-predecessor@{number}" for number in (1, 2, 2)]
    for done in built[1:]:
        assert store.manifest(done.predecessor).inputs == store.manifest(done.successor).inputs
