from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from model_store.errors import ModelNotFoundError
from model_store.store import ModelStore
from service.comparison.cli import compare
from service.comparison.errors import ComparisonError, LoadError, TextsError
from tests.stub_server import StubServer, entry, labelled
from tests.tiny import make_tiny_version

FEW = ("--pairs", "2", "--blocks", "2")
MODELS = [entry("large@1", bytes=9000), entry("small@2", aliases=["production"])]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    labels = ("positive", "negative")
    file.write_text("".join(f'{{"text": "the film {i}", "label": "{labels[i % 2]}"}}\n' for i in range(8)))
    return file


def answer(body: dict[str, Any]) -> tuple[int, Any]:
    """Large is always right, small calls everything positive."""
    odd = int(body["input"].split()[-1]) % 2
    return labelled("negative" if odd and body["model"] == "large@1" else "positive")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports go to the working directory unless --out says otherwise."""
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: object, standard_input: str | None = None) -> Result:
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=standard_input)


@pytest.mark.slow
def test_two_models_of_a_running_server_are_compared(tmp_path: Path, texts: Path) -> None:
    with StubServer(MODELS, answer) as server:
        result = invoke(
            "large", "small@production", "--url", server.url, "--texts", texts, "--out", tmp_path / "out", *FEW
        )
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (figures["a"]["reference"], figures["a"]["id"]) == ("large", "large@1")
    assert (figures["b"]["reference"], figures["b"]["version"]) == ("small@production", 2)
    assert (figures["a"]["accuracy"]["value"], figures["b"]["accuracy"]["value"]) == (1.0, 0.5)
    assert (figures["agreement"]["value"], figures["retention"], figures["size_ratio"]) == (0.5, 0.5, 9.0)
    assert figures["a"]["resident_bytes"] is None
    assert {body["model"] for body in server.asked} == {"large@1", "small@2"}
    assert "retention" in result.stdout


@pytest.mark.slow
def test_json_on_standard_output_is_alone_there_and_texts_may_come_from_standard_input(
    tmp_path: Path, texts: Path
) -> None:
    with StubServer(MODELS, answer) as server:
        result = invoke(
            "large",
            "small",
            "--url",
            server.url,
            "--json",
            "-",
            "--out",
            tmp_path,
            *FEW,
            standard_input=texts.read_text(),
        )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["texts"] == 8


@pytest.mark.parametrize("option", ["--json", "--out"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_asked(option: str, texts: Path) -> None:
    with StubServer(MODELS, answer) as server:
        result = invoke("large", "small", "--url", server.url, "--texts", texts, option, texts / "inside" / "file")
    assert isinstance(result.exception, ComparisonError)
    assert not server.asked


@pytest.mark.parametrize(
    "arguments",
    [("a",), ("a", "b", "--store", ".", "--url", "http://x"), ("a", "b", "--pairs", "1"), ("a", "b", "--blocks", "0")],
)
def test_bad_usage_exits_with_2(arguments: tuple[str, ...], texts: Path) -> None:
    assert invoke(*arguments, "--texts", texts).exit_code == 2


def test_a_terminal_is_not_read_for_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(typer.BadParameter, match="--texts FILE"):
        compare("a", "b", out=Path())


def test_a_label_that_no_model_knows_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a", "label": "neutral"}\n')
    with StubServer(MODELS) as server:
        result = invoke("large", "small", "--url", server.url, "--texts", texts)
    assert isinstance(result.exception, TextsError)
    assert not server.asked


def test_a_reference_that_the_server_does_not_know_is_refused(texts: Path) -> None:
    with StubServer(MODELS) as server:
        result = invoke("large", "tiny", "--url", server.url, "--texts", texts)
    assert isinstance(result.exception, LoadError)
    assert "it has large@1, small@2" in str(result.exception)


def test_a_reference_that_the_store_does_not_know_is_refused_before_a_server_starts(
    tmp_path: Path, texts: Path
) -> None:
    result = invoke("large", "tiny", "--store", tmp_path, "--texts", texts)
    assert isinstance(result.exception, ModelNotFoundError)


def test_without_the_extra_the_remedy_is_said(texts: Path) -> None:
    blocked = "import sys; sys.modules['httpx'] = None; sys.argv[1:] = ['compare', 'a', 'b', '--texts', sys.argv[1]];"
    run = "from service.cli import main; main()"
    command = [sys.executable, "-c", f"{blocked} {run}", str(texts)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("pip install '.[compare]'")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_versions_in_a_store_are_served_and_compared_for_real(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    make_tiny_version(store, "large", seed=0)
    make_tiny_version(store, "small", seed=1)
    texts = tmp_path / "texts.jsonl"
    words = ("good", "bad", "dull", "great", "warm", "cold")
    texts.write_text("".join(f'{{"text": "the story is {word}", "label": "positive"}}\n' for word in words))
    command = [sys.executable, "-m", "service.cli", "compare", "large", "small@1", "--store", str(store.root)]
    command += ["--texts", str(texts), "--out", str(tmp_path / "out"), "--json", "-", "--pairs", "20", "--blocks", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert (figures["a"]["id"], figures["b"]["id"]) == ("large@1", "small@1")
    assert figures["a"]["connections"]["1"]["requests"] == 20
    assert figures["a"]["resident_bytes"] > 10_000_000
    assert figures["a"]["threads"] >= 1
    assert figures["size_ratio"] == 1


def test_a_key_that_can_not_be_one_is_bad_usage_and_its_end_of_line_is_dropped(texts: Path) -> None:
    with StubServer(MODELS, answer) as server:
        rest = ("--url", server.url, "--texts", texts, *FEW)
        assert invoke("large", "small", *rest, "--api-key", "schlüssel").exit_code == 2
        assert invoke("large", "small", *rest, "--api-key", "key\n").exit_code == 0


def test_json_goes_into_a_pipe_and_not_in_its_place(tmp_path: Path, texts: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with StubServer(MODELS, answer) as server:
        result = invoke("large", "small", "--url", server.url, "--texts", texts, "--json", pipe, *FEW)
    assert result.exit_code == 0, result.output
    assert pipe.is_fifo()
    assert json.loads(os.read(reader, 1_000_000))["a"]["id"] == "large@1"
    os.close(reader)
    assert invoke("large", "small", "--url", "http://x", "--texts", texts, "--json", tmp_path).exit_code == 2
