"""`successor keys …`: make API keys, list and revoke them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.access import KeysFile

keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make API keys, list and revoke them.")

FileOption = Annotated[
    Path, typer.Option("--file", envvar="SUCCESSOR_API_KEYS_FILE", help="The file of API keys that the server reads.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
NameArgument = Annotated[str, typer.Argument(help="Of whoever holds the key; the server's logs have it.")]


class Scope(StrEnum):
    """What a key may do; `service.access.Permission` in the form that Typer takes a list of."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"


@keys.command("new", epilog="Example: successor keys new shop --scope infer --rate 50 --file keys.json")
def new(
    name: NameArgument,
    file: FileOption,
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may do; may be given several times.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second that it may send; any number unless given.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a key, add its digest to the file and print the key, which nobody can read again."""
    from service.access import KeysFileError, digest_of, new_key

    key, scopes = new_key(), [one.value for one in dict.fromkeys(scope or [Scope.INFER])]
    entry: dict[str, object] = {
        "name": name,
        "sha256": digest_of(key),
        "scopes": scopes,
        "requests_per_second": rate,
    }
    with _editing(file) as before:
        if any(one.name == name for one in before.keys):
            raise KeysFileError(f"{file} has a key {name!r}: revoke it first, or choose another name")
        _write(file, before, [*(one.model_dump(mode="json") for one in before.keys), entry])
    if as_json:
        typer.echo(json.dumps({"key": key, "entry": entry}, indent=2))
    else:
        typer.echo(f"{name} may {', '.join(scopes)}; the key, shown only now:", err=True)
        typer.echo(key)


@keys.command("list", epilog="Example: successor keys list --file keys.json")
def list_keys(file: FileOption, *, as_json: JsonOption = False) -> None:
    """List the keys of the file: names, scopes and rates."""
    entries = _read(file).keys
    if as_json:
        typer.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
        return
    for entry in entries:
        rate = "" if entry.requests_per_second is None else f"  {entry.requests_per_second:g} requests a second"
        typer.echo(f"{entry.name}  {', '.join(entry.scopes)}{rate}")


@keys.command("revoke", epilog="Example: successor keys revoke shop --file keys.json")
def revoke(name: NameArgument, file: FileOption) -> None:
    """Take a key out of the file: within a second, running servers refuse it."""
    from service.access import KeysFileError

    with _editing(file) as before:
        entries = before.keys
        kept = [entry.model_dump(mode="json") for entry in entries if entry.name != name]
        if len(kept) == len(entries):
            raise KeysFileError(f"{file} has no key {name!r}: it has {', '.join(e.name for e in entries) or 'none'}")
        _write(file, before, kept)
    typer.echo(f"{name} is revoked")


def _read(file: Path) -> KeysFile:
    """The keys of a file; none where there is no file yet."""
    from service.access import KeysFile, parse_keys, read_keys

    return parse_keys(read_keys(file), file) if file.exists() else KeysFile()


@contextlib.contextmanager
def _editing(file: Path) -> Iterator[KeysFile]:
    """The keys of a file that nobody else edits inside the block.

    Raises:
        KeysFileError: the file can't be read, or its folder can't be written.
    """
    from service.access import KeysFileError

    try:
        folder = os.open(file.parent, os.O_RDONLY)
    except OSError as error:
        raise KeysFileError(f"{file} can't be written ({error.strerror}): check its folder") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield _read(file)
    finally:
        os.close(folder)


def _write(file: Path, before: KeysFile, entries: list[dict[str, object]]) -> None:
    """Write the keys into the file itself: a container that has it mounted sees nothing of one that replaces it.

    A server that reads half of it keeps its keys and looks again; a copy lies beside until the file is whole.

    Raises:
        KeysFileError: the entries are not valid, or the file can't be written.
    """
    from service.access import KeysFileError, parse_keys

    data = json.dumps({"anonymous": before.anonymous, "keys": entries}, indent=2).encode() + b"\n"
    parse_keys(data, file)
    aside = file.with_name(f".{file.name}.incoming")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "wb") as writer:
            writer.write(data)
            writer.flush()
            os.fsync(writer.fileno())
        if not file.exists():
            aside.replace(file)
            return
        with file.open("r+b") as writer:
            writer.write(data)
            writer.truncate()
            writer.flush()
            os.fsync(writer.fileno())
        aside.unlink()
    except OSError as error:
        raise KeysFileError(f"{file} can't be written ({error.strerror}): check its folder") from error
