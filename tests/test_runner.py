from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_store.builder.errors import WorkFolderError
from model_store.builder.progress import ConsoleProgress
from model_store.builder.runner import Runner, exclusive, key_of


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


def test_two_builds_can_not_use_one_work_folder(tmp_path: Path) -> None:
    refused = pytest.raises(WorkFolderError, match="another build is using")
    with exclusive(tmp_path / "work"), refused, exclusive(tmp_path / "work"):
        pass
    with exclusive(tmp_path / "work"):
        pass


def test_a_work_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkFolderError, match="can't be written"), exclusive(tmp_path / "file" / "work"):
        pass
