"""The store on disk: list, resolve, open with verified digests, publish all or nothing, move aliases, remove.

    <store>/<name>/<version>/manifest.json  tokenizer.json  *.onnx  report.*  *.png
    <store>/<name>/aliases.json

A version is copied aside under the name's lock, digested and synced, then renamed into place and never changed
afterwards: a crash at any point leaves either no version or a whole one. What a crash leaves behind has a name that
starts with a dot, is never listed, and is swept by the next writer. Version numbers are never used twice.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model_store.errors import (
    IntegrityError,
    InvalidReferenceError,
    ModelNotFoundError,
    StoreError,
    StoreWriteError,
    VersionInUseError,
)
from model_store.manifest import (
    MANIFEST_FILE,
    Artifact,
    Check,
    FileDigest,
    InputContract,
    Lineage,
    Manifest,
    ModelId,
    ScoreContract,
    check_alias,
    check_name,
)

ALIASES_FILE = "aliases.json"
DEFAULT_ALIAS = "production"
MAX_MANIFEST_BYTES = 4_000_000
_CHUNK_BYTES = 1 << 20
_ALIASES = TypeAdapter(dict[str, int])


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version whose every digest has been verified."""

    folder: Path
    manifest: Manifest


class Draft(BaseModel):
    """A version before it has a number and digests: what the builder hands to `ModelStore.publish`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    scores: ScoreContract
    inputs: InputContract
    artifacts: tuple[Artifact, ...] = Field(description="their digests are checked against what is copied")
    lineage: Lineage
    measurements: dict[str, float]
    gate: tuple[Check, ...]


class Disk:
    """The operations that every write of the store is made of; tests fail each of them in turn."""

    def make_folder(self, path: Path) -> None:
        """Create one folder, which must not exist."""
        path.mkdir()

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
        """Delete a file or a whole folder."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def digest_file(path: Path) -> tuple[str, int]:
    """The SHA-256 in hexadecimal and the size in bytes of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


class ModelStore:
    """Named, versioned, immutable models in a folder, which may be mounted read-only for reading."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = Path(root)
        self._disk = disk or Disk()

    # Reading

    def names(self) -> list[str]:
        """The names that have at least one version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            folder.name for folder in self.root.iterdir() if _is_name(folder.name) and self.versions(folder.name)
        )

    def versions(self, name: str) -> list[int]:
        """The versions of `name`, oldest first; empty where there is none."""
        folder = self.root / check_name(name)
        if not folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in folder.iterdir() if _is_version(entry.name) and entry.is_dir())

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of `name` and the version that each points at.

        Raises:
            IntegrityError: the alias file is not valid.
        """
        path = self.root / check_name(name) / ALIASES_FILE
        try:
            return _ALIASES.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise IntegrityError(f"the aliases of {name!r} can't be read: restore or delete {path}") from error

    def resolve(self, reference: str) -> ModelId:
        """Turn `name`, `name@3` or `name@alias` into an id that exists.

        A bare name means its `production` alias or, where there is none, its newest version.

        Raises:
            InvalidReferenceError: not of that form.
            ModelNotFoundError: no such model, version or alias.
            IntegrityError: an alias points at a version that isn't there.
        """
        name, separator, selector = reference.partition("@")
        versions = self.versions(name)
        if not versions:
            raise ModelNotFoundError(f"no model {name!r} in the store: it has {_listed(self.names())}")
        if selector.isascii() and selector.isdigit() and len(selector) < 10:
            if int(selector) not in versions or str(int(selector)) != selector:
                raise ModelNotFoundError(f"model {name!r} has no version {selector}: it has {_listed(versions)}")
            return ModelId(name=name, version=int(selector))
        if separator:
            check_alias(selector)
        aliases = self.aliases(name)
        if not separator and DEFAULT_ALIAS not in aliases:
            return ModelId(name=name, version=versions[-1])
        alias = selector or DEFAULT_ALIAS
        if alias not in aliases:
            raise ModelNotFoundError(f"model {name!r} has no alias {alias!r}: it has {_listed(sorted(aliases))}")
        if aliases[alias] not in versions:
            raise IntegrityError(
                f"alias {name}@{alias} points at version {aliases[alias]}, which isn't there: promote another"
            )
        return ModelId(name=name, version=aliases[alias])

    def manifest(self, model: ModelId) -> Manifest:
        """Read a version's manifest, without verifying the files that it lists.

        Raises:
            ModelNotFoundError: no such version.
            IntegrityError: the manifest is missing, too large, malformed, or another version's.
        """
        folder = self._folder(model)
        if not folder.is_dir():
            raise ModelNotFoundError(f"no version {model} in the store")
        path = folder / MANIFEST_FILE
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise IntegrityError(f"the manifest of {model} is larger than {MAX_MANIFEST_BYTES} bytes")
            manifest = Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = f"{error.error_count()} errors" if isinstance(error, ValidationError) else error.strerror
            raise IntegrityError(
                f"the manifest of {model} can't be read ({reason}): publish the version again"
            ) from error
        if manifest.id != model:
            raise IntegrityError(f"the manifest in {model}'s folder is that of {manifest.id}")
        return manifest

    def open(self, model: ModelId) -> StoredVersion:
        """Verify every digest of a version and return it.

        Raises:
            ModelNotFoundError: no such version.
            IntegrityError: a file is missing, changed, truncated, a link, or not listed in the manifest.
        """
        manifest = self.manifest(model)
        folder = self._folder(model)
        entries = (*manifest.artifacts, *manifest.files)
        strangers = {path.name for path in folder.iterdir()} - {entry.file for entry in entries} - {MANIFEST_FILE}
        if strangers:
            raise IntegrityError(f"{model} has files that its manifest doesn't list: {_listed(sorted(strangers))}")
        for entry in entries:
            path = folder / entry.file
            if path.is_symlink() or not path.is_file():
                raise IntegrityError(f"{model} has lost its file {entry.file}: publish the version again")
            try:
                digest, size = digest_file(path)
            except OSError as error:
                raise IntegrityError(f"{model}: {entry.file} can't be read ({error.strerror})") from error
            if (digest, size) != (entry.sha256, entry.bytes):
                raise IntegrityError(
                    f"{model}: {entry.file} is not what was published ({size} bytes, sha256 {digest[:12]}…; expected"
                    f" {entry.bytes}, {entry.sha256[:12]}…): restore it or publish the version again"
                )
        return StoredVersion(folder=folder, manifest=manifest)

    # Writing

    def publish(self, draft: Draft, files: Mapping[str, Path], aliases: tuple[str, ...] = ()) -> ModelId:
        """Copy `files` (name in the version → where it is now) into a new version, then point `aliases` at it.

        Raises:
            IntegrityError: an artifact's bytes are not those that were measured.
            StoreWriteError: the store could not be written.
        """
        for alias in aliases:
            check_alias(alias)
        with self._writing(draft.name) as folder:
            version = self._next_version(folder)
            aside = folder / f".incoming-{version}"
            self._disk.make_folder(aside)
            digests = {name: self._copy(source, aside / name) for name, source in files.items()}
            manifest = self._number(draft, version, digests)
            self._write(aside / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
            self._disk.sync(aside)
            self._disk.rename(aside, folder / str(version))
            self._disk.sync(folder)
            if aliases:
                self._write_aliases(folder, {**self.aliases(draft.name), **dict.fromkeys(aliases, version)})
        return manifest.id

    def promote(self, model: ModelId, alias: str) -> None:
        """Point `alias` at a version that exists.

        Raises:
            ModelNotFoundError: no such version.
            StoreWriteError: the store could not be written.
        """
        check_alias(alias)
        self.manifest(model)
        with self._writing(model.name) as folder:
            self._write_aliases(folder, {**self.aliases(model.name), alias: model.version})

    def remove(self, model: ModelId) -> None:
        """Delete a version; its number stays taken.

        Raises:
            ModelNotFoundError: no such version.
            VersionInUseError: an alias points at it.
            StoreWriteError: the store could not be written.
        """
        if model.version not in self.versions(model.name):
            raise ModelNotFoundError(f"no version {model} in the store")
        with self._writing(model.name) as folder:
            using = sorted(alias for alias, version in self.aliases(model.name).items() if version == model.version)
            if using:
                raise VersionInUseError(f"{model} is what {_listed(using)} points at: promote another version first")
            removed = folder / f".removed-{model.version}"
            self._disk.rename(folder / str(model.version), removed)
            self._disk.sync(folder)
            self._empty(removed)

    def _folder(self, model: ModelId) -> Path:
        return self.root / check_name(model.name) / str(model.version)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Hold the name's lock, after sweeping what a crashed writer left behind."""
        folder = self.root / check_name(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for leftover in folder.glob(".incoming-*"):
                    self._disk.remove(leftover)
                for removed in folder.glob(".removed-*"):
                    self._empty(removed)
                yield folder
        except OSError as error:
            remedy = {
                errno.ENOSPC: "free some space",
                errno.EROFS: "mount it writable",
                errno.EACCES: "check its owner",
            }
            raise StoreWriteError(
                f"the store at {self.root} can't be written ({error.strerror}):"
                f" {remedy.get(error.errno or 0, 'check the disk')}"
            ) from error

    def _empty(self, removed: Path) -> None:
        """Delete what a removed version held; its empty folder keeps the number taken."""
        for file in removed.iterdir():
            self._disk.remove(file)

    def _next_version(self, folder: Path) -> int:
        taken = [entry.name.removeprefix(".removed-") for entry in folder.iterdir()]
        return 1 + max((int(number) for number in taken if _is_version(number)), default=0)

    def _copy(self, source: Path, target: Path) -> FileDigest:
        digest = hashlib.sha256()
        size = 0
        with source.open("rb") as reader, target.open("xb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                self._disk.write(writer, chunk)
                digest.update(chunk)
                size += len(chunk)
        target.chmod(0o444)
        self._disk.sync(target)
        return FileDigest(file=target.name, sha256=digest.hexdigest(), bytes=size)

    def _write(self, target: Path, data: bytes) -> None:
        with target.open("xb") as writer:
            self._disk.write(writer, data)
        target.chmod(0o444)
        self._disk.sync(target)

    def _write_aliases(self, folder: Path, aliases: dict[str, int]) -> None:
        aside = folder / ".incoming-aliases"
        self._write(aside, json.dumps(aliases, indent=2, sort_keys=True).encode() + b"\n")
        self._disk.rename(aside, folder / ALIASES_FILE)
        self._disk.sync(folder)

    def _number(self, draft: Draft, version: int, digests: Mapping[str, FileDigest]) -> Manifest:
        for artifact in draft.artifacts:
            copied = digests.get(artifact.file)
            if copied is None or (copied.sha256, copied.bytes) != (artifact.sha256, artifact.bytes):
                raise IntegrityError(f"{artifact.file} changed after it was measured: build again")
        models = {artifact.file for artifact in draft.artifacts}
        try:
            return Manifest(
                version=version,
                created=datetime.now(UTC),
                files=tuple(entry for file, entry in digests.items() if file not in models),
                **{field: getattr(draft, field) for field in Draft.model_fields},
            )
        except ValidationError as error:
            raise StoreError(f"{draft.name!r} can't be published: {error.errors()[0]['msg']}") from error


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidReferenceError:
        return False
    return True


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0")


def _listed(values: list[str] | list[int]) -> str:
    return ", ".join(map(str, values)) or "none"
