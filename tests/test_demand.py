"""What operators ask for by hand, kept in a folder that all processes see."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from service.demand import Demand
from service.errors import DemandNotKeptError


@pytest.mark.parametrize("kept", [True, False])
def test_what_was_asked_for_last_holds(tmp_path: Path, *, kept: bool) -> None:
    demand = Demand(tmp_path / "demand" if kept else None)
    assert demand.all() == {}
    demand.set("one", wanted=True)
    demand.set("two", wanted=True)
    demand.set("two", wanted=False)
    assert demand.all() == {"one": True, "two": False}
    if kept:
        assert Demand(tmp_path / "demand").all() == {"one": True, "two": False}


def test_who_asks_for_the_same_at_once_is_heard_and_nobody_reads_anything_else(tmp_path: Path) -> None:
    demand, done, seen = Demand(tmp_path), threading.Event(), list[dict[str, bool]]()
    demand.set("tiny", wanted=True)

    def read() -> None:
        while not done.is_set():
            seen.append(demand.all())

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(4) as threads:
        for asked in [threads.submit(demand.set, "tiny", wanted=True) for _ in range(200)]:
            asked.result()
    done.set()
    reader.join()
    assert all(one == {"tiny": True} for one in seen)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("text", [b"", b"lo", b"\xff\xfe", b"load\n"])
def test_what_says_neither_is_passed_over_and_logged_once(tmp_path: Path, text: bytes) -> None:
    demand = Demand(tmp_path)
    demand.set("one", wanted=False)
    (tmp_path / "two").write_bytes(text)
    with structlog.testing.capture_logs() as logs:
        assert demand.all() == demand.all() == {"one": False}
    assert [record["file"] for record in logs] == [str(tmp_path / "two")]


def test_a_folder_that_can_not_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "demand").write_text("in the way")
    with pytest.raises(DemandNotKeptError, match="SUCCESSOR_STATE_DIR"):
        Demand(tmp_path / "demand").set("tiny", wanted=True)
