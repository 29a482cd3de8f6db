from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from model_store.builder import cli
from model_store.builder.errors import DataError
from model_store.builder.recipe import load_recipe
from tests.tiny_torch import make_tiny_encoder, tiny_document

WITHOUT_EXTRA = """
import sys
for name in ("torch", "transformers", "optimum", "onnx", "accelerate", "datasets", "sklearn", "scipy", "matplotlib"):
    sys.modules[name] = None
from service.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.build)
    app.command()(cli.demo)
    return app


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_document(folder, encoder=make_tiny_encoder(folder / "e"))), encoding="utf-8")
    return path


def without_extra(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SUCCESSOR_CACHE_DIR": str(folder)},
    )


@pytest.mark.slow
def test_a_dry_run_of_a_shipped_recipe_needs_no_extra_and_no_network(tmp_path: Path) -> None:
    done = without_extra(tmp_path, "build", "sentiment", "--dry-run", "--set", "seed=5")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "printed.yaml").write_text(done.stdout, encoding="utf-8")
    assert load_recipe(str(tmp_path / "printed.yaml")) == load_recipe("sentiment", ["seed=5"])


@pytest.mark.slow
def test_a_build_without_the_extra_is_refused_in_one_line_with_the_remedy(tmp_path: Path) -> None:
    done = without_extra(tmp_path, "build", "sentiment", "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install '.[build]'" in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_dry_run_checks_local_data_and_says_what_is_to_be_done(
    app: typer.Typer, recipe: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["build", str(recipe), "--dry-run", "--work", str(tmp_path)])
    assert done.exit_code == 0
    assert yaml.safe_load(done.output)["name"] == "tiny"
    assert done.output.splitlines()[-5:] == [
        "# fine_tune: to be done",
        "# theseus: to be done",
        "# export: to be done",
        "# quantize: to be done",
        "# data: train 96, dev 40, test 60; dropped for overlap: 0",
    ]


def test_a_dry_run_as_json_is_one_document(app: typer.Typer, recipe: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["build", str(recipe), "--dry-run", "--json", "--work", str(tmp_path)])
    printed = json.loads(done.stdout)
    assert [step["operator"] for step in printed["steps"]] == ["fine_tune", "theseus", "export", "quantize"]
    assert not any(step["kept"] for step in printed["steps"])
    assert printed["recipe"]["name"] == "tiny"


def test_a_dry_run_that_can_not_see_the_weights_looks_at_the_data(app: typer.Typer, recipe: Path) -> None:
    wanted = ["--set", "predecessor={hub: org/name}"]
    done = CliRunner().invoke(app, ["build", str(recipe), "--dry-run", *wanted])
    assert "# data and weights are not checked together: org/name is on a hub" in done.output
    done = CliRunner().invoke(app, ["build", str(recipe), "--dry-run", *wanted, "--set", "data.dev=nowhere.jsonl"])
    assert isinstance(done.exception, DataError)


def test_a_dry_run_that_would_have_to_fetch_says_so(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUCCESSOR_CACHE_DIR", str(tmp_path))
    done = CliRunner().invoke(app, ["build", "sentiment", "--dry-run", "--json"])
    printed = json.loads(done.stdout)
    assert {step["kept"] for step in printed["steps"]} == {None}
    assert "run the build without --dry-run to fetch it" in printed["note"]


@pytest.mark.slow
def test_a_build_prints_what_was_published(app: typer.Typer, recipe: Path, tmp_path: Path) -> None:
    arguments = ["build", str(recipe), "--store", str(tmp_path / "store"), "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "published tiny-predecessor@1 and tiny@1: retention" in done.stdout
    again = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    printed: dict[str, Any] = json.loads(again.stdout)
    assert (printed["predecessor"], printed["successor"]) == ("tiny-predecessor@1", "tiny@1")
    assert {"retention", "size_ratio", "tfidf"} <= set(printed["measurements"])
    assert all(check["passed"] for check in printed["gate"])
