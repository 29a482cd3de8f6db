"""Clients that others wrote work against the real server unchanged, and get the model's own answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model_store.classifier import OnnxClassifier, to_scores
from model_store.encoding import TextItem
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.comparison.servers import free_port, serving
from tests.end_to_end.environment import CLIENTS, clients_python
from tests.end_to_end.traffic import Traffic
from tests.keys import entry, write_keys
from tests.test_documentation import README

pytestmark = pytest.mark.slow

TEXTS = ["a great film", "dull", "it is not bad .", "ünïcode ☕ 漢字", "good " * 60]
PAIRS = (["a man sleeps", "dull"], ["a man is awake", "a story"])
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Running:
    """A server, and what `OnnxClassifier` says of the texts and pairs."""

    url: str
    grpc: str
    texts: Any
    pairs: Any

    def ask(self, client: str, **more: str) -> Any:  # noqa: ANN401 - what the client's program prints
        """What a client's program was answered."""
        task = json.dumps({"url": self.url, "grpc": self.grpc, "texts": TEXTS, "pairs": PAIRS, **more})
        program = [str(clients_python()), str(CLIENTS / client), task]
        done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def expected(store: ModelStore, name: str, version: int, texts: list[TextItem]) -> Any:  # noqa: ANN401 - an array
    opened = store.open(ModelId(name=name, version=version))
    classifier = OnnxClassifier(opened)
    return to_scores(
        np.concatenate([classifier.run([classifier.encode(text)]) for text in texts]), opened.manifest.scores
    )


@pytest.fixture(scope="module")
def running(tiny_store: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    log, keys = folder / "log", write_keys(folder / "keys.json", entry("secret", "admin"), anonymous=("infer",))
    settings = {"grpc_port": str(port), "api_keys_file": str(keys), "threads": "2", "default_model": "tiny"}
    with serving([], tiny_store.root, log, **settings) as server:
        yield Running(
            server.url,
            f"127.0.0.1:{port}",
            expected(tiny_store, "tiny", 2, [TextItem(text) for text in TEXTS]),
            expected(tiny_store, "pairs", 1, [TextItem(*pair) for pair in zip(*PAIRS, strict=True)]),
        )


def check(found: dict[str, Any], scores: Any, name: str = "tiny", version: str = "2") -> None:  # noqa: ANN401 - array
    """One answer is the model's own."""
    np.testing.assert_allclose(found["scores"], scores, atol=1e-6, rtol=0)
    if name == "tiny":
        assert found["labels"] == [LABELS[row.argmax()] for row in scores]
    assert found["truncated"] == [False] * (len(scores) - 1) + [name == "tiny"]
    assert found["response"]["model_name"] == name
    assert found["response"]["model_version"] == version


def check_classification(rows: list[list[str]], scores: Any) -> None:  # noqa: ANN401 - an array
    for row, wanted in zip(rows, scores, strict=True):
        best, other = (entry.split(":") for entry in row)
        assert [float(best[0]), float(other[0])] == pytest.approx(sorted(wanted.tolist(), reverse=True), abs=1e-6)
        assert best[2] == LABELS[wanted.argmax()] == LABELS[int(best[1])]


def test_tritonclient_over_http(running: Running) -> None:
    found = running.ask("triton_http.py")
    for name in ("binary in and out", "binary in, other out", "json in and out", "json in, other out"):
        check(found[name], running.texts)
    assert found["binary in and out"]["response"]["id"] == "7"
    for name in ("as it comes", "asynchronous", "asyncio"):
        check(found[name], running.texts)
    check(found["pairs"], running.pairs, "pairs", "1")
    check_classification(found["classification"], running.texts)
    about = found["about"]
    assert (about["live"], about["ready"], about["model ready"], about["unknown ready"]) == (True, True, True, False)
    assert about["server"]["name"] == "successor"
    assert about["model"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert about["config"]["output"][0] == {"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, 2]}
    (statistics,) = about["statistics"]["model_stats"]
    assert statistics["inference_count"] == 15 * len(TEXTS)
    assert {(one["name"], one["state"]) for one in about["index"]} >= {("tiny", "READY"), ("tiny", "UNAVAILABLE")}
    assert (found["unloaded"], found["loaded"]) == (False, True)
    errors = found["errors"]
    assert {name: status for name, (status, _) in errors.items()} == {
        "unknown": "404",
        "empty": "400",
        "late": "504",
        "sequence": "501",
        "not permitted": "401",
    }
    assert "no model 'nobody' here" in errors["unknown"][1]


def test_tritonclient_over_grpc(running: Running) -> None:
    found = running.ask("triton_grpc.py")
    for name in ("all outputs", "wanted outputs", "asyncio"):
        check(found[name], running.texts)
    assert found["all outputs"]["response"]["id"] == "7"
    check(found["pairs"], running.pairs, "pairs", "1")
    first, refused, last = found["stream"]
    check(first, running.texts)
    check(last, running.texts)
    assert "no model 'nobody' here" in refused
    check_classification(found["classification"], running.texts)
    about = found["about"]
    assert (about["live"], about["ready"], about["model ready"]) == (True, True, True)
    assert about["server"]["name"] == "successor"
    assert about["model"]["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": ["-1", "2"]}
    assert about["config"]["config"]["output"][0] == {"name": "scores", "data_type": "TYPE_FP32", "dims": ["-1", "2"]}
    assert int(about["statistics"]["model_stats"][0]["inference_count"]) >= 12 * len(TEXTS)
    assert {(one["name"], one["state"]) for one in about["index"]["models"]} >= {("tiny", "READY")}
    assert found["loaded"] is True
    assert found["unloaded"] is False
    errors = found["errors"]
    assert {name: status for name, (status, _) in errors.items()} == {
        "unknown": "StatusCode.NOT_FOUND",
        "empty": "StatusCode.INVALID_ARGUMENT",
        "late": "StatusCode.DEADLINE_EXCEEDED",
        "sequence": "StatusCode.UNIMPLEMENTED",
        "not permitted": "StatusCode.UNAUTHENTICATED",
    }


def test_huggingface_hub(running: Running) -> None:
    found = running.ask("hugging_face.py")
    for name in ("plain", "asyncio"):
        for answer, scores in zip(found[name], running.texts, strict=True):
            assert answer == pytest.approx(dict(zip(LABELS, scores.tolist(), strict=True)), abs=1e-6)
    for best, answer in zip(found["best"], found["plain"], strict=True):
        (label,) = best
        assert answer[label] == max(answer.values())
    for answer, plain in zip(found["sigmoid"], found["plain"], strict=True):
        assert max(answer, key=answer.__getitem__) == max(plain, key=plain.__getitem__)
        assert answer != plain
    status, message = found["error"]
    assert status == 404
    assert "no model 'nobody' here" in message


def test_every_server_process_answers_every_dialect_and_does_what_one_was_told(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    port = free_port()
    keys = write_keys(tmp_path / "keys.json", entry("secret", "admin"), anonymous=("infer",))
    settings = {"processes": "2", "threads": "1", "grpc_port": str(port), "api_keys_file": str(keys)}
    with serving([], store.root, tmp_path / "log", **settings) as server:

        def ready() -> set[int]:
            return {httpx.get(f"{server.url}/v2/models/tiny/ready").status_code for _ in range(20)}

        def change(action: str) -> int:
            path, token = f"/v2/repository/models/tiny/{action}", {"authorization": "Bearer secret"}
            return httpx.post(server.url + path, headers=token, timeout=40).status_code

        assert ready() == {200}
        assert (change("unload"), ready()) == (200, {404})
        assert (change("load"), ready()) == (200, {200})
        scores = expected(store, "tiny", 1, [TextItem("dull")])
        for _ in range(8):
            asyncio.run(Traffic(server.url, f"127.0.0.1:{port}", ["dull"], scores).once())


CALLS = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "localhost:8000" in code]


@pytest.mark.parametrize("code", CALLS, ids=lambda code: re.sub(r"\W+", " ", code)[:30])
def test_the_call_that_readme_shows_for_each_client_works_as_it_stands(running: Running, code: str) -> None:
    here = code.replace("localhost:8000", running.url.removeprefix("http://")).replace("my-model", "tiny")
    printed = running.ask("readme.py", code=here)
    assert "0." in printed, printed


def test_readme_shows_a_call_for_every_client() -> None:
    names = ("tritonclient", "huggingface_hub", "kserve", "/predict", "/v1/classify")
    assert [sum(name in code for code in CALLS) for name in names] == [1] * len(names)


def test_kserves_client(running: Running) -> None:
    found = running.ask("kserve_v2.py")
    answers = [found["http"][name] for name in ("json", "a list", "binary in", "binary in and out")]
    answers += [found["grpc"][name] for name in ("contents", "raw")]
    for answer in answers:
        np.testing.assert_allclose(answer["scores"], running.texts, atol=1e-6, rtol=0)
        assert answer["labels"] == [LABELS[row.argmax()] for row in running.texts]
        assert (answer["id"], answer["model"]) == ("7", "tiny")
    assert found["http"]["about"] == [True, True, True, False]
    status, message = found["http"]["error"]
    assert status == 400
    assert "the text is empty" in message
    assert found["grpc"]["about"] == [True, True, True]


@contextlib.contextmanager
def traffic(running: Running, store: ModelStore) -> Iterator[Traffic]:
    """Every dialect's raw traffic, on texts of all lengths, while the block runs; a wrong answer fails its end."""
    words = ["a", "the", "film", "story", "is", "not", "good", "bad", "great", "dull", "warm", "cold", "it", "and"]
    texts = [" ".join(words[(start + 3 * step) % len(words)] for step in range(1 + start % 40)) for start in range(60)]
    pool = expected(store, "tiny", 2, [TextItem(text) for text in texts])
    made = threading.Event()
    traffic: list[tuple[Traffic, asyncio.AbstractEventLoop]] = []

    async def drive() -> None:
        traffic.append((Traffic(running.url, running.grpc, texts, pool), asyncio.get_running_loop()))
        made.set()
        await traffic[0][0].run()

    with ThreadPoolExecutor(1) as pool_of_one:
        driving = pool_of_one.submit(asyncio.run, drive())
        made.wait()
        try:
            yield traffic[0][0]
        finally:
            if not driving.done():
                traffic[0][1].call_soon_threadsafe(traffic[0][0].stopped.set)
        driving.result(60)


def test_answers_are_the_models_own_whatever_else_is_in_flight(running: Running, tiny_store: ModelStore) -> None:
    clients_python()
    with traffic(running, tiny_store) as others, ThreadPoolExecutor(2) as pool:
        for found in pool.map(running.ask, ("triton_http.py", "hugging_face.py", "kserve_v2.py", "triton_grpc.py")):
            assert found
            for answer in answers_in(found):
                if len(answer["scores"]) == len(TEXTS):
                    np.testing.assert_allclose(answer["scores"], running.texts, atol=1e-6, rtol=0)
        assert others.enough.wait(60), others.answered


def answers_in(found: object) -> Iterator[dict[str, Any]]:
    """Every answer with scores, wherever it is in what a client's program printed."""
    if isinstance(found, dict) and "scores" in found:
        yield found
    children = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    for child in children:
        yield from answers_in(child)
