"""Models, health, metrics and administration."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from model_store.errors import InferenceError, StoreError
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.app import create_app
from service.registry import Route
from service.settings import load_settings
from tests.fakes import FakeClassifier
from tests.keys import BEARER, write_keys
from tests.tiny import MODEL_FILE, make_tiny_version
from tests.web import WebClient, running_app


def client_of(
    store: ModelStore, *, keys: Path | None = None, control_dir: Path | None = None, store_poll_ms: int = 20
) -> Iterator[WebClient]:
    settings = load_settings(store_dir=store.root, threads=2, store_poll_ms=store_poll_ms, api_keys_file=keys)
    with running_app(create_app(settings, control_dir)) as client:
        yield client


@pytest.fixture
def client(store: ModelStore, tiny: ModelId) -> Iterator[WebClient]:
    yield from client_of(store)


@pytest.fixture
def administered(store: ModelStore, tiny: ModelId, tmp_path: Path) -> Iterator[WebClient]:
    yield from client_of(store, keys=write_keys(tmp_path / "keys.json"), store_poll_ms=0)  # it is told what to look at


def test_models_are_listed_with_what_they_read_and_say(client: WebClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "tiny@1"
    assert card["object"] == "model"
    assert card["aliases"] == ["production"]
    assert card["labels"] == ["negative", "positive"]
    assert card["problem"] == "single_label"
    assert (card["file"], card["precision"], card["pair"]) == (MODEL_FILE, "fp32", False)
    assert (card["provider"], card["threads"]) == ("CPUExecutionProvider", 2)
    assert card["bytes"] > 100


def test_a_server_with_models_is_live_and_ready(client: WebClient) -> None:
    assert client.get("/health/live").status_code == 200
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["models"]) == (200, ["tiny@1"])


def test_probes_may_ask_with_head(client: WebClient, tmp_path: Path) -> None:
    for path in ("/health/live", "/health/ready", "/health", "/v2/health/ready", "/v2", "/v1/models", "/metrics"):
        assert client.request("HEAD", path).status_code == client.get(path).status_code == 200
    refused = client.request("HEAD", "/v1/classify")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.post("/v2", json={}).headers["allow"] == "GET, HEAD"
    for empty in client_of(ModelStore(tmp_path / "empty")):
        assert empty.request("HEAD", "/health/ready").status_code == 503


def test_readiness_tells_of_a_default_model_that_nothing_answers_to(store: ModelStore, tiny: ModelId) -> None:
    settings = load_settings(store_dir=store.root, threads=1, default_model="nope")
    with structlog.testing.capture_logs() as logs, running_app(create_app(settings)) as client:
        ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["models"]) == (200, ["tiny@1"])
    assert "no loaded version answers to the default model 'nope'" in ready.json()["detail"]
    assert [entry["log_level"] for entry in logs if entry["event"] == ready.json()["detail"]] == ["warning"]


def test_an_empty_store_is_live_and_not_ready_and_says_what_to_run(tmp_path: Path) -> None:
    for client in client_of(ModelStore(tmp_path / "empty")):
        assert client.get("/health/live").status_code == 200
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "successor demo" in ready.json()["detail"]
        assert client.get("/v1/models").json()["data"] == []


def test_a_corrupt_version_is_not_served_the_others_are_and_readiness_says_so(store: ModelStore, tiny: ModelId) -> None:
    broken = make_tiny_version(store, "broken")
    file = store.root / broken.name / "1" / MODEL_FILE
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-10])
    for client in client_of(store):
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["models"]) == (200, ["tiny@1"])
        assert "is not what was published" in ready.json()["failures"]["broken"]
        answer = client.post("/v1/classify", json={"model": "broken", "input": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_while_draining_it_is_not_ready_and_answers_close_their_connections(client: WebClient) -> None:
    client.service.begin_to_drain()
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.headers["connection"]) == (503, "close")
    answer = client.post("/v1/classify", json={"model": "tiny", "input": "a"})
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_a_server_whose_workers_are_gone_is_not_ready_and_refuses(client: WebClient) -> None:
    asyncio.run_coroutine_threadsafe(client.service.engine.close(), client.loop).result(10)
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["detail"]) == (503, "no worker can answer: restart the server")
    answer = client.post("/v1/classify", json={"model": "tiny", "input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


def test_metrics_have_the_series_of_loaded_models(client: WebClient) -> None:
    client.post("/v1/classify", json={"model": "tiny", "input": "a"})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'successor_texts_total{model="tiny",version="1"} 1.0' in response.text
    assert 'successor_request_seconds_count{model="tiny",version="1"} 1.0' in response.text


def test_a_scrape_sees_how_many_texts_wait_now(client: WebClient) -> None:
    client.service.metrics.queue_depth.set(7)
    assert "successor_queue_depth 0.0" in client.get("/metrics").text


def test_an_alias_is_moved_and_served_before_the_answer(administered: WebClient, store: ModelStore) -> None:
    make_tiny_version(store, seed=1)
    moved = administered.request("PUT", "/v1/admin/models/tiny/aliases/production", json={"version": 2}, headers=BEARER)
    assert moved.status_code == 200
    answer = administered.post("/v1/classify", json={"model": "tiny@production", "input": "a"}, headers=BEARER)
    assert answer.json()["model"] == "tiny@2"
    assert store.aliases("tiny") == {"production": 2}


def test_an_alias_stays_where_it_was_if_the_version_it_is_to_mean_can_not_be_served(
    administered: WebClient, store: ModelStore
) -> None:
    administered.request("PUT", "/v1/admin/models/tiny/aliases/production", json={"version": 1}, headers=BEARER)
    second = make_tiny_version(store, seed=1)
    (file,) = (store.root / "tiny" / str(second.version)).glob("*.onnx")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    moved = administered.request("PUT", "/v1/admin/models/tiny/aliases/production", json={"version": 2}, headers=BEARER)
    assert (moved.status_code, moved.json()["error"]["code"]) == (409, "corrupt_version")
    assert store.aliases("tiny") == {"production": 1}


def test_what_a_sync_could_not_load_is_in_its_answer(administered: WebClient, store: ModelStore) -> None:
    fresh = make_tiny_version(store, "fresh")
    (file,) = (store.root / "fresh" / str(fresh.version)).glob("*.onnx")
    file.write_bytes(b"")
    answer = administered.post("/v1/admin/sync", headers=BEARER)
    assert answer.status_code == 200
    assert set(answer.json()["failures"]) == {"fresh", "fresh@1"}


def test_new_versions_are_served_after_a_sync(administered: WebClient, store: ModelStore) -> None:
    make_tiny_version(store, "fresh")
    assert administered.post("/v1/admin/sync", headers=BEARER).status_code == 200
    answer = administered.post("/v1/classify", json={"model": "fresh", "input": "a"}, headers=BEARER)
    assert answer.status_code == 200


def test_a_process_with_neighbours_tells_them(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    for client in client_of(store, keys=write_keys(tmp_path / "keys.json"), control_dir=tmp_path):
        make_tiny_version(store, "fresh")
        assert client.post("/v1/admin/sync", headers=BEARER).status_code == 200
        assert (tmp_path / "wanted").exists()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("tiny/aliases/production", {"version": 9}, 404),
        ("nobody/aliases/production", {"version": 1}, 404),
        ("tiny/aliases/7", {"version": 1}, 400),
        ("tiny/aliases/UPPER", {"version": 1}, 400),
        ("UPPER/aliases/production", {"version": 1}, 400),
        ("tiny/aliases/production", {"version": "1"}, 400),
        ("tiny/aliases/production", {"version": 0}, 400),
        ("tiny/aliases/production", {}, 400),
        ("tiny/aliases/production", [], 400),
    ],
)
def test_a_wrong_promotion_is_refused_in_the_documented_shape(
    administered: WebClient, path: str, body: object, status: int
) -> None:
    answer = administered.request("PUT", f"/v1/admin/models/{path}", json=body, headers=BEARER)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_moving_an_alias_in_a_store_that_cannot_be_written_is_a_conflict(
    administered: WebClient, store: ModelStore
) -> None:
    lock = store.root / "tiny" / ".lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()  # root may write everywhere, but not into a folder as if it were a file
    answer = administered.request("PUT", "/v1/admin/models/tiny/aliases/canary", json={"version": 1}, headers=BEARER)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "store_not_writable")


def test_an_unknown_route_is_refused_in_the_documented_shape(client: WebClient) -> None:
    for path in ("/nope", "/v1/classify/more", "/v1"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
    assert client.post("/v1/models", json={}).json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("error", "answered", "reason"),
    [
        (InferenceError("the engine is broken"), (500, "inference_failed"), "the engine is broken"),
        (SystemExit(), (503, "worker_lost"), "the worker that ran this request was lost: send it again"),
    ],
)
def test_a_failure_of_the_server_is_logged_with_its_reason(
    store: ModelStore, tiny: ModelId, error: BaseException, answered: tuple[int, str], reason: str
) -> None:
    for client in client_of(store, store_poll_ms=0):
        failing = FakeClassifier(errors={"a": error})
        client.service.registry.table.models[tiny].classifier = failing
        with structlog.testing.capture_logs() as logs:
            answer = client.post("/v1/classify", json={"model": "tiny", "input": "a"}, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == answered
    (entry,) = [entry for entry in logs if entry["event"] == "request failed"]
    assert (entry["error"], entry["request_id"], entry["path"]) == (reason, "mine", "/v1/classify")


def test_a_failure_of_administration_is_logged_with_its_reason(
    administered: WebClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise StoreError("the store's disk is gone")

    monkeypatch.setattr(administered.service.registry, "sync", fail)
    with structlog.testing.capture_logs() as logs:
        answer = administered.post("/v1/admin/sync", headers={**BEARER, "x-request-id": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "store_error")
    (entry,) = [entry for entry in logs if entry["event"] == "request failed"]
    assert (entry["error"], entry["request_id"]) == ("the store's disk is gone", "mine")


def test_an_unexpected_error_is_answered_without_its_details(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store, store_poll_ms=0):
        # A state that can't be: a route of the table leads to nothing.
        client.service.registry.table.routes["haunted"] = Route(None, "haunted")  # type: ignore[arg-type]
        with structlog.testing.capture_logs() as logs:
            answer = client.post("/v1/classify", json={"model": "haunted", "input": "a"})
        scraped = client.get("/metrics").text
    assert [entry["event"] for entry in logs] == ["unexpected error"], answer.text
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "NoneType" not in answer.text
    assert "haunted" not in answer.text
    assert 'successor_refusals_total{reason="internal_error"} 1.0' in scraped
    assert answer.headers["x-request-id"]
