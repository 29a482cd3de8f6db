"""A recipe built, published, served and compared by the command line alone, with a tiny random encoder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from service.comparison.servers import serving
from tests.tiny_torch import ROWS, tiny_document

pytestmark = pytest.mark.slow


def successor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, built once: `store`, `work`, `recipe.yaml`, `data`."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_document(folder)), encoding="utf-8")
    built = successor(
        "build",
        str(folder / "recipe.yaml"),
        *("--store", str(folder / "store"), "--work", str(folder / "work"), "--json"),
    )
    assert built.returncode == 0, built.stderr
    (folder / "built.json").write_text(built.stdout, encoding="utf-8")
    return folder


@contextmanager
def client_of(store: Path) -> Iterator[httpx.Client]:
    """A client of a server of all that is in `store`, ready; SIGTERM ends it, with exit code 0."""
    with (
        serving([], store, store.parent / "server.log") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client
    assert server.process is not None
    assert server.process.returncode == 0


def test_a_recipe_becomes_two_published_versions_with_reports(folder: Path) -> None:
    listed = json.loads(successor("models", "list", "--store", str(folder / "store"), "--json").stdout)
    assert {entry["name"] for entry in listed} == {"tiny", "tiny-predecessor"}
    for name in ("tiny", "tiny-predecessor"):
        files = {path.name for path in (folder / "store" / name / "1").iterdir()}
        assert {"manifest.json", "tokenizer.json", "fp32.onnx", "report.json", "report.md"} <= files
    assert (folder / "store" / "tiny" / "1" / "int8.onnx").is_file()
    verified = successor("models", "verify", "--store", str(folder / "store"))
    assert verified.returncode == 0, verified.stderr


def test_building_again_takes_every_step_from_what_was_kept(folder: Path) -> None:
    arguments = ("--store", str(folder / "again"), "--work", str(folder / "work"))
    again = successor("build", str(folder / "recipe.yaml"), *arguments)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(": already done") >= 4
    first, second = (json.loads((folder / store / "tiny/1/manifest.json").read_text()) for store in ("store", "again"))
    assert [entry["sha256"] for entry in first["artifacts"]] == [entry["sha256"] for entry in second["artifacts"]]


def test_the_server_answers_for_both_and_survives_a_corrupted_version(folder: Path) -> None:
    shutil.copytree(folder / "store", folder / "served")
    texts = [json.loads(line)["text"] for line in (folder / "data" / "test.jsonl").read_text().splitlines()]
    with client_of(folder / "served") as client:
        for model in ("tiny", "tiny@1", "tiny@production", "tiny-predecessor"):
            answer = client.post("/v1/classify", json={"model": model, "input": texts})
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["data"]) == ROWS["test"]
    damaged = folder / "served" / "tiny-predecessor" / "1" / "fp32.onnx"
    damaged.chmod(0o644)
    with damaged.open("r+b") as file:
        file.write(b"\0" * 16)
    with client_of(folder / "served") as client:
        refused = client.post("/v1/classify", json={"model": "tiny-predecessor", "input": "good"})
        assert refused.status_code in {404, 409}
        assert refused.json()["error"]["message"]
        assert client.post("/v1/classify", json={"model": "tiny", "input": "good"}).status_code == 200


def test_the_comparison_reports_what_was_gained_and_lost(folder: Path) -> None:
    compared = successor(
        "compare",
        *("tiny-predecessor", "tiny", "--store", str(folder / "store")),
        *("--texts", str(folder / "data" / "test.jsonl"), "--json", str(folder / "compared.json")),
        *("--out", str(folder / "comparison"), "--pairs", "20", "--blocks", "2"),
    )
    assert compared.returncode == 0, compared.stderr
    figures = json.loads((folder / "compared.json").read_text())
    built = json.loads((folder / "built.json").read_text())
    assert figures["a"]["version"] != figures["b"]["version"] or figures["a"]["reference"] != figures["b"]["reference"]
    assert 0 <= figures["agreement"]["value"] <= 1
    assert figures["speedup"]["low"] <= figures["speedup"]["value"] <= figures["speedup"]["high"]
    assert figures["b"]["accuracy"]["value"] == pytest.approx(built["measurements"]["successor"], abs=1e-9)
    assert {path.suffix for path in (folder / "comparison").iterdir()} >= {".md", ".json", ".png"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("steps.1.layer=2", "layer"),
        ("steps.1.layers=3", "layers"),
        ("data.label=sentiment", "sentiment"),
        ("data.train=/nowhere/train.jsonl", "/nowhere/train.jsonl"),
        ("nonsense=1", "nonsense"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_in_one_line_before_training(
    folder: Path, change: str, named: str
) -> None:
    refused = successor(
        "build",
        str(folder / "recipe.yaml"),
        *("--store", str(folder / "refused"), "--work", str(folder / "refused-work"), "--set", change),
    )
    assert refused.returncode == 1
    assert refused.stdout == ""
    (line,) = refused.stderr.strip().splitlines()
    assert named in line
    assert not (folder / "refused").exists()
