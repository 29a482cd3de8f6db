"""Runs steps once: results are kept under a hash of all that they depend on, written aside and renamed when whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model_store.builder.errors import WorkFolderError
from model_store.builder.progress import Progress
from model_store.builder.step import Figures

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

    def folder(self, operator: str, key: str) -> Path:
        """Where the result of a key is, or will be."""
        return self.work / "steps" / f"{operator}-{key[:16]}"

    def run(self, operator: str, key: str, work: Callable[[Path, Path], Figures]) -> Result:
        """The kept result of `key`, or that of `work(output, scratch)`; of the two, `scratch` survives a kill."""
        folder = self.folder(operator, key)
        if not folder.is_dir():
            partial = self.work / "partial" / folder.name
            output, scratch = partial / "output", partial / "scratch"
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir(parents=True)
            scratch.mkdir(exist_ok=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            start = time.monotonic()
            figures = work(output, scratch)
            seconds = time.monotonic() - start
            record = {"operator": operator, "key": key, "seconds": seconds, "figures": figures}
            (output / STEP_FILE).write_text(json.dumps(record), encoding="utf-8")
            output.rename(folder)
            shutil.rmtree(partial, ignore_errors=True)
            self.progress.note(f"{operator}: done in {seconds:.1f} s")
        else:
            self.progress.note(f"{operator}: already done")
        record = json.loads((folder / STEP_FILE).read_text(encoding="utf-8"))
        return Result(key, folder, operator, record["seconds"], record["figures"])


def key_of(*parts: object) -> str:
    """A hash of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """Hold a work folder alone.

    Raises:
        WorkFolderError: another build holds it, or it can't be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / ".lock").open("wb")
    except OSError as error:
        raise WorkFolderError(
            f"the work folder {work} can't be written ({error.strerror}): choose one with --work"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkFolderError(
                f"another build is using {work}: wait for it, or choose another with --work"
            ) from error
        yield
