"""From a version in the store to a model that answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog
from prometheus_client import CollectorRegistry

from model_store.classifier import _IDENTITY
from model_store.encoding import TextItem
from model_store.errors import ClassifierError, InferenceError, IntegrityError
from model_store.manifest import Artifact, Manifest, ModelId
from model_store.seats import Seats
from model_store.store import ModelStore, digest_file
from service.cost_model import CostModel
from service.loading import Loader, check_same, warm_up
from service.metrics import Metrics
from service.served_model import ServedModel
from tests.fakes import FakeClassifier
from tests.serving import served
from tests.tiny import MODEL_FILE, TinyWeights, make_tiny_version, tiny_draft, write_onnx


def loader(store: ModelStore, costs: Path | None = None, *, workers: int = 2, lone_max_bytes: int = 10**6) -> Loader:
    return Loader(
        store=store,
        provider="CPUExecutionProvider",
        workers=workers,
        seats=None,
        lone_max_bytes=lone_max_bytes,
        max_batch_texts=16,
        metrics=Metrics(CollectorRegistry()),
        costs_dir=costs,
    )


def keep(load: Loader, model: ServedModel) -> None:
    load.keep(model.classifier, model.cost)


def two_files(store: ModelStore, folder: Path, spoil: Callable[[Path], object] = lambda _: None) -> ModelId:
    """A version that has the same model twice, the second time as what claims to be int8."""
    draft, files = tiny_draft(folder, "two")
    files["int8.onnx"] = folder / "int8.onnx"
    write_onnx(files["int8.onnx"], TinyWeights.drawn(2, seed=1))
    spoil(files["int8.onnx"])
    sha256, size = digest_file(files["int8.onnx"])
    first = draft.artifacts[0]
    second = first.model_copy(
        update={"file": "int8.onnx", "sha256": sha256, "bytes": size, "precision": "int8", "method": "none"}
    )
    return store.publish(draft.model_copy(update={"artifacts": (first, second)}), files)


def fake(manifest: Manifest, artifact: Artifact) -> FakeClassifier:
    classifier = FakeClassifier(manifest)
    classifier.artifact = artifact
    return classifier


def test_a_loaded_version_answers_and_its_cost_is_begun(store: ModelStore, tiny: ModelId) -> None:
    model = loader(store)(tiny)
    encoded = model.classifier.encode(TextItem("a good film"))
    expected = TinyWeights.drawn(2, seed=0).logits(encoded.input_ids)
    np.testing.assert_allclose(model.classifier.run([encoded])[0], expected, atol=1e-5)
    assert (model.reference, model.max_batch_texts, model.cost.calls) == ("tiny@1", 16, 1)
    assert model.estimate_s(TextItem("a good film")) > 0


def calibrated(load: Loader, model: ModelId) -> ServedModel:
    """A loaded version after idle time."""
    served = load(model)
    assert served.lone is None  # readiness does not wait for it
    asyncio.run(load.calibrate(served, lambda: True))
    return served


def test_idle_time_opens_a_second_session(store: ModelStore, tiny: ModelId) -> None:
    seats = Seats(0, (0,))
    lone = calibrated(replace(loader(store), seats=seats), tiny).lone
    assert lone is not None
    assert lone.seats == seats


def test_large_files_and_single_cores_get_no_second_session(store: ModelStore, tiny: ModelId) -> None:
    assert calibrated(loader(store, lone_max_bytes=100), tiny).lone is None
    assert calibrated(loader(store, workers=1), tiny).lone is None


def test_a_version_that_is_gone_by_then_goes_on_without_a_second_session(store: ModelStore, tiny: ModelId) -> None:
    load = loader(store)
    served = load(tiny)
    shutil.rmtree(store.root / tiny.name / str(tiny.version))
    asyncio.run(load.calibrate(served, lambda: True))
    assert served.lone is None


def test_a_file_whose_answers_depend_on_the_batch_is_never_batched(store: ModelStore) -> None:
    assert loader(store)(make_tiny_version(store, "dynamic", batch_invariant=False)).max_batch_texts == 1


def test_pairs_are_warmed_with_pairs(store: ModelStore) -> None:
    model = loader(store)(make_tiny_version(store, "pairs", pair=True))
    assert model.manifest.inputs.pair


def test_a_corrupt_version_is_refused_by_its_digest(store: ModelStore, tiny: ModelId) -> None:
    file = store.root / "tiny" / "1" / MODEL_FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="is not what was published"):
        loader(store)(tiny)


def test_a_model_that_answers_with_no_number_is_refused() -> None:
    class Broken(FakeClassifier):
        def run(self, batch: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            return np.full((1, 2), np.nan, np.float32)

    with pytest.raises(InferenceError, match="not finite"):
        warm_up(served(Broken()))


def test_two_sessions_that_disagree_are_refused() -> None:
    class Other(FakeClassifier):
        def run(self, batch: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            return np.full((1, 2), 100.0, np.float32)

    with pytest.raises(InferenceError, match="answers differently with all cores"):
        check_same(FakeClassifier(), Other())


def test_idle_time_measures_calls_and_what_was_learned_is_kept(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    costs = tmp_path / "state" / "costs"
    load = loader(store, costs)
    model = load(tiny)
    looks = iter([False, *[True] * 100])
    asyncio.run(load.calibrate(model, lambda: next(looks)))
    assert model.cost.calls > 3
    (file,) = costs.iterdir()
    assert json.loads(file.read_text())["calls"] == model.cost.calls
    again = load(tiny)
    assert again.cost.calls == model.cost.calls
    assert again.cost.coefficients == pytest.approx(model.cost.coefficients)


def test_what_is_known_well_is_not_measured_again(store: ModelStore, tiny: ModelId) -> None:
    load = loader(store)
    model = load(tiny)
    for _ in range(50):
        model.cost.observe(1, 8, 0.001)
    calls = model.cost.calls
    asyncio.run(load.calibrate(model, lambda: True))
    assert model.cost.calls == calls


@pytest.mark.parametrize("content", ["", "not json", '{"matrix": [], "vector": [], "calls": 3}'])
def test_kept_costs_that_are_not_valid_are_measured_again(
    store: ModelStore, tiny: ModelId, tmp_path: Path, content: str
) -> None:
    load = loader(store, tmp_path)
    keep(load, load(tiny))
    (file,) = tmp_path.glob("*.json")
    file.write_text(content)
    assert load(tiny).cost.calls == 1


def test_a_state_folder_that_cannot_be_written_does_not_stop_the_server(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    load = loader(store, tmp_path / "file" / "costs")
    keep(load, load(tiny))
    assert (tmp_path / "file").read_text() == "not a folder"


def test_without_a_state_folder_nothing_is_kept(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    before, load = {*tmp_path.rglob("*")}, loader(store)
    keep(load, load(tiny))
    assert {*tmp_path.rglob("*")} == before


def test_idle_time_measures_a_versions_other_files_and_the_next_load_takes_the_cheapest(
    store: ModelStore, tmp_path: Path
) -> None:
    model = two_files(store, tmp_path / "draft")
    load = loader(store, tmp_path / "costs")
    served = load(model)
    asyncio.run(load.calibrate(served, lambda: True))
    assert len(list((tmp_path / "costs").iterdir())) == 2
    for artifact, seconds in zip(served.manifest.artifacts, (0.001, 0.002), strict=True):
        cost = CostModel()
        for texts in (1, 2, 4, 8) * 8:
            cost.observe(texts, 24, seconds * texts)
        load.keep(fake(served.manifest, artifact), cost)
    first, second = served.manifest.artifacts
    assert load.choose(served.manifest) == first
    for texts in (1, 2, 4, 8) * 100:
        cost.observe(texts, 24, 0.0001 * texts)
    load.keep(fake(served.manifest, second), cost)
    assert load(model).classifier.artifact == second


def test_a_file_that_is_too_large_to_be_opened_a_second_time_is_not_measured(store: ModelStore, tmp_path: Path) -> None:
    load = loader(store, tmp_path / "costs", lone_max_bytes=100)
    served = load(two_files(store, tmp_path / "draft"))
    asyncio.run(load.calibrate(served, lambda: True))
    assert len(list((tmp_path / "costs").iterdir())) == 1
    assert load.choose(served.manifest) == served.classifier.artifact


class TakesTheSecond(Loader):
    """Whose measurements say that the second file is the fastest."""

    def choose(self, manifest: Manifest) -> Artifact:
        return manifest.artifacts[1]


def second_first(load: Loader) -> Loader:
    return TakesTheSecond(**{field.name: getattr(load, field.name) for field in dataclasses.fields(load)})


def spoil_inputs(path: Path) -> None:
    path.write_bytes(_IDENTITY)  # reads no text


def spoil_weights(path: Path) -> None:
    weights = TinyWeights.drawn(2, seed=1)
    write_onnx(path, dataclasses.replace(weights, bias=np.full_like(weights.bias, np.nan)))


@pytest.mark.parametrize("spoil", [spoil_inputs, spoil_weights])
def test_where_the_fastest_file_does_not_answer_float32_does(
    store: ModelStore, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    model = two_files(store, tmp_path / "draft", spoil)
    with structlog.testing.capture_logs() as logs:
        served = second_first(loader(store))(model)
    assert served.classifier.artifact.precision == "fp32"
    assert [(entry["log_level"], entry["file"]) for entry in logs] == [("warning", "int8.onnx")]


def test_a_file_that_answers_with_no_number_is_not_measured_and_not_announced(
    store: ModelStore, tmp_path: Path
) -> None:
    load = second_first(loader(store, tmp_path / "costs"))
    with structlog.testing.capture_logs() as logs:
        asyncio.run(load.calibrate(load(two_files(store, tmp_path / "draft", spoil_weights)), lambda: True))
    assert len(list((tmp_path / "costs").iterdir())) == 1
    events = [entry["event"] for entry in logs]
    assert events == ["this file does not answer: float32 does", "file not measured"]


def test_a_version_none_of_whose_files_answers_is_refused(store: ModelStore, tmp_path: Path) -> None:
    draft, files = tiny_draft(tmp_path / "draft", "one")
    spoil_inputs(files[draft.artifacts[0].file])
    sha256, size = digest_file(files[draft.artifacts[0].file])
    only = draft.artifacts[0].model_copy(update={"sha256": sha256, "bytes": size})
    model = store.publish(draft.model_copy(update={"artifacts": (only,)}), files)
    with pytest.raises(ClassifierError, match="a classifier reads input_ids"):
        loader(store)(model)


def test_a_file_that_does_not_load_is_not_measured_and_harms_nobody(store: ModelStore, tmp_path: Path) -> None:
    load = loader(store, tmp_path / "costs")
    served = load(two_files(store, tmp_path / "draft"))
    (other,) = [artifact for artifact in served.manifest.artifacts if artifact != served.classifier.artifact]
    (store.root / "two" / "1" / other.file).unlink()
    asyncio.run(load.calibrate(served, lambda: True))
    assert len(list((tmp_path / "costs").iterdir())) == 1
