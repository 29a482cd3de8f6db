"""What the store asks of the disk: the operations that every write is made of, and bounded ways to read."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from model_store.errors import IntegrityError

MAX_RECORD_BYTES = 4_000_000
"""No manifest and no alias file is larger."""


class Disk:
    """The operations that every write of the store is made of; tests fail each of them in turn."""

    def make_folder(self, path: Path) -> None:
        """Create one folder, which must not exist."""
        path.mkdir()

    def create(self, path: Path) -> BinaryIO:
        """Open a new file for writing, which will be read-only once it is closed."""
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "wb")

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Write one chunk."""
        file.write(data)

    def sync(self, path: Path) -> None:
        """Force a file's bytes, or a folder's entries, to the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Move a file over `target`, or a folder to the free name `target`, in one step."""
        source.rename(target)

    def remove(self, path: Path) -> None:
        """Delete a file, a link or a whole folder."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_whole(file: Path, text: str) -> None:
    """Put a text file in its place in one step: readers see the one before or this one, never a part of it.

    Whoever else writes it at the same time, in this process or on another machine, is not in the way.

    Raises:
        OSError: it can't be written; the one before is still there.
    """
    aside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("x", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())  # else a loss of power may leave the name and not the text
        aside.replace(file)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where there is none."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise IntegrityError(f"{folder} can't be read ({error.strerror}): check its owner") from error


def read_record(path: Path, *, follow_links: bool = False) -> bytes:
    """The bytes of a small file, such as a manifest.

    Args:
        path: where it is.
        follow_links: whether it may be a link, as a path that an operator gives may. In a store nothing may.

    Raises:
        OSError: it can't be read, is too large, is not a file, or is a link.
    """
    # Without waiting: a pipe that nobody writes to would be waited for without end.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        data = file.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return data
