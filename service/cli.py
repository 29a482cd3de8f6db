"""The command line `successor …`: `serve`, `models`, `keys`, `compare`, and the commands that other packages add.

Another package adds a command through the entry-point group `successor.commands`: a plain function with Typer's
annotations. Commands are imported only when they are asked for: listing models never loads a runtime, and a package
that isn't installed breaks nothing but its own command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_store.errors import SuccessorError, one_line
from model_store.extras import remedy
from service.cli_keys import keys
from service.cli_models import models

if TYPE_CHECKING:
    from service.settings import Settings

COMMAND_GROUP = "successor.commands"
COMPARE = EntryPoint("compare", "service.comparison.cli:compare", COMMAND_GROUP)
OWN_COMMANDS = ("serve", "models", "keys")


def serve(
    store: Annotated[Path | None, typer.Option(help="The store's folder (SUCCESSOR_STORE_DIR).")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on (SUCCESSOR_HOST).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="The port, 0 for any (SUCCESSOR_PORT).")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Server processes (SUCCESSOR_PROCESSES).")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML or TOML file of settings.")] = None,
) -> None:
    """Serve the store's models over HTTP until SIGTERM or SIGINT.

    Options override the environment (SUCCESSOR_…), which overrides the file.
    """
    settings = settings_for(config, {"store_dir": store, "host": host, "port": port, "processes": processes})

    from service.server import serve as serve_until_stopped

    raise typer.Exit(serve_until_stopped(settings))


def settings_for(config: Path | None, options: Mapping[str, object]) -> Settings:
    """The settings of the options that are not None, then of the environment, then of the file `config`.

    Raises:
        ConfigFileError: the file can't be read.
        InvalidSettingsError: a setting is unknown or has a value that it can't have.
    """
    from service.settings import PREFIX, load_settings

    environment = {variable.upper() for variable, value in os.environ.items() if value}  # empty: not set
    of_file = {key: value for key, value in read_config(config).items() if (PREFIX + key).upper() not in environment}
    return load_settings(**of_file | {key: value for key, value in options.items() if value is not None})


def read_config(file: Path | None) -> dict[str, Any]:
    """The settings in a YAML or TOML file, by their names; none without a file.

    Raises:
        ConfigFileError: it can't be read or is not a mapping.
    """
    if file is None:
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".toml":
            import tomllib

            return tomllib.loads(text)
        import yaml

        content = yaml.safe_load(text) or {}
    except OSError as error:
        raise ConfigFileError(f"the settings file {file} can't be read: {error.strerror}") from error
    except Exception as error:  # YAML's, TOML's and UTF-8's errors share no other base class
        raise ConfigFileError(f"the settings file {file} is not valid: {one_line(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigFileError(f"the settings file {file} must hold `setting: value` lines")
    return content


class ConfigFileError(SuccessorError):
    """The file of settings can't be read."""


def command_line(arguments: Sequence[str], plugins: Sequence[EntryPoint]) -> typer.Typer:
    """The application for `arguments`; `plugins` are imported only if these arguments are not for our own commands."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
    app.callback()(_root)
    app.command(epilog="Example: successor serve --store artifacts/store --port 8000")(serve)
    app.add_typer(models, name="models")
    app.add_typer(keys, name="keys")
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    if asked not in OWN_COMMANDS:
        taken = set(OWN_COMMANDS)
        for plugin in plugins:
            if plugin.name not in taken:
                taken.add(plugin.name)
                _add(app, plugin)
    return app


def main(arguments: Sequence[str] | None = None, plugins: Sequence[EntryPoint] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed (one line on stderr says why), 2 bad usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app = command_line(arguments, [COMPARE, *entry_points(group=COMMAND_GROUP)] if plugins is None else plugins)
        app(arguments, prog_name="successor")
    except SuccessorError as error:
        code, message = 1, one_line(error)
    except ModuleNotFoundError as error:
        command = next((argument for argument in arguments if not argument.startswith("-")), "")
        code, message = 1, f"{one_line(error)}: {_remedy(command)}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"successor {version('successor')}")
        raise typer.Exit


def _root(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Turn a large text classifier into a small fast one, prove what it cost, and serve both."""


def _add(app: typer.Typer, plugin: EntryPoint) -> None:
    """Add the plug-in's command, or where it can't be imported one that says so."""
    try:
        app.command(plugin.name)(plugin.load())
    except Exception as error:  # noqa: BLE001 - whatever a foreign package raises, the other commands go on
        reason = f"`successor {plugin.name}` can't be loaded ({one_line(error)}): {_remedy(plugin.name)}"

        def unavailable() -> None:
            raise SuccessorError(reason)

        accept_all = {"allow_extra_args": True, "ignore_unknown_options": True}
        app.command(plugin.name, help=f"Not available: {_remedy(plugin.name)}", context_settings=accept_all)(
            unavailable
        )


def _remedy(command: str) -> str:
    extra = {"build": "build", "study": "build", "compare": "compare", "demo": "demo"}.get(command, "cpu")
    return remedy(extra)


if __name__ == "__main__":
    main()
