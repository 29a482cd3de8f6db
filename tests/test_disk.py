"""What is written whole or not at all, beside the store's own writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_store.disk import write_whole


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    for text in ("one", "zwölf"):
        write_whole(file, text)
        assert file.read_text(encoding="utf-8") == text
    assert [*tmp_path.iterdir()] == [file]


def test_what_was_there_stays_if_it_can_not_be_replaced(tmp_path: Path) -> None:
    in_the_way = tmp_path / "state.json"
    in_the_way.mkdir()
    (in_the_way / "kept").write_text("kept")
    with pytest.raises(OSError, match="directory"):
        write_whole(in_the_way, "new")
    assert [*tmp_path.rglob("*")] == [in_the_way, in_the_way / "kept"]


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "gone" / "state.json", "new")
    assert not [*tmp_path.iterdir()]
