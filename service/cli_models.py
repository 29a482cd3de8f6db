"""`successor models …`: look into the store, verify it, move aliases and remove versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from model_store.errors import IntegrityError, StoreError
from model_store.manifest import DEFAULT_STORE, Manifest, ModelId
from model_store.store import ModelStore

models = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, verify, promote and remove the versions in a store."
)

StoreOption = Annotated[Path, typer.Option("--store", envvar="SUCCESSOR_STORE_DIR", help="The store's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
ReferenceArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION|@ALIAS]", help="Which version.")]


@models.command("list", epilog="Example: successor models list --store artifacts/store")
def list_models(store: StoreOption = DEFAULT_STORE, *, as_json: JsonOption = False) -> None:
    """List every version with its aliases, files, main metric and gate."""
    summaries = [_summary(ModelStore(store), model) for model in ModelStore(store).ids()]
    if as_json:
        _print_json(summaries)
    elif summaries:
        _print_table(list(_SUMMARY_COLUMNS), [[show(row) for show in _SUMMARY_COLUMNS.values()] for row in summaries])
    else:
        typer.echo(f"no models in {store}: `successor demo` or `successor build RECIPE` publishes one", err=True)


@models.command("show", epilog="Example: successor models show sentiment@production --json")
def show_model(
    reference: ReferenceArgument, store: StoreOption = DEFAULT_STORE, *, as_json: JsonOption = False
) -> None:
    """Show one version: task, labels, files, measurements, gate and lineage; with --json its whole manifest."""
    shelf = ModelStore(store)
    manifest = shelf.manifest(shelf.resolve(reference))
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
    else:
        _print_table(["", str(manifest.id)], _details(manifest, shelf.aliases_of(manifest.id)))


@models.command("verify", epilog="Example: successor models verify && echo whole")
def verify_models(
    reference: Annotated[
        str | None, typer.Argument(metavar="[NAME[@VERSION|@ALIAS]]", help="One version; everything unless given.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    *,
    as_json: JsonOption = False,
) -> None:
    """Digest files again and compare with the manifest; without a reference, check every version and alias.

    Exits with 1 when anything is bad.
    """
    shelf = ModelStore(store)
    found = [_verified(shelf, shelf.resolve(reference))] if reference else _verified_all(shelf)
    if as_json:
        _print_json([{"checked": checked, "error": error} for checked, error in found])
    else:
        for checked, error in found:
            typer.echo(f"{checked}: {error or 'whole'}")
        if not found:
            typer.echo(f"no models in {store}", err=True)
    if any(error for _, error in found):
        raise typer.Exit(1)


@models.command("promote", epilog="Example: successor models promote sentiment@3 production")
def promote_model(
    reference: ReferenceArgument,
    alias: Annotated[str, typer.Argument(help="The alias to point at it, for example production.")],
    store: StoreOption = DEFAULT_STORE,
    *,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version whose files are whole."""
    shelf = ModelStore(store)
    model = shelf.resolve(reference)
    previous = shelf.aliases(model.name).get(alias)
    shelf.promote(model, alias)
    if as_json:
        _print_json({"name": model.name, "alias": alias, "version": model.version, "previous": previous})
    else:
        typer.echo(f"{model.name}@{alias} is now {model}" + (f" (was {model.name}@{previous})" if previous else ""))


@models.command("remove", epilog="Example: successor models remove sentiment@2 --yes")
def remove_model(
    reference: ReferenceArgument,
    store: StoreOption = DEFAULT_STORE,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete one version for good; one that an alias points at is refused."""
    shelf = ModelStore(store)
    model = shelf.resolve(reference)
    if not yes:
        typer.confirm(f"Delete {model} from {store} for good?", abort=True, err=True)
    shelf.remove(model)
    if as_json:
        _print_json({"removed": str(model)})
    else:
        typer.echo(f"{model} is removed")


def _summary(store: ModelStore, model: ModelId) -> dict[str, Any]:
    """One row of the list; a version that can't be read is a row too, with its `error`."""
    try:
        manifest = store.manifest(model)
        return {
            "name": model.name,
            "version": model.version,
            "aliases": store.aliases_of(model),
            "created": manifest.created.isoformat(timespec="seconds"),
            "files": [entry.model_dump(include={"file", "precision", "bytes"}) for entry in manifest.artifacts],
            "metric": _main_metric(manifest.measurements),
            "gate": [{"name": check.name, "passed": check.passed} for check in manifest.gate],
            "error": None,
        }
    except StoreError as error:
        empty: dict[str, Any] = {"aliases": [], "created": None, "files": [], "metric": None, "gate": []}
        return {"name": model.name, "version": model.version, **empty, "error": str(error)}


def _main_metric(measurements: Mapping[str, float]) -> dict[str, Any] | None:
    """What the version itself scored on test: a successor's manifest has its predecessor's figure too."""
    named = sorted(measurements, key=lambda name: ("successor", "predecessor", name).index(name))
    return {"name": named[0], "value": measurements[named[0]]} if named else None


_SUMMARY_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda row: row["name"],
    "version": lambda row: str(row["version"]),
    "aliases": lambda row: ", ".join(row["aliases"]) or "–",
    "created": lambda row: row["created"] or "–",
    "files": lambda row: ", ".join(f"{file['precision']} {_size(file['bytes'])}" for file in row["files"]) or "–",
    "metric": lambda row: f"{row['metric']['name']} {row['metric']['value']:.4g}" if row["metric"] else "–",
    "gate": lambda row: row["error"] or _verdict([(check["name"], check["passed"]) for check in row["gate"]]),
}


def _details(manifest: Manifest, aliases: Sequence[str]) -> list[list[str]]:
    texts = "pairs of texts" if manifest.inputs.pair else "single texts"
    lineage = manifest.lineage
    rows = [
        ["aliases", ", ".join(aliases) or "–"],
        ["created", manifest.created.isoformat(timespec="seconds")],
        ["task", f"{manifest.scores.problem} of {texts} of at most {manifest.inputs.max_length} tokens"],
        ["labels", ", ".join(manifest.scores.labels)],
        ["predecessor", lineage.predecessor or "–"],
        ["encoder", f"{lineage.encoder} ({lineage.encoder_licence})"],
        ["data", f"{lineage.data.source} ({lineage.data.licence})"],
    ]
    for artifact in manifest.artifacts:
        batching = "batched" if artifact.batch_invariant else "one text at a time"
        batching += ", no padding computed" if artifact.unpadded else ""
        rows.append([artifact.file, f"{artifact.precision}, {_size(artifact.bytes)}, {artifact.method}, {batching}"])
    rows += [[entry.file, _size(entry.bytes)] for entry in manifest.files]
    rows += [[name, f"{value:.6g}"] for name, value in manifest.measurements.items()]
    for check in manifest.gate:
        bound = f"{check.direction.replace('_', ' ')} {check.bound:.6g}"
        rows.append([f"gate: {check.name}", f"{'passed' if check.passed else 'FAILED'} ({check.value:.6g}, {bound})"])
    return rows


def _verified(store: ModelStore, model: ModelId) -> tuple[str, str | None]:
    """The version's id, and what is wrong with it."""
    try:
        store.open(model)
    except IntegrityError as error:
        return str(model), str(error)
    return str(model), None


def _verified_all(store: ModelStore) -> list[tuple[str, str | None]]:
    found = [_verified(store, model) for model in store.ids()]
    for name in store.names():
        try:
            for alias in sorted(store.aliases(name)):
                store.resolve(f"{name}@{alias}")
        except StoreError as error:
            found.append((f"{name}'s aliases", str(error)))
    return found


def _verdict(checks: Sequence[tuple[str, bool]]) -> str:
    failed = [name for name, passed in checks if not passed]
    return f"FAILED {', '.join(failed)}" if failed else f"passed {len(checks)} of {len(checks)}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} B"


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A framed table on a terminal; aligned plain columns, never cut or wrapped, in a pipe."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*headers)
        for row in rows:
            table.add_row(*row)
        Console(markup=False).print(table)
        return
    lines = [headers, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
