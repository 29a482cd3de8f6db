"""The store under a disk that fails: the writer is killed, or refused, at every operation that it makes."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pytest

from model_store.disk import Disk
from model_store.errors import StoreWriteError
from model_store.manifest import ModelId
from model_store.store import Draft, ModelStore
from tests.tiny import make_tiny_version, tiny_draft

# Python 3.12 warns of forking beside threads (the test runner has some): the children only write files and exit.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

Moment = Literal["before", "middle", "after"]
State = tuple[tuple[int, ...], tuple[tuple[str, int], ...]]


class UnsyncedDisk(Disk):
    """Spares the wait for the device: what a killed process has written is in the kernel's hands, synced or not."""

    def sync(self, path: Path) -> None:
        path.stat()


class InterruptedDisk(UnsyncedDisk):
    """Calls `interrupt` at the `at`-th operation: before it, half-way through it, or after it; 0 is never."""

    def __init__(self, at: int, moment: Moment, interrupt: Callable[[], None]) -> None:
        self.operations: list[str] = []
        self._at = at
        self._moment = moment
        self._interrupt = interrupt

    def _begin(self, operation: str, half: Callable[[], object] | None = None) -> None:
        self.operations.append(operation)
        if len(self.operations) == self._at and self._moment != "after":
            if self._moment == "middle" and half is not None:
                half()
            self._interrupt()

    def _end(self) -> None:
        if len(self.operations) == self._at and self._moment == "after":
            self._interrupt()

    def make_folder(self, path: Path) -> None:
        self._begin("make_folder")
        super().make_folder(path)
        self._end()

    def create(self, path: Path) -> BinaryIO:
        self._begin("create")
        return super().create(path)

    def write(self, file: BinaryIO, data: bytes) -> None:
        def half() -> None:
            file.write(data[: len(data) // 2])
            file.flush()

        self._begin("write", half)
        super().write(file, data)
        self._end()

    def sync(self, path: Path) -> None:
        self._begin("sync")
        super().sync(path)
        self._end()

    def rename(self, source: Path, target: Path) -> None:
        self._begin("rename")
        super().rename(source, target)
        self._end()

    def remove(self, path: Path) -> None:
        def half() -> None:
            if path.is_dir():
                min(path.iterdir()).unlink()

        self._begin("remove", half)
        super().remove(path)
        self._end()


@dataclass(frozen=True)
class Scenario:
    """A store with `tiny@1` (production) and `tiny@2`, something to do to it, and the states that may be seen after."""

    act: Callable[[ModelStore, Draft, dict[str, Path]], object]
    states: tuple[State, ...]


OLD: State = ((1, 2), (("production", 1),))
SCENARIOS = {
    "publish": Scenario(
        lambda store, draft, files: store.publish(draft, files),
        (OLD, ((1, 2, 3), (("production", 1),))),
    ),
    "publish with aliases": Scenario(
        lambda store, draft, files: store.publish(draft, files, ("production", "staging")),
        (OLD, ((1, 2, 3), (("production", 1),)), ((1, 2, 3), (("production", 3), ("staging", 3)))),
    ),
    "publish a new name": Scenario(
        lambda store, draft, files: store.publish(draft.model_copy(update={"name": "new"}), files, ("production",)),
        (OLD,),
    ),
    "promote": Scenario(
        lambda store, draft, files: store.promote(ModelId(name="tiny", version=2), "production"),
        (OLD, ((1, 2), (("production", 2),))),
    ),
    "remove": Scenario(
        lambda store, draft, files: store.remove(ModelId(name="tiny", version=2)),
        (OLD, ((1,), (("production", 1),))),
    ),
}


@dataclass(frozen=True)
class Bench:
    """What one attempt needs: a store that was never interrupted, and a version to publish."""

    base: Path
    draft: Draft
    files: dict[str, Path]
    folder: Path

    def copy(self) -> Path:
        """A fresh copy of the store."""
        root = self.folder / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.base, root)
        return root

    def moments(self, scenario: Scenario) -> list[tuple[int, Moment]]:
        """Before each operation of an undisturbed run, in the middle of each that has one, and after the last."""
        disk = InterruptedDisk(0, "before", lambda: None)
        scenario.act(ModelStore(self.copy(), disk), self.draft, self.files)
        moments: list[tuple[int, Moment]] = [(len(disk.operations), "after")]
        for at, operation in enumerate(disk.operations, 1):
            moments.append((at, "before"))
            if operation in {"write", "remove"}:
                moments.append((at, "middle"))
        return moments


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    base = ModelStore(tmp_path / "base", UnsyncedDisk())
    make_tiny_version(base, aliases=("production",))
    make_tiny_version(base, seed=1)
    draft, files = tiny_draft(tmp_path / "draft", seed=2)
    return Bench(base.root, draft, files, tmp_path)


def state_of(store: ModelStore) -> State:
    return tuple(store.versions("tiny")), tuple(sorted(store.aliases("tiny").items()))


def check_whole(root: Path, scenario: Scenario, bench: Bench) -> State:
    """Every listed version opens, every alias resolves, and the next writer goes on where the numbers end."""
    store = ModelStore(root)
    for name in store.names():
        models = [ModelId(name=name, version=version) for version in store.versions(name)]
        assert [store.open(model).manifest.id for model in models] == models
        assert all(store.resolve(f"{name}@{alias}") in models for alias in store.aliases(name))
    store = ModelStore(root, UnsyncedDisk())
    state = state_of(store)
    assert state in scenario.states

    published = store.publish(bench.draft, bench.files, ("production",))
    assert published.version == 3 + (3 in state[0])
    assert store.open(store.resolve("tiny")).manifest.id == published
    assert not list(root.glob("tiny/.incoming-*"))
    assert not list(root.glob("tiny/.removed-*/*"))
    new = store.publish(bench.draft.model_copy(update={"name": "new"}), bench.files, ("production",))
    assert store.open(new).manifest.id == new
    assert not list(root.glob("new/.incoming-*"))
    return state


def run_in_child(action: Callable[[], object]) -> int:
    """Fork, run, and give the child's process id; it exits with 0, or 1 for an exception."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - the child must never come back into the test run
            os._exit(1)
        os._exit(0)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_writer_killed_at_any_operation_leaves_the_store_whole(name: str, bench: Bench) -> None:
    scenario = SCENARIOS[name]
    seen = set()
    for at, moment in bench.moments(scenario):
        root = bench.copy()
        store = ModelStore(root, InterruptedDisk(at, moment, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        child = run_in_child(functools.partial(scenario.act, store, bench.draft, bench.files))
        assert exit_code(child) == -signal.SIGKILL
        seen.add(check_whole(root, scenario, bench))
    assert seen == set(scenario.states)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_writer_refused_at_any_operation_says_so_and_leaves_the_store_whole(
    name: str, number: int, bench: Bench
) -> None:
    scenario = SCENARIOS[name]

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    for at, moment in bench.moments(scenario):
        root = bench.copy()
        disk = InterruptedDisk(at, moment, refuse)
        store = ModelStore(root, disk)
        try:
            scenario.act(store, bench.draft, bench.files)
        except StoreWriteError as error:
            assert os.strerror(number) in str(error)  # noqa: PT017 - what it says, where it is one
        else:
            assert disk.operations[at - 1] == "remove", "only what is left over may stay"
        check_whole(root, scenario, bench)


def test_a_refused_publication_gives_its_space_back(bench: Bench) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ModelStore(bench.base, InterruptedDisk(4, "middle", refuse))
    with pytest.raises(StoreWriteError, match="free some space"):
        store.publish(bench.draft, bench.files)
    assert not list(bench.base.glob("tiny/.incoming-*"))


class RecordingDisk(Disk):
    """Notes every operation as (what, which path below the root)."""

    def __init__(self, root: Path) -> None:
        self.log: list[tuple[str, str]] = []
        self._root = root

    def _note(self, what: str, path: Path) -> None:
        self.log.append((what, os.path.relpath(path, self._root)))

    def make_folder(self, path: Path) -> None:
        self._note("make", path)
        super().make_folder(path)

    def create(self, path: Path) -> BinaryIO:
        self._note("create", path)
        return super().create(path)

    def sync(self, path: Path) -> None:
        self._note("sync", path)
        super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self._note("rename", target)
        super().rename(source, target)


def test_everything_is_on_the_disk_before_the_name_that_shows_it(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    disk = RecordingDisk(root)
    make_tiny_version(ModelStore(root, disk), aliases=("production",))

    def at(what: str, path: str) -> int:
        return disk.log.index((what, path))

    shown = at("rename", "tiny/1")
    created = [path for what, path in disk.log if what == "create" and path.startswith("tiny/.incoming-1/")]
    assert len(created) == 4
    for path in created:
        assert at("create", path) < at("sync", path) < at("sync", "tiny/.incoming-1") < shown
    assert at("make", "..") < at("sync", "../..") < shown
    assert at("make", ".") < at("sync", "..") < shown
    assert at("make", "tiny") < at("sync", ".") < shown
    assert disk.log[shown + 1] == ("sync", "tiny")
    moved = at("rename", "tiny/aliases.json")
    assert at("sync", "tiny/.incoming-aliases") < shown < moved
    assert disk.log[moved + 1] == ("sync", "tiny")


@pytest.mark.slow
def test_two_processes_that_publish_at_once_make_two_versions(bench: Bench) -> None:
    paused_read, paused_write = os.pipe()
    go_read, go_write = os.pipe()

    def pause() -> None:
        os.write(paused_write, b"x")
        os.read(go_read, 1)

    first = run_in_child(
        lambda: ModelStore(bench.base, InterruptedDisk(4, "before", pause)).publish(bench.draft, bench.files, ("one",))
    )
    os.read(paused_read, 1)  # the first holds the lock, in the middle of its files
    second = run_in_child(lambda: ModelStore(bench.base).publish(bench.draft, bench.files, ("two",)))
    os.write(go_write, b"x")
    assert (exit_code(first), exit_code(second)) == (0, 0)
    for descriptor in (paused_read, paused_write, go_read, go_write):
        os.close(descriptor)
    store = ModelStore(bench.base)
    assert store.versions("tiny") == [1, 2, 3, 4]
    assert store.aliases("tiny") == {"production": 1, "one": 3, "two": 4}
    assert [store.open(store.resolve(f"tiny@{alias}")).manifest.version for alias in ("one", "two")] == [3, 4]


@pytest.mark.slow
def test_a_folder_that_may_not_be_written_is_read_all_the_same(bench: Bench) -> None:
    for path in (bench.base, *bench.base.rglob("*")):
        if path.is_dir():
            path.chmod(0o555)

    def read_then_write() -> None:
        os.chdir(bench.base)  # the folders above may be closed to the user that follows
        if os.getuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        store = ModelStore(Path())
        assert store.open(store.resolve("tiny")).manifest.version == 1
        writes: list[Callable[[], object]] = [
            lambda: store.promote(ModelId(name="tiny", version=2), "production"),
            lambda: store.remove(ModelId(name="tiny", version=2)),
            lambda: store.publish(bench.draft, {}),
            lambda: store.publish(bench.draft.model_copy(update={"name": "new"}), {}),
        ]
        for write in writes:
            with pytest.raises(StoreWriteError, match="check its owner"):
                write()

    assert exit_code(run_in_child(read_then_write)) == 0
    for path in (bench.base, *bench.base.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
