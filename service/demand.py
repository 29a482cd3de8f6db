"""What operators have asked for by hand: names to load or to let go of, whatever the settings say."""

from __future__ import annotations

from pathlib import Path

import structlog

from model_store.disk import write_whole
from service.errors import DemandNotKeptError

log = structlog.get_logger(__name__)

_WANTED = {b"load": True, b"unload": False}


class Demand:
    """Name → load it, or let go of it.

    Args:
        folder: where it is kept, one file for each name, so that all server processes see it and it outlives
            them; None: in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, bool] = {}
        """Used without a folder; `set` changes it."""
        self._strange: set[str] = set()
        """Files that say something else, and were logged."""

    def set(self, name: str, *, wanted: bool) -> None:
        """Ask for a name, which `check_name` has accepted.

        Raises:
            DemandNotKeptError: the folder can't be written.
        """
        if self._folder is None:
            self._memory = {**self._memory, name: wanted}
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / name, "load" if wanted else "unload")
        except OSError as error:
            raise DemandNotKeptError(
                f"{self._folder} can't be written ({error.strerror}): make it writable, or set another"
                " SUCCESSOR_STATE_DIR"
            ) from error

    def all(self) -> dict[str, bool]:
        """Every name that was asked for, and whether it is to be loaded."""
        if self._folder is None:
            return self._memory
        said = {file.name: file.read_bytes() for file in self._folder.glob("[!.]*") if file.is_file()}
        strange = said.keys() - {name for name, text in said.items() if text in _WANTED}
        for name in strange - self._strange:
            log.warning("passed over: it says neither load nor unload", file=str(self._folder / name))
        self._strange = strange
        return {name: _WANTED[text] for name, text in said.items() if text in _WANTED}
