"""Runs steps once: results are kept under a hash of all that they depend on, written aside and renamed when whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.builder.errors import WorkFolderError
from model_store.builder.progress import Progress
from model_store.builder.step import Figures
from model_store.disk import Disk

STEP_FILE = "step.json"


@dataclass(frozen=True, slots=True)
class Result:
    """What a step left: its folder, the key that names it, and its record."""

    key: str
    folder: Path
    operator: str
    seconds: float
    figures: Figures


class Runner:
    """The work folder of builds: `steps/` holds whole results, `partial/` what a killed build goes on from."""

    def __init__(self, work: Path, progress: Progress) -> None:
        self.work = work
        self.progress = progress
        self._disk = Disk()

    def folder(self, operator: str, key: str) -> Path:
        """Where the result of a key is, or will be."""
        return self.work / "steps" / f"{operator}-{key[:16]}"

    def run(self, operator: str, key: str, work: Callable[[Path, Path], Figures]) -> Result:
        """The kept result of `key`, or that of `work(output, scratch)`; of the two, `scratch` survives a kill."""
        folder = self.folder(operator, key)
        record = _record(folder)
        if record is None:
            with self._alone_at(folder.name):
                record = _record(folder)
                if record is None:
                    record = self._make(folder, operator, key, work)
                    return Result(key, folder, operator, record["seconds"], record["figures"])
        self.progress.note(f"{operator}: already done")
        return Result(key, folder, operator, record["seconds"], record["figures"])

    @staticmethod
    def keeps(folder: Path) -> bool:
        """Whether a whole result is there."""
        return _record(folder) is not None

    def forget(self, folder: Path) -> None:
        """Throw a result away, its record first: without that, what is left of it is none."""
        with contextlib.suppress(OSError):  # another process may be at it too
            (folder / STEP_FILE).unlink()
        shutil.rmtree(folder, ignore_errors=True)

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Claim a piece of work for as long as the block runs, and at most this process; False: another has it."""
        return _locked(self.work / "locks" / f"{key_of(name)[:16]}.lock")

    @contextmanager
    def _alone_at(self, name: str) -> Iterator[None]:
        """Let no two processes make the same result."""
        with _locked(self.work / "locks" / f"{name}.lock") as free:
            if free:
                yield
                return
        self.progress.note(f"{name}: another process is making it; waiting")
        with _locked(self.work / "locks" / f"{name}.lock", wait=True):
            yield

    def _make(self, folder: Path, operator: str, key: str, work: Callable[[Path, Path], Figures]) -> dict[str, Any]:
        try:
            return self._made(folder, operator, key, work)
        except OSError as error:
            raise WorkFolderError(
                f"{operator} could not be finished ({error}): see that {self.work} has room and can be written, and"
                " start again"
            ) from error

    def _made(self, folder: Path, operator: str, key: str, work: Callable[[Path, Path], Figures]) -> dict[str, Any]:
        partial = self.work / "partial" / folder.name
        output, scratch = partial / "output", partial / "scratch"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        figures = work(output, scratch)
        seconds = time.monotonic() - start
        record = {
            "operator": operator,
            "key": key,
            "seconds": seconds,
            "figures": figures,
            "files": {str(file.relative_to(output)): file.stat().st_size for file in _files(output)},
        }
        (output / STEP_FILE).write_text(json.dumps(record), encoding="utf-8")
        for path in (*_files(output), output):
            self._disk.sync(path)  # else a power cut may leave the record, and of the rest the names
        shutil.rmtree(folder, ignore_errors=True)  # what is left of one whose removal was interrupted
        output.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        self.progress.note(f"{operator}: done in {seconds:.1f} s")
        return record


def _record(folder: Path) -> dict[str, Any] | None:
    """What is recorded of a result; None where there is none, or it is not whole any more."""
    try:
        record = json.loads((folder / STEP_FILE).read_bytes())
        whole = all((folder / file).stat().st_size == size for file, size in record["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # none, cut, or another version's
        return None
    return record if whole else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def key_of(*parts: object) -> str:
    """A hash of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def using(work: Path, *, alone: bool) -> Iterator[None]:
    """Hold a work folder: alone, or together with others that claim what each of them does.

    Raises:
        WorkFolderError: others hold it otherwise, or it can't be written.
    """
    with ExitStack() as held:
        try:
            free = held.enter_context(_locked(work / ".lock", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        except OSError as error:
            raise WorkFolderError(
                f"the work folder {work} can't be written ({error.strerror}): choose another"
            ) from error
        if not free:
            raise WorkFolderError(f"another build is using {work}: wait for it, or choose another folder")
        yield


@contextmanager
def _locked(path: Path, kind: int = fcntl.LOCK_EX, *, wait: bool = False) -> Iterator[bool]:
    """Lock a file, which is made and stays; True: it is ours until the block, or this process, ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
