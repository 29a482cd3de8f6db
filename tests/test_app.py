"""The wiring: what an app refuses to be made without, and the promises between its parts under load."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_store.errors import ProviderNotAvailableError
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.app import check_installation, create_app
from service.settings import load_settings
from tests.tiny import make_tiny_version
from tests.web import WebClient, running_app


@pytest.fixture
def client(store: ModelStore, tiny: ModelId) -> Iterator[WebClient]:
    with running_app(create_app(load_settings(store_dir=store.root, threads=2, store_poll_ms=10))) as client:
        yield client


def test_a_provider_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ProviderNotAvailableError, match="this runtime has cpu"):
        create_app(load_settings(store_dir=tmp_path, provider="cuda"))


def test_the_provider_is_found_where_none_is_chosen(tmp_path: Path) -> None:
    assert check_installation(load_settings(store_dir=tmp_path)) == "CPUExecutionProvider"


def test_two_apps_in_one_process_do_not_meet(tmp_path: Path) -> None:
    stores = [ModelStore(tmp_path / name) for name in ("first", "second")]
    for store, name in zip(stores, ("one", "two"), strict=True):
        make_tiny_version(store, name)
    with running_app(create_app(load_settings(store_dir=stores[0].root, threads=1))) as first:  # noqa: SIM117
        with running_app(create_app(load_settings(store_dir=stores[1].root, threads=1))) as second:
            assert [card["id"] for card in first.get("/v1/models").json()["data"]] == ["one@1"]
            assert [card["id"] for card in second.get("/v1/models").json()["data"]] == ["two@1"]


def test_its_threads_end_with_it(store: ModelStore, tiny: ModelId) -> None:
    before = set(threading.enumerate())
    with running_app(create_app(load_settings(store_dir=store.root, threads=2))) as client:
        assert client.post("/v1/classify", json={"model": "tiny", "input": "a"}).status_code == 200
    left = set(threading.enumerate()) - before
    for thread in left:  # one that was measuring when the app ended comes back from its call first
        thread.join(30)
    assert [thread.name for thread in left if thread.is_alive()] == []


def test_costs_outlive_the_process_where_there_is_a_state_folder(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    settings = load_settings(store_dir=store.root, state_dir=tmp_path / "state", threads=1)
    with running_app(create_app(settings)):
        pass
    assert list((tmp_path / "state" / "costs").glob("*.json"))


def test_aliases_move_under_load_without_a_failed_or_mixed_answer(client: WebClient, store: ModelStore) -> None:
    texts = ["a great film", "a dull story", "it is not bad .", "warm and good"]
    make_tiny_version(store, seed=1)
    answers_of: dict[str, dict[str, list[float]]] = {}
    for version in (1, 2):
        store.promote(ModelId(name="tiny", version=version), f"only-{version}")
    for version in (1, 2):
        while f"tiny@{version}" not in client.service.registry.table.routes:
            threading.Event().wait(0.01)
        answers_of[f"tiny@{version}"] = {
            text: client.post("/v1/classify", json={"model": f"tiny@{version}", "input": text}).json()["data"][0][
                "probs"
            ]
            for text in texts
        }
    moved = threading.Event()

    def ask(number: int) -> int:
        asked = 0
        while not moved.is_set() or asked < 50:
            text = texts[(number + asked) % len(texts)]
            response = client.post("/v1/classify", json={"model": "tiny@production", "input": text})
            assert response.status_code == 200, response.text
            body = response.json()
            assert response.headers["x-model-version"] == body["model"]
            assert body["data"][0]["probs"] == pytest.approx(answers_of[body["model"]][text], abs=1e-5)
            asked += 1
        return asked

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        for turn in range(10):
            store.promote(ModelId(name="tiny", version=1 + turn % 2), "production")
            asyncio.run_coroutine_threadsafe(client.service.sync(), client.loop).result(10)
        moved.set()
        assert sum(future.result(60) for future in asking) >= 200
