"""The documents are true: the files they name exist, and everything that a user can set, see or type is in them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.cli import COMMAND_GROUP, COMPARE, OWN_COMMANDS
from service.cli_keys import keys
from service.cli_models import models
from service.errors import OUTCOMES, ROUTING, UNEXPECTED
from service.metrics import Metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("model_store", "model_store/builder", "service", "service/api", "service/comparison")
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}


def rows_of_table(header: str, text: str) -> list[str]:
    """The rows of the Markdown table below a header line."""
    _, _, below = text.partition(f"{header}\n")
    table = re.match(r"\|[ :|-]+\|\n((?:\|.*\|\n?)*)", below)
    return table.group(1).splitlines() if table else []


def paths_in(row: str) -> list[str]:
    """The backticked paths in the last cell of a row."""
    return re.findall(r"`([^`]+)`", row.rstrip().rstrip("|").rsplit("|", 1)[-1])


def metric_names() -> Iterator[str]:
    registry = CollectorRegistry()
    Metrics(registry)
    for family in registry.collect():
        yield f"{family.name}_total" if family.type == "counter" else family.name


def commands() -> Iterator[str]:
    for name in {*OWN_COMMANDS, COMPARE.name, *(entry.name for entry in entry_points(group=COMMAND_GROUP))} - {
        "models",
        "keys",
    }:
        yield f"successor {name}"
    for group, app in (("models", models), ("keys", keys)):
        for command in app.registered_commands:
            yield f"successor {group} {command.name}"


def codes() -> set[str]:
    return {outcome.code for outcome in (*OUTCOMES.values(), *ROUTING.values(), UNEXPECTED)}


def test_the_map_of_concerns_has_rows_and_each_names_a_file() -> None:
    rows = rows_of_table("| concern | file |", README)
    assert len(rows) > 5
    assert all(paths_in(row) for row in rows)


@pytest.mark.parametrize(
    "path", [path for row in rows_of_table("| concern | file |", README) for path in paths_in(row)]
)
def test_every_file_in_the_map_exists(path: str) -> None:
    assert list(ROOT.glob(path.rstrip("/"))), f"README's map names {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", DOCUMENTS[document]):
        assert "://" in target or (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("setting", Settings.model_fields)
def test_every_setting_is_documented(setting: str) -> None:
    assert f"`{PREFIX}{setting.upper()}`" in README or f"`{setting}`" in README


@pytest.mark.parametrize("metric", sorted(metric_names()))
def test_every_metric_is_documented(metric: str) -> None:
    assert f"`{metric}`" in README


@pytest.mark.parametrize("code", sorted(codes()))
def test_every_error_that_a_client_can_see_is_documented(code: str) -> None:
    assert f"`{code}`" in README


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"{command}\b", README)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place_in_what_its_package_says(package: str) -> None:
    said = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = {file.stem for file in (ROOT / package).glob("*.py")} - {"__init__"}
    assert modules - {*re.findall(r"`(\w+)/?`", said)} == set()
