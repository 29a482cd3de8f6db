"""Which versions are served, and which of them a reference means."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from model_store.errors import ClassifierError, InferenceError, IntegrityError, SuccessorError
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.errors import InvalidRequestError, ModelNotLoadedError, UnusableVersionError
from service.metrics import Metrics
from service.registry import Registry
from service.served_model import ServedModel
from tests.fakes import FakeClassifier, fake_manifest
from tests.serving import served
from tests.tiny import make_tiny_version


class FakeLoader:
    """Makes fakes of versions and remembers which; refuses those that it is told to."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.corrupt: set[str] = set()
        self.failures: dict[str, SuccessorError] = {}

    def __call__(self, model: ModelId) -> ServedModel:
        if str(model) in self.corrupt:
            raise IntegrityError(f"{model} is corrupt")
        if str(model) in self.failures:
            raise self.failures[str(model)]
        self.loaded.append(str(model))
        return served(FakeClassifier(fake_manifest(model.name, model.version)))


class Scene:
    """A store, a loader, and the registry between them."""

    def __init__(
        self,
        store: ModelStore,
        *wanted: str,
        default: str | None = None,
        loader: FakeLoader | None = None,
        load_patience_s: float = 20,
    ) -> None:
        self.store = store
        self.loader = loader or FakeLoader()
        self.metrics_registry = CollectorRegistry()
        self.registry = Registry(
            store,
            wanted=wanted,
            default_model=default,
            load=self.loader,
            metrics=Metrics(self.metrics_registry),
            load_patience_s=load_patience_s,
        )

    def answering(self) -> dict[str, str]:
        return {name: route.model.reference for name, route in self.registry.table.routes.items()}


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_without_a_choice_every_default_and_every_aliased_version_is_loaded(store: ModelStore) -> None:
    async def scenario() -> None:
        make_tiny_version(store, aliases=("canary",))
        make_tiny_version(store, seed=1)
        make_tiny_version(store, seed=2, aliases=("production",))
        make_tiny_version(store, "other")
        make_tiny_version(store, "other", seed=1)
        scene = Scene(store)
        await scene.registry.sync()
        assert scene.answering() == {
            "tiny": "tiny@3",
            "tiny@3": "tiny@3",
            "tiny@production": "tiny@3",
            "tiny@canary": "tiny@1",
            "tiny@1": "tiny@1",
            "other": "other@2",
            "other@2": "other@2",
        }
        assert sorted(scene.loader.loaded) == ["other@2", "tiny@1", "tiny@3"]
        assert scene.metrics_registry.get_sample_value("successor_loaded_versions") == 3

    run(scenario)


def test_a_choice_of_references_loads_those_alone(store: ModelStore) -> None:
    async def scenario() -> None:
        make_tiny_version(store)
        make_tiny_version(store, seed=1, aliases=("production",))
        scene = Scene(store, "tiny@1", "tiny@nobody", "missing")
        await scene.registry.sync()
        assert scene.answering() == {"tiny@1": "tiny@1"}
        assert set(scene.registry.table.failures) == {"tiny@nobody", "missing"}

    run(scenario)


def test_the_arm_is_the_alias_that_was_named(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        arms = {name: scene.registry.route(name).arm for name in ("tiny", "tiny@1", "tiny@production")}
        assert arms == {"tiny": "default", "tiny@1": "default", "tiny@production": "production"}

    run(scenario)


def test_an_unknown_reference_is_answered_with_what_is_there(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        for reference in ("nobody", "tiny@9", "tiny@canary", "../tiny", "", "x" * 100_000):
            with pytest.raises(ModelNotLoadedError, match="this server has tiny, tiny@1, tiny@production") as caught:
                scene.registry.route(reference)
            assert len(str(caught.value)) < 400

    run(scenario)


def test_a_request_without_a_model_gets_the_default_or_is_told_to_name_one(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store, default="tiny@1")
        await scene.registry.sync()
        assert scene.registry.route(None).model.reference == "tiny@1"
        scene = Scene(store)
        with pytest.raises(InvalidRequestError, match="name a model: this server has nothing"):
            scene.registry.route(None)

    run(scenario)


def test_a_version_that_cannot_be_loaded_leaves_the_others_up_and_says_why(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        make_tiny_version(store, "broken")
        scene = Scene(store)
        scene.loader.corrupt = {"broken@1"}
        await scene.registry.sync()
        assert scene.registry.route("tiny").model.reference == "tiny@1"
        with pytest.raises(ModelNotLoadedError, match="could not be loaded: broken@1 is corrupt"):
            scene.registry.route("broken")

    run(scenario)


def test_aliases_that_cannot_be_read_leave_the_other_names_up(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        make_tiny_version(store, "broken", aliases=("production",))
        (store.root / "broken" / "aliases.json").unlink()
        (store.root / "broken" / "aliases.json").write_text("not json")
        scene = Scene(store)
        await scene.registry.sync()
        assert scene.registry.route("tiny").model.reference == "tiny@1"
        assert "broken" in scene.registry.table.failures

    run(scenario)


def test_a_moved_alias_is_served_after_a_sync_and_loaded_versions_are_not_loaded_again(
    store: ModelStore, tiny: ModelId
) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        before = scene.registry.route("tiny@1").model
        make_tiny_version(store, seed=1, aliases=("production",))
        store.promote(tiny, "previous")
        await scene.registry.sync()
        assert scene.answering()["tiny"] == "tiny@2"
        assert scene.registry.route("tiny@previous").model is before
        assert scene.loader.loaded == ["tiny@1", "tiny@2"]

    run(scenario)


def test_an_alias_stays_with_its_old_version_while_the_new_one_cannot_be_loaded(
    store: ModelStore, tiny: ModelId
) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        make_tiny_version(store, seed=1, aliases=("production",))
        scene.loader.corrupt = {"tiny@2"}
        await scene.registry.sync()
        assert scene.registry.route("tiny@production").model.reference == "tiny@1"
        assert scene.registry.table.failures["tiny@production"] == "tiny@2 is corrupt"

    run(scenario)


def test_a_version_at_hand_is_taken_by_the_next_sync_and_loaded_once(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        second = make_tiny_version(store, seed=1)
        async with scene.registry.at_hand(second):
            store.promote(second, "production")
            await scene.registry.sync()
        assert scene.answering()["tiny@production"] == "tiny@2"
        async with scene.registry.at_hand(second):
            pass
        assert scene.loader.loaded.count("tiny@2") == 1
        assert not scene.registry._at_hand

    run(scenario)


@pytest.mark.parametrize(
    ("failure", "refusal"),
    [
        (IntegrityError("changed"), IntegrityError),
        (ClassifierError("no ONNX"), UnusableVersionError),
        (InferenceError("NaN"), UnusableVersionError),
    ],
)
def test_a_version_that_can_not_be_served_is_refused_before_anything_means_it(
    store: ModelStore, tiny: ModelId, failure: SuccessorError, refusal: type[SuccessorError]
) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        second = make_tiny_version(store, seed=1)
        scene.loader.failures = {"tiny@2": failure}
        with pytest.raises(refusal):
            async with scene.registry.at_hand(second):
                raise AssertionError("not reached")

    run(scenario)


def test_nothing_is_loaded_of_a_name_that_the_server_does_not_serve(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store, "tiny")
        await scene.registry.sync()
        async with scene.registry.at_hand(make_tiny_version(store, "other")):
            assert scene.loader.loaded == ["tiny@1"]

    run(scenario)


def test_a_version_that_is_not_wanted_any_more_is_released_once_it_owes_nothing(
    store: ModelStore, tiny: ModelId
) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        old = scene.registry.route("tiny").model
        old.pending = 1
        make_tiny_version(store, seed=1, aliases=("production",))
        await scene.registry.sync()
        scene.registry.release_drained()
        assert scene.registry.retired == [old]
        old.pending = 0
        scene.registry.release_drained()
        assert scene.registry.retired == []

    run(scenario)


@pytest.mark.parametrize("wanted", [(), ("tiny",)])
def test_aliases_that_become_junk_leave_everything_as_it_was_and_that_is_logged_once(
    store: ModelStore, tiny: ModelId, wanted: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        store.promote(tiny, "canary")
        make_tiny_version(store, seed=1, aliases=("production",))
        aliases = store.root / "tiny" / "aliases.json"
        whole = aliases.read_text()
        scene = Scene(store, *wanted)
        await scene.registry.sync()
        before, models = scene.answering(), scene.registry.table.models
        assert before["tiny"] == "tiny@2"
        aliases.unlink()
        aliases.write_text("junk")
        make_tiny_version(store, seed=2)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                await scene.registry.sync()
        assert scene.answering() == before
        assert scene.registry.table.models == models
        (entry,) = logs
        assert (entry["log_level"], "tiny" in entry["still_served"]) == ("warning", True)
        assert "can't be read: restore or delete" in scene.registry.table.failures["tiny"]
        aliases.write_text(whole.replace("2", "3"))
        await scene.registry.sync()
        assert scene.answering()["tiny"] == "tiny@3"
        assert scene.registry.table.failures == {}

    run(scenario)


def test_an_alias_stays_with_its_version_while_it_points_at_none(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        before = scene.answering()
        (store.root / "tiny" / "aliases.json").unlink()
        (store.root / "tiny" / "aliases.json").write_text('{"production": 9}')
        await scene.registry.sync()
        assert scene.answering() == before
        assert "points at version 9" in scene.registry.table.failures["tiny@production"]

    run(scenario)


@pytest.mark.parametrize(("wanted", "why"), [((), "publish one with `successor demo`"), (("nope",), "no model 'nope'")])
def test_a_server_without_models_warns_once_and_says_why(tmp_path: Path, wanted: tuple[str, ...], why: str) -> None:
    async def scenario() -> None:
        scene = Scene(ModelStore(tmp_path / "nothing"), *wanted)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                await scene.registry.sync()
        (warning,) = scene.registry.table.warnings
        assert warning.startswith(f"no model is loaded from {tmp_path / 'nothing'}: {why}")
        assert [entry["log_level"] for entry in logs if entry["event"] == warning] == ["warning"]

    run(scenario)


def test_a_default_model_that_is_loaded_later_is_no_longer_warned_of(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store, default="other@canary")
        await scene.registry.sync()
        (warning,) = scene.registry.table.warnings
        assert "default model 'other@canary'" in warning
        make_tiny_version(store, "other", aliases=("canary",))
        assert (await scene.registry.sync()).warnings == ()

    run(scenario)


def test_the_store_is_watched(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        watching = asyncio.create_task(scene.registry.watch(0.01))
        await asyncio.sleep(0.05)
        make_tiny_version(store, seed=1, aliases=("production",))
        while scene.answering()["tiny"] != "tiny@2":  # noqa: ASYNC110 - the watcher has no event
            await asyncio.sleep(0.01)
        watching.cancel()

    run(scenario)


def test_what_could_not_be_loaded_is_tried_again_while_nothing_else_changes(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        scene.loader.corrupt.add("tiny@1")  # its files are still arriving
        watching = asyncio.create_task(scene.registry.watch(0.01))
        while "tiny@1" not in scene.registry.table.failures:  # noqa: ASYNC110 - the watcher has no event
            await asyncio.sleep(0.01)
        scene.loader.corrupt.clear()
        while scene.answering().get("tiny") != "tiny@1":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        assert not scene.registry.table.failures
        watching.cancel()

    run(scenario)


def test_what_changed_while_the_server_started_is_seen_by_the_first_look(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        make_tiny_version(store, seed=1, aliases=("production",))
        watching = asyncio.create_task(scene.registry.watch(0.01))
        while scene.answering()["tiny"] != "tiny@2":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        watching.cancel()

    run(scenario)


def test_a_store_that_cannot_be_looked_at_for_a_while_is_looked_at_again(
    store: ModelStore, tiny: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        names, failed = store.names, []

        def no_files() -> list[str]:
            failed.append(True)
            if len(failed) < 3:
                raise IntegrityError("the store can't be read (Too many open files)")
            return list(names())

        monkeypatch.setattr(store, "names", no_files)
        make_tiny_version(store, seed=1, aliases=("production",))
        watching = asyncio.create_task(scene.registry.watch(0.01))
        while scene.answering()["tiny"] != "tiny@2":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        watching.cancel()

    with structlog.testing.capture_logs() as logs:
        run(scenario)
    assert [entry["step"] for entry in logs if "step" in entry] == ["look at the store"]


def test_a_version_that_was_measured_and_unloaded_is_gone_from_memory(
    store: ModelStore, tiny: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr("service.registry.give_back", lambda: given_back.append(True))
    monkeypatch.setattr("service.registry._HOUSEKEEPING_S", 0.01)

    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        measured = asyncio.Event()

        async def measure(_: ServedModel) -> None:
            measured.set()

        tasks = [asyncio.create_task(scene.registry.calibrate(measure))]
        await measured.wait()
        old = weakref.ref(scene.registry.table.models[tiny])
        debt = scene.registry.table.models[tiny]
        debt.pending += 1
        scene.registry.demand.set("tiny", wanted=False)
        await scene.registry.sync()
        assert [str(model.manifest.id) for model in scene.registry.retired] == ["tiny@1"]
        tasks.append(asyncio.create_task(scene.registry.keep_house()))
        debt.pending -= 1
        del debt
        while scene.registry.retired:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        gc.collect()
        assert old() is None
        while not given_back:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()

    run(scenario)


def test_a_version_that_cannot_be_measured_leaves_the_others_their_turn(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        make_tiny_version(store, seed=1, aliases=("canary",))
        scene = Scene(store)
        await scene.registry.sync()
        tried: list[str] = []

        async def measure(model: ServedModel) -> None:
            tried.append(model.reference)
            raise InferenceError("it breaks")

        calibrating = asyncio.create_task(scene.registry.calibrate(measure))
        while len(tried) < 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        calibrating.cancel()
        assert sorted(tried) == ["tiny@1", "tiny@2"]

    with structlog.testing.capture_logs() as logs:
        run(scenario)
    assert sorted(entry["model"] for entry in logs if entry["log_level"] == "error") == ["tiny@1", "tiny@2"]


def test_every_loaded_version_is_calibrated_once(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        scene = Scene(store)
        await scene.registry.sync()
        measured: list[str] = []

        async def measure(model: ServedModel) -> None:
            measured.append(model.reference)

        calibrating = asyncio.create_task(scene.registry.calibrate(measure))
        while not measured:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        calibrating.cancel()
        assert measured == ["tiny@1"]

    run(scenario)


def test_an_empty_store_serves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        scene = Scene(ModelStore(tmp_path / "nothing"))
        table = await scene.registry.sync()
        assert (table.routes, table.failures) == ({}, {})

    run(scenario)


class SlowLoader(FakeLoader):
    """Loads some versions only when it is told to."""

    def __init__(self, *slow: str) -> None:
        super().__init__()
        self.slow = slow
        self.release = threading.Event()
        self.asked: list[str] = []

    def __call__(self, model: ModelId) -> ServedModel:
        self.asked.append(str(model))
        if str(model) in self.slow:
            self.release.wait(20)
        return super().__call__(model)


async def settled(registry: Registry) -> None:
    """Wait until nothing is being loaded, and what was loaded late has been taken."""
    while not all(loading.done() for loading in registry._loading.values()):  # noqa: ASYNC110 - has no event
        await asyncio.sleep(0.005)
    await asyncio.sleep(0)
    if registry._catching_up is not None:
        await registry._catching_up


def test_versions_that_load_for_long_are_waited_for_once_and_served_as_soon_as_they_have(
    store: ModelStore, tiny: ModelId
) -> None:
    async def scenario() -> None:
        make_tiny_version(store, "other")
        make_tiny_version(store, "slow")
        loader = SlowLoader(str(tiny), "slow@1")
        scene = Scene(store, loader=loader, load_patience_s=0.2)
        begun = time.monotonic()
        await scene.registry.sync()
        assert time.monotonic() - begun < 0.39  # not one after the other
        for _ in range(3):
            assert set(scene.answering()) == {"other", "other@1"}
            assert "not loaded within 0.2 s" in scene.registry.table.failures["tiny"]
            begun = time.monotonic()
            await scene.registry.sync()
            assert time.monotonic() - begun < 0.2
        with pytest.raises(ModelNotLoadedError, match="not loaded within"):
            scene.registry.route("tiny")
        with pytest.raises(UnusableVersionError, match="not loaded within"):
            async with scene.registry.at_hand(tiny):
                pass
        loader.release.set()
        await settled(scene.registry)
        assert set(scene.answering()) >= {"tiny@1", "other@1", "slow@1"}
        assert not scene.registry.table.failures
        assert sorted(loader.asked) == ["other@1", "slow@1", "tiny@1"]  # once, however often it was waited for

    run(scenario)


@pytest.mark.parametrize("fails", [False, True])
def test_a_version_that_loads_for_too_long_to_be_wanted_any_more_is_let_go(
    store: ModelStore, tiny: ModelId, fails: bool
) -> None:
    async def scenario() -> None:
        loader = SlowLoader(str(tiny))
        if fails:
            loader.corrupt.add(str(tiny))
        scene = Scene(store, loader=loader, load_patience_s=0.02)
        await scene.registry.sync()
        scene.registry.demand.set("tiny", wanted=False)
        loader.release.set()
        await settled(scene.registry)
        assert not scene.registry._loading
        assert not scene.answering()
        assert not scene.registry.table.failures

    run(scenario)


def test_a_load_that_fails_in_an_unexpected_way_leaves_the_others_up(store: ModelStore, tiny: ModelId) -> None:
    class Panic(BaseException):
        pass

    def panic(model: ModelId) -> ServedModel:
        if model == tiny:
            raise Panic("the tokeniser")
        return served(FakeClassifier(fake_manifest(model.name, model.version)))

    async def scenario() -> None:
        make_tiny_version(store, "other")
        scene = Scene(store)
        scene.registry._load = panic
        with structlog.testing.capture_logs() as logs:
            await scene.registry.sync()
        assert set(scene.answering()) == {"other", "other@1"}
        assert "can't be loaded: Panic" in scene.registry.table.failures["tiny"]
        assert "a load failed in an unexpected way" in [entry["event"] for entry in logs]

    run(scenario)


def test_late_news_that_can_not_be_taken_is_logged(
    store: ModelStore, tiny: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        raise OSError("no files left")

    async def scenario() -> None:
        loader = SlowLoader(str(tiny))
        scene = Scene(store, loader=loader, load_patience_s=0.02)
        await scene.registry.sync()
        monkeypatch.setattr(store, "names", broken)
        with structlog.testing.capture_logs() as logs:
            loader.release.set()
            await settled(scene.registry)
        assert [entry["event"] for entry in logs] == ["what has loaded late is not served yet"]

    run(scenario)


def test_a_folder_that_can_not_be_read_leaves_the_other_names_up(store: ModelStore, tiny: ModelId) -> None:
    async def scenario() -> None:
        (store.root / "broken").symlink_to("broken")
        scene = Scene(store)
        await scene.registry.sync()
        assert scene.answering()["tiny"] == "tiny@1"
        assert "can't be read" in scene.registry.table.failures["broken"]
        assert set(scene.registry._snapshot()) == {"broken", "tiny"}

    run(scenario)


def test_a_version_that_is_no_longer_at_hand_when_others_have_loaded_is_served_all_the_same(
    store: ModelStore, tiny: ModelId
) -> None:
    async def scenario() -> None:
        loader = SlowLoader("slow@1")
        scene = Scene(store, loader=loader)
        await scene.registry.sync()
        second = make_tiny_version(store, seed=1)
        async with scene.registry.at_hand(second):
            store.promote(second, "production")
            make_tiny_version(store, "slow")
            syncing = asyncio.create_task(scene.registry.sync())
            while "slow@1" not in loader.asked:  # noqa: ASYNC110 - a loader has no event
                await asyncio.sleep(0.005)
        loader.release.set()
        await syncing
        assert scene.answering()["tiny"] == "tiny@2"
        assert loader.asked.count("tiny@2") == 1

    run(scenario)
