from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model_store.builder.errors import WorkFolderError
from model_store.builder.progress import ConsoleProgress
from model_store.builder.runner import Runner, key_of, using
from tests.tiny_torch import Recorder


def test_a_result_is_made_once_and_kept_with_its_figures(tmp_path: Path) -> None:
    runner, calls = Runner(tmp_path, ConsoleProgress()), []

    def work(output: Path, scratch: Path) -> dict[str, Any]:
        calls.append(output)
        (output / "weights").write_text("w", encoding="utf-8")
        return {"dev": 0.5}

    first, second = (runner.run("train", "k" * 64, work) for _ in range(2))
    assert (len(calls), first, second.figures) == (1, second, {"dev": 0.5})
    assert (first.folder / "weights").read_text(encoding="utf-8") == "w"
    assert not list((tmp_path / "partial").iterdir())


def test_a_result_whose_removal_was_interrupted_is_made_again(tmp_path: Path) -> None:
    runner = Runner(tmp_path, ConsoleProgress())
    folder = runner.run("train", "k" * 64, lambda *_: {"dev": 0.1}).folder
    (folder / "step.json").unlink()
    (folder / "left").touch()
    assert runner.run("train", "k" * 64, lambda *_: {"dev": 0.2}).figures == {"dev": 0.2}
    assert [path.name for path in folder.iterdir()] == ["step.json"]


def test_a_killed_step_leaves_no_result_and_finds_its_scratch_again(tmp_path: Path) -> None:
    runner = Runner(tmp_path, ConsoleProgress())

    def killed(output: Path, scratch: Path) -> dict[str, Any]:
        (output / "half").touch()
        (scratch / "checkpoint").touch()
        raise KeyboardInterrupt

    def resumed(output: Path, scratch: Path) -> dict[str, Any]:
        return {"output": [path.name for path in output.iterdir()], "scratch": [p.name for p in scratch.iterdir()]}

    with pytest.raises(KeyboardInterrupt):
        runner.run("train", "k" * 64, killed)
    assert not runner.folder("train", "k" * 64).exists()
    assert runner.run("train", "k" * 64, resumed).figures == {"output": [], "scratch": ["checkpoint"]}


def test_a_key_depends_on_every_part_and_on_their_order() -> None:
    keys = {key_of("a", {"x": 1}), key_of({"x": 1}, "a"), key_of("a", {"x": 2}), key_of("a", {"x": 1})}
    assert len(keys) == 3


def test_a_work_folder_is_one_builds_or_shared_by_those_that_agree_to_share(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for first, second in ((True, True), (True, False), (False, True)):
        refused = pytest.raises(WorkFolderError, match="another build is using")
        with using(work, alone=first), refused, using(work, alone=second):
            pass
    with using(work, alone=False), using(work, alone=False):
        pass
    with using(work, alone=True):
        pass


def test_what_goes_wrong_while_a_work_folder_is_held_is_not_put_down_to_it(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="elsewhere"), using(tmp_path, alone=True):
        raise PermissionError("elsewhere")


def test_a_piece_of_work_is_claimed_by_one_at_a_time(tmp_path: Path) -> None:
    one, other = (Runner(tmp_path, ConsoleProgress()) for _ in range(2))
    with one.claim("a/b/seed0") as ours, other.claim("a/b/seed0") as theirs, other.claim("a/b/seed1") as another:
        assert (ours, theirs, another) == (True, False, True)
    with other.claim("a/b/seed0") as theirs:
        assert theirs


def test_a_result_that_another_process_is_making_is_waited_for_and_taken(tmp_path: Path) -> None:
    made, begun, go_on = [], threading.Event(), threading.Event()

    def slow(output: Path, scratch: Path) -> dict[str, Any]:
        made.append(output)
        begun.set()
        go_on.wait(10)
        return {"dev": 0.5}

    class Waiting(Recorder):
        def note(self, message: str) -> None:
            super().note(message)
            if "another process" in message:
                go_on.set()

    progress = Waiting()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(Runner(tmp_path, Recorder()).run, "train", "k" * 64, slow)
        begun.wait(10)
        second = Runner(tmp_path, progress).run("train", "k" * 64, slow)
        assert second == first.result()
    assert len(made) == 1
    assert progress.notes[-1] == "train: already done"


def test_a_work_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkFolderError, match="can't be written"), using(tmp_path / "file" / "work", alone=True):
        pass


def test_a_record_that_was_lost_with_the_power_is_made_again(tmp_path: Path) -> None:
    runner = Runner(tmp_path, ConsoleProgress())
    folder = runner.run("train", "k" * 64, lambda *_: {"dev": 0.1}).folder
    for content in ("", "[]", "{}", '{"files": 3}', '{"files": {"missing": 3}}'):
        (folder / "step.json").write_text(content)
        assert runner.run("train", "k" * 64, lambda *_: {"dev": 0.2}).figures == {"dev": 0.2}


def test_a_result_whose_files_are_not_whole_is_made_again(tmp_path: Path) -> None:
    def work(output: Path, scratch: Path) -> dict[str, Any]:
        (output / "deep").mkdir()
        (output / "deep" / "numbers").write_bytes(b"numbers")
        return {}

    runner = Runner(tmp_path, Recorder())
    folder = runner.run("train", "k", work).folder
    damages: list[Callable[[Path], object]] = [lambda file: file.write_bytes(b""), Path.unlink]
    for damage in damages:
        assert runner.keeps(folder)
        damage(folder / "deep" / "numbers")
        assert not runner.keeps(folder)
        assert runner.run("train", "k", work).folder == folder
        assert (folder / "deep" / "numbers").read_bytes() == b"numbers"


def test_what_is_forgotten_loses_its_record_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(tmp_path, ConsoleProgress())
    folder = runner.run("train", "k" * 64, lambda *_: {"dev": 0.1}).folder
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before it
        runner.forget(folder)
    assert folder.is_dir()
    assert runner.run("train", "k" * 64, lambda *_: {"dev": 0.2}).figures == {"dev": 0.2}
    runner.forget(folder)
    assert not folder.exists()
    runner.forget(folder)


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    def full(output: Path, scratch: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WorkFolderError, match=r"train could not be finished .*No space left on device.*: see that"):
        Runner(tmp_path, ConsoleProgress()).run("train", "k" * 64, full)
