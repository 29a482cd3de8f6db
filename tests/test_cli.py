"""The command line: `models`, `serve`'s settings, commands of other packages, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, version
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from model_store.errors import SuccessorError
from model_store.manifest import DEFAULT_STORE, Manifest, ModelId
from model_store.store import ModelStore
from service.cli import (
    COMMAND_GROUP,
    OWN_COMMANDS,
    ConfigFileError,
    command_line,
    main,
    read_config,
    serve,
    settings_for,
)
from service.settings import InvalidSettingsError, Settings
from tests.tiny import MODEL_FILE, make_tiny_version


@dataclass(frozen=True)
class Run:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the command printed
        return json.loads(self.out)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Run:
    """`successor ARGUMENTS` through `main`, as the console script runs it."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Run(int(caught.value.code or 0), captured.out, captured.err)


def damage(store: ModelStore, model: ModelId, file: str = MODEL_FILE) -> None:
    path = store.root / model.name / str(model.version) / file
    path.chmod(0o644)
    path.write_bytes(b"{}")


# models


def test_list_has_a_row_for_each_version(store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_version(store, "pairs", pair=True)
    result = run(capsys, "models", "list", "--store", store.root)
    headers, pairs, row = (line.split() for line in result.out.splitlines())
    assert headers == ["name", "version", "aliases", "created", "files", "metric", "gate"]
    assert pairs[:3] == ["pairs", "1", "–"]
    assert row[:3] == ["tiny", "1", "production"]
    assert " ".join(row[4:]) == f"fp32 {store.manifest(tiny).artifacts[0].bytes} B accuracy 0.75 passed 1 of 1"
    assert result.code == 0


def test_list_as_json_says_the_same(store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(capsys, "models", "list", "--store", store.root, "--json").json
    artifact = store.manifest(tiny).artifacts[0]
    assert row == {
        "name": "tiny",
        "version": 1,
        "aliases": ["production"],
        "created": store.manifest(tiny).created.isoformat(timespec="seconds"),
        "files": [{"file": MODEL_FILE, "precision": "fp32", "bytes": artifact.bytes}],
        "metric": {"name": "accuracy", "value": 0.75},
        "gate": [{"name": "parity", "passed": True}],
        "error": None,
    }


def test_list_shows_a_version_that_can_not_be_read_beside_the_others(
    store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_version(store)
    damage(store, tiny, "manifest.json")
    result = run(capsys, "models", "list", "--store", store.root)
    assert "the manifest of tiny@1 can't be read" in result.out
    assert "passed 1 of 1" in result.out
    assert result.code == 0


def test_list_of_an_empty_store_says_how_to_fill_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "models", "list", "--store", tmp_path)
    assert (result.code, result.out) == (0, "")
    assert "successor build" in result.err
    assert run(capsys, "models", "list", "--store", tmp_path, "--json").json == []


def test_a_table_in_a_pipe_is_never_cut(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    label = "x" * 300
    make_tiny_version(store, labels=(label, "other"))
    assert f"labels          {label}, other\n" in run(capsys, "models", "show", "tiny", "--store", store.root).out


def test_show_prints_what_the_version_is(store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "models", "show", "tiny", "--store", store.root).out
    for words in ("tiny@1", "production", "single texts", "negative, positive", "batched", "Apache-2.0", "passed (0"):
        assert words in out


def test_show_as_json_is_the_manifest(store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "models", "show", "tiny@production", "--store", store.root, "--json").out
    assert Manifest.model_validate_json(out) == store.manifest(tiny)


def test_verify_passes_a_whole_store(store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "models", "verify", "--store", store.root)
    assert (result.code, result.out) == (0, "tiny@1: whole\n")


def test_verify_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "models", "verify", "--store", tmp_path)
    assert (result.code, result.out) == (0, "")
    assert "no models" in result.err


def test_verify_has_one_line_for_each_version_and_fails_if_one_is_bad(
    store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]
) -> None:
    second = make_tiny_version(store)
    damage(store, second)
    result = run(capsys, "models", "verify", "--store", store.root)
    assert result.code == 1
    good, bad = result.out.splitlines()
    assert good == "tiny@1: whole"
    assert bad.startswith("tiny@2: tiny@2: fp32.onnx is not what was published")
    assert run(capsys, "models", "verify", "tiny@1", "--store", store.root).code == 0
    assert run(capsys, "models", "verify", "tiny@2", "--store", store.root).code == 1
    found = run(capsys, "models", "verify", "--store", store.root, "--json").json
    assert [entry["error"] is None for entry in found] == [True, False]


def test_verify_finds_aliases_that_lead_nowhere(
    store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.root / "tiny" / "aliases.json").unlink()
    (store.root / "tiny" / "aliases.json").write_text('{"production": 9}')
    result = run(capsys, "models", "verify", "--store", store.root)
    assert result.code == 1
    assert "tiny's aliases: alias tiny@production points at version 9" in result.out


def test_promote_moves_an_alias_and_says_from_where(
    store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_version(store)
    moved = run(capsys, "models", "promote", "tiny@2", "production", "--store", store.root)
    assert moved.out == "tiny@production is now tiny@2 (was tiny@1)\n"
    fresh = run(capsys, "models", "promote", "tiny@1", "staging", "--store", store.root, "--json")
    assert fresh.json == {"name": "tiny", "alias": "staging", "version": 1, "previous": None}
    assert store.aliases("tiny") == {"production": 2, "staging": 1}


def test_remove_asks_and_does_nothing_without_a_yes(
    store: ModelStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_version(store)
    app = command_line(["models"], [])
    for answer in ("n\n", ""):
        result = CliRunner().invoke(app, ["models", "remove", "tiny@1", "--store", str(store.root)], input=answer)
        assert result.exit_code == 1
        assert store.versions("tiny") == [1]
    result = CliRunner().invoke(app, ["models", "remove", "tiny@1", "--store", str(store.root)], input="y\n")
    assert result.exit_code == 0
    assert store.versions("tiny") == []


def test_remove_with_yes_does_not_ask(store: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_version(store), make_tiny_version(store)
    assert run(capsys, "models", "remove", "tiny@1", "--yes", "--store", store.root).out == "tiny@1 is removed\n"
    result = run(capsys, "models", "remove", "tiny@2", "--yes", "--json", "--store", store.root)
    assert result.json == {"removed": "tiny@2"}
    assert store.versions("tiny") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "other"),
        ("show", "../tiny"),
        ("show", "tiny@9"),
        ("verify", "tiny@nope"),
        ("promote", "tiny@1", "7"),
        ("promote", "tiny@9", "production"),
        ("remove", "tiny@1", "--yes"),
    ],
)
def test_an_expected_error_is_one_line_and_exit_code_1(
    store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    result = run(capsys, "models", *arguments, "--store", store.root)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("models", "frobnicate"), ("models", "show"), ("serve", "--port", "99999")]
)
def test_bad_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    result = run(capsys, *arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error: " in result.err


def test_the_store_is_taken_from_the_environment(
    store: ModelStore, tiny: ModelId, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUCCESSOR_STORE_DIR", str(store.root))
    assert run(capsys, "models", "verify").out == "tiny@1: whole\n"


def test_the_store_is_where_the_server_looks_by_default() -> None:
    assert Settings.model_fields["store_dir"].default == DEFAULT_STORE


# serve


def test_options_override_the_environment_which_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("host: file\nport: 1\nprocesses: 2\nmodels: [tiny@1]\n")
    monkeypatch.setenv("SUCCESSOR_HOST", "environment")
    monkeypatch.setenv("successor_port", "2")
    settings = settings_for(file, {"port": 3, "store_dir": None})
    assert (settings.host, settings.port, settings.processes) == ("environment", 3, 2)
    assert settings.models == ("tiny@1",)
    assert settings_for(file, {}).port == 2


def test_an_empty_variable_leaves_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("api_keys_file: keys.json\n")
    monkeypatch.setenv("SUCCESSOR_API_KEYS_FILE", "")
    assert settings_for(file, {}).api_keys_file == Path("keys.json")


def test_a_settings_file_may_be_toml(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('host = "file"\nmodels = ["tiny@1"]\n')
    assert settings_for(file, {}).models == ("tiny@1",)


def test_an_empty_settings_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("# nothing yet\n")
    assert read_config(tmp_path / "settings.yaml") == read_config(None) == {}


@pytest.mark.parametrize("content", ["[1, 2]", "just words", "1: 2", "a: [", "a: \x00", "\xff"])
@pytest.mark.parametrize("name", ["settings.yaml", "settings.toml"])
def test_a_settings_file_that_is_none_is_refused_in_one_line(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigFileError, match=name) as caught:
        read_config(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_settings_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="No such file"):
        read_config(tmp_path / "settings.yaml")


def test_an_unknown_setting_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("prot: 80\n")
    with pytest.raises(InvalidSettingsError, match="unknown setting 'prot'"):
        settings_for(tmp_path / "settings.yaml", {})


# commands of other packages


def greet(name: Annotated[str, typer.Argument()], *, loud: Annotated[bool, typer.Option()] = False) -> None:
    """Greet somebody."""
    typer.echo(f"hello {name}{'!' if loud else ''}")


def needs_a_package() -> None:
    """Do what needs a package that isn't here."""
    import a_package_that_is_not_installed  # type: ignore[import-not-found]  # noqa: F401


def refuses() -> None:
    """Refuse."""
    raise SuccessorError("no,\nnot today")


def is_interrupted() -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


def plugin(name: str, target: str) -> EntryPoint:
    return EntryPoint(name, target, COMMAND_GROUP)


GREET = plugin("greet", "tests.test_cli:greet")
BROKEN = plugin("build", "tests.no_such_module:build")


def invoke(plugins: Sequence[EntryPoint], *arguments: str) -> typer.testing.Result:
    return CliRunner().invoke(command_line(arguments, plugins), list(arguments))


def test_a_command_of_another_package_joins() -> None:
    assert invoke([GREET], "greet", "you", "--loud").output == "hello you!\n"
    assert "Greet somebody." in invoke([GREET], "--help").output


def test_a_package_that_can_not_be_imported_breaks_its_own_command_only() -> None:
    assert invoke([BROKEN, GREET], "greet", "you").output == "hello you\n"
    assert "pip install '.[build]'" in invoke([BROKEN, GREET], "--help").output
    error = invoke([BROKEN], "build", "recipe", "--set", "a=b").exception
    assert isinstance(error, SuccessorError)
    assert "no_such_module" in str(error)
    assert "pip install '.[build]'" in str(error)


def test_our_own_commands_can_not_be_replaced_and_import_nothing_else() -> None:
    assert "until SIGTERM" in invoke([plugin("serve", "tests.no_such_module:serve")], "serve", "--help").output
    app = command_line(["models", "list"], [GREET])
    assert [command.callback for command in app.registered_commands] == [serve]
    assert OWN_COMMANDS == ("serve", "models", "keys")


def test_the_first_of_two_commands_of_one_name_wins() -> None:
    assert invoke([GREET, plugin("greet", "tests.test_cli:refuses")], "greet", "you").output == "hello you\n"


def test_an_error_of_several_lines_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["refuses"], [plugin("refuses", "tests.test_cli:refuses")])
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: no, not today\n"


def test_a_package_missing_at_run_time_is_named_with_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo"], [plugin("demo", "tests.test_cli:needs_a_package")])
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "error: No module named 'a_package_that_is_not_installed': in a checkout of Successor, pip install '.[demo]'\n"
    )


def test_an_interrupted_command_exits_with_130_and_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["is-interrupted"], [plugin("is-interrupted", "tests.test_cli:is_interrupted")])
    assert caught.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


# the program


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version").out == f"successor {version('successor')}\n"


@pytest.mark.parametrize(
    "command",
    [
        ("serve",),
        ("compare",),
        ("build",),
        ("demo",),
        *(("models", verb) for verb in ("list", "show", "verify", "promote", "remove")),
        *(("keys", verb) for verb in ("new", "list", "revoke")),
    ],
)
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], command: Sequence[str]) -> None:
    result = run(capsys, *command, "--help")
    assert result.code == 0
    assert f"Example: successor {' '.join(command)}" in " ".join(result.out.split())


@pytest.mark.slow
def test_the_program_runs_as_a_module_and_listing_loads_no_runtime(store: ModelStore, tiny: ModelId) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "service.cli", "models", "list", "--store", str(store.root)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert "tiny" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"onnxruntime", "numpy", "tokenizers", "fastapi", "rich", "torch", "transformers"}


@pytest.mark.slow
def test_a_table_on_a_terminal_has_a_frame(store: ModelStore, tiny: ModelId) -> None:
    ours, theirs = os.openpty()
    arguments = [sys.executable, "-m", "service.cli", "models", "list", "--store", str(store.root)]
    subprocess.run(arguments, stdout=theirs, check=True, timeout=60, env=os.environ | {"COLUMNS": "200"})
    printed = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)
    assert "━" in printed
    assert "production" in printed
