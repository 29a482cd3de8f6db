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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model_store.disk import MAX_RECORD_BYTES, Disk, list_entries, read_record
from model_store.errors import (
    ClassifierError,
    IntegrityError,
    InvalidReferenceError,
    ModelNotFoundError,
    StoreError,
    StoreWriteError,
    VersionInUseError,
    first_problem,
)
from model_store.external_data import external_locations
from model_store.manifest import (
    MANIFEST_FILE,
    MAX_VERSION,
    Alias,
    Artifact,
    Check,
    FileDigest,
    InputContract,
    Lineage,
    Manifest,
    ModelId,
    ScoreContract,
    VersionNumber,
    check_alias,
    check_file_name,
    check_name,
)

ALIASES_FILE = "aliases.json"
DEFAULT_ALIAS = "production"
_ALIASES_ASIDE = ".incoming-aliases"
_CHUNK_BYTES = 1 << 20
_ALIASES = TypeAdapter(dict[Alias, VersionNumber])
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EROFS: "mount it writable",
    errno.EACCES: "check its owner",
    errno.EPERM: "check its owner",
}


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


def digest_file(path: Path) -> tuple[str, int]:
    """The SHA-256 in hexadecimal and the size in bytes of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


class ModelStore:
    """Named, versioned, immutable models in a folder, which may be mounted read-only for reading."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = Path(root)
        self._disk = disk or Disk()

    # Reading

    def names(self) -> list[str]:
        """The names that have at least one version, or whose folder can't be read, sorted.

        Raises:
            IntegrityError: the store's own folder can't be read.
        """
        return sorted(entry.name for entry in list_entries(self.root) if _is_name(entry.name) and self._has(entry.name))

    def _has(self, name: str) -> bool:
        try:
            return bool(self.versions(name))
        except IntegrityError:
            return True  # it has something: what, is said to whoever asks for it

    def versions(self, name: str) -> list[int]:
        """The versions of `name`, oldest first; empty where there is none.

        Raises:
            InvalidReferenceError: not a name.
            IntegrityError: its folder can't be read.
        """
        entries = list_entries(self.root / check_name(name))
        return sorted(
            int(entry.name) for entry in entries if _is_version(entry.name) and entry.is_dir(follow_symlinks=False)
        )

    def ids(self) -> list[ModelId]:
        """Every version of every name, oldest first within a name."""
        return [ModelId(name=name, version=version) for name in self.names() for version in self.versions(name)]

    def aliases_of(self, model: ModelId) -> list[str]:
        """The aliases that point at a version, sorted; see `aliases`."""
        return sorted(alias for alias, version in self.aliases(model.name).items() if version == model.version)

    def aliases(self, name: str) -> dict[str, int]:
        """The aliases of `name` and the version that each points at.

        Raises:
            InvalidReferenceError: not a name.
            IntegrityError: the alias file is not valid.
        """
        path = self.root / check_name(name) / ALIASES_FILE
        try:
            return _ALIASES.validate_json(read_record(path))
        except (FileNotFoundError, NotADirectoryError):
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
        if selector.isascii() and selector.isdigit():
            if selector not in map(str, versions):
                raise ModelNotFoundError(f"model {name!r} has no version {selector[:80]}: it has {_listed(versions)}")
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
        self._require(model)
        try:
            manifest = Manifest.model_validate_json(read_record(self._folder(model) / MANIFEST_FILE))
        except (OSError, ValidationError) as error:
            reason = f"{error.error_count()} errors" if isinstance(error, ValidationError) else error.strerror
            raise IntegrityError(
                f"the manifest of {model} can't be read ({reason}): restore it, or remove the version"
            ) from error
        if manifest.id != model:
            raise IntegrityError(f"the manifest in {model}'s folder is that of {manifest.id}")
        return manifest

    def open(self, model: ModelId) -> StoredVersion:
        """Verify every digest of a version and return it.

        Raises:
            ModelNotFoundError: no such version.
            IntegrityError: a file is missing, changed, truncated, a link, or not listed in the manifest, or a model's
                weights lie in none of them.
        """
        manifest = self.manifest(model)
        folder = self._folder(model)
        listed = {entry.file: entry for entry in (*manifest.artifacts, *manifest.files)}
        try:
            strangers = sorted({entry.name for entry in list_entries(folder)} - {*listed, MANIFEST_FILE})
            if strangers:
                raise IntegrityError(
                    f"{model} has files that its manifest doesn't list: {_listed(strangers)}: delete them, or remove"
                    " the version"
                )
            for file, entry in listed.items():
                path = folder / file
                if path.is_symlink() or not path.is_file():
                    self._require(model)  # it may have been removed meanwhile
                    raise IntegrityError(f"{model} has lost its file {file}: restore it, or remove the version")
                digest, size = digest_file(path)
                if (digest, size) != (entry.sha256, entry.bytes):
                    raise IntegrityError(
                        f"{model}: {file} is not what was published ({size} bytes, sha256 {digest[:12]}…; expected"
                        f" {entry.bytes}, {entry.sha256[:12]}…): restore it, or remove the version"
                    )
            _check_self_contained(folder, manifest)
        except OSError as error:
            self._require(model)  # as above
            raise IntegrityError(f"the files of {model} can't be read ({error.strerror}): check their owner") from error
        return StoredVersion(folder=folder, manifest=manifest)

    # Writing

    def publish(self, draft: Draft, files: Mapping[str, Path], aliases: tuple[str, ...] = ()) -> ModelId:
        """Copy `files` (name in the version → where it is now) into a new version, then point `aliases` at it.

        All or nothing, but for a crash between the two last renames: that leaves the whole version and the old aliases.

        Raises:
            InvalidReferenceError: the name, an alias or a file's name is not well formed.
            StoreError: the draft is not valid, or one of `files` can't be read.
            IntegrityError: an artifact's bytes are not those that were measured, or no ONNX file that keeps to `files`.
            StoreWriteError: the store could not be written.
        """
        for alias in aliases:
            check_alias(alias)
        for file in files:
            check_file_name(file)
        with self._writing(draft.name) as folder:
            version = self._next_version(folder)
            aside = folder / f".incoming-{version}"
            try:
                self._disk.make_folder(aside)
                digests = {name: self._copy(source, aside / name) for name, source in files.items()}
                manifest = self._number(draft, version, digests)
                _check_self_contained(aside, manifest)
                self._write(aside / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
                self._disk.sync(aside)
                if aliases:
                    self._write_aliases_aside(folder, dict.fromkeys(aliases, version))
            except BaseException:
                with suppress(OSError):  # else the next writer sweeps
                    self._sweep(folder)
                raise
            self._disk.rename(aside, folder / str(version))
            self._disk.sync(folder)
            if aliases:
                self._put_aliases_in_place(folder)
        return manifest.id

    def promote(self, model: ModelId, alias: str) -> None:
        """Point `alias` at a version whose files are whole.

        Raises:
            InvalidReferenceError: not an alias.
            ModelNotFoundError: no such version.
            IntegrityError: a file of the version is not what was published.
            StoreWriteError: the store could not be written.
        """
        check_alias(alias)
        self.open(model)
        with self._writing(model.name) as folder:
            self._require(model)  # it may have been removed before the lock was held
            self._write_aliases_aside(folder, {alias: model.version})
            self._put_aliases_in_place(folder)

    def remove(self, model: ModelId) -> None:
        """Delete a version; its number stays taken.

        Raises:
            ModelNotFoundError: no such version.
            VersionInUseError: an alias points at it.
            StoreWriteError: the store could not be written.
        """
        self._require(model)
        with self._writing(model.name) as folder:
            self._require(model)  # as above
            using = self.aliases_of(model)
            if using:
                raise VersionInUseError(f"{model} is what {_listed(using)} points at: promote another version first")
            self._disk.rename(folder / str(model.version), folder / f".removed-{model.version}")
            self._disk.sync(folder)
            self._sweep(folder)

    def _folder(self, model: ModelId) -> Path:
        return self.root / check_name(model.name) / str(model.version)

    def _require(self, model: ModelId) -> None:
        if model.version not in self.versions(model.name):
            raise ModelNotFoundError(f"no version {model} in the store")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """Hold the name's lock, after sweeping what a crashed writer left behind."""
        folder = self.root / check_name(name)
        try:
            missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
            for path in reversed(missing):
                with suppress(FileExistsError):  # another writer was quicker
                    self._disk.make_folder(path)
            # the root always: a writer that crashed may have made the name's folder
            for path in dict.fromkeys([self.root, *(path.parent for path in missing)]):
                self._disk.sync(path)
            with (folder / ".lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._sweep(folder)
                yield folder
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "check the disk")
            raise StoreWriteError(f"the store at {self.root} can't be written ({error.strerror}): {remedy}") from error

    def _sweep(self, folder: Path) -> None:
        """Delete what writers left unfinished and what removed versions held; their folders keep the numbers taken.

        What can't be deleted, such as another user's, takes space and nothing else.
        """
        for leftover in (*folder.glob(".incoming-*"), *folder.glob(".removed-*/*")):
            with suppress(OSError):
                self._disk.remove(leftover)

    def _next_version(self, folder: Path) -> int:
        taken = [entry.name.removeprefix(".removed-").removeprefix(".incoming-") for entry in folder.iterdir()]
        return 1 + max((int(number) for number in taken if _is_version(number)), default=0)

    def _copy(self, source: Path, target: Path) -> FileDigest:
        digest = hashlib.sha256()
        try:
            reader = source.open("rb")
        except OSError as error:
            raise StoreError(f"{source} can't be read ({error.strerror}): build again") from error
        with reader, self._disk.create(target) as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                self._disk.write(writer, chunk)
                digest.update(chunk)
            size = reader.tell()
        self._disk.sync(target)
        return FileDigest(file=target.name, sha256=digest.hexdigest(), bytes=size)

    def _write(self, target: Path, data: bytes) -> None:
        if len(data) > MAX_RECORD_BYTES:
            raise StoreError(
                f"{target.name} would have {len(data)} bytes, more than the {MAX_RECORD_BYTES} that are read"
            )
        with self._disk.create(target) as writer:
            self._disk.write(writer, data)
        self._disk.sync(target)

    def _write_aliases_aside(self, folder: Path, moved: dict[str, int]) -> None:
        aliases = {**self.aliases(folder.name), **moved}
        self._write(folder / _ALIASES_ASIDE, json.dumps(aliases, indent=2, sort_keys=True).encode() + b"\n")

    def _put_aliases_in_place(self, folder: Path) -> None:
        self._disk.rename(folder / _ALIASES_ASIDE, folder / ALIASES_FILE)
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
            raise StoreError(f"{draft.name!r} can't be published: {first_problem(error)[1]}") from error


def _check_self_contained(folder: Path, manifest: Manifest) -> None:
    """See that no model of a version makes the runtime open a file that the version does not hold.

    Raises:
        IntegrityError: one does, or is no ONNX file.
    """
    held = {entry.file for entry in (*manifest.artifacts, *manifest.files)}
    for artifact in manifest.artifacts:
        try:
            outside = sorted(external_locations(folder / artifact.file) - held)
        except ClassifierError as error:
            raise IntegrityError(f"{manifest.id}: {error}: publish the model again") from error
        if outside:
            raise IntegrityError(
                f"{manifest.id}: {artifact.file} reads {outside[0][:80]!r}, which is not a file of the version:"
                " publish them together"
            )


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidReferenceError:
        return False
    return True


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0") and int(text[:10]) <= MAX_VERSION


def _listed(values: Sequence[str] | Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:20])) or "none"
    return f"{shown} and {len(values) - 20} more" if len(values) > 20 else shown
