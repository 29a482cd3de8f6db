"""The routes of Text Embeddings Inference: bodies as its documentation has them, answers, headers, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from httpx import Response

from model_store.encoding import TextItem
from model_store.store import ModelStore
from service.app import create_app
from service.settings import load_settings
from tests.test_open_inference import expected
from tests.web import WebClient, running_app


def serving(store: ModelStore, default_model: str | None) -> Iterator[WebClient]:
    settings = load_settings(
        store_dir=store.root, threads=1, store_poll_ms=0, default_model=default_model, max_texts_per_request=4
    )
    with running_app(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def client(tiny_store: ModelStore) -> Iterator[WebClient]:
    yield from serving(tiny_store, "tiny")


@pytest.fixture(scope="module")
def pairs(tiny_store: ModelStore) -> Iterator[WebClient]:
    yield from serving(tiny_store, "pairs")


def check_predictions(found: object, scores: npt.NDArray[np.floating[Any]], labels: tuple[str, ...]) -> None:
    """One input's answer: every label once, best first, with the model's score."""
    assert isinstance(found, list)
    values = [entry["score"] for entry in found]
    assert values == sorted(values, reverse=True)
    assert sorted(entry["label"] for entry in found) == sorted(labels)
    for entry in found:
        assert entry["score"] == pytest.approx(float(scores[labels.index(entry["label"])]), abs=1e-6)


LABELS = ("negative", "positive")
PAIR_LABELS = ("contradiction", "neutral", "entailment")


@pytest.mark.parametrize("path", ["/predict", "/", "/invocations"])
@pytest.mark.parametrize("given", ["I like you.", ["I like you."]])
def test_a_single_text_is_answered_flat(client: WebClient, tiny_store: ModelStore, path: str, given: object) -> None:
    response = client.post(path, json={"inputs": given})
    assert response.status_code == 200, response.text
    (scores,) = expected(tiny_store, "tiny", 2, [TextItem("I like you.")])
    check_predictions(response.json(), scores, LABELS)


def test_a_batch_is_answered_with_a_list_for_each(client: WebClient, tiny_store: ModelStore) -> None:
    response = client.post("/predict", json={"inputs": [["I like you."], ["I hate pineapples"]], "raw_scores": False})
    wanted = expected(tiny_store, "tiny", 2, [TextItem("I like you."), TextItem("I hate pineapples")])
    for found, scores in zip(response.json(), wanted, strict=True):
        check_predictions(found, scores, LABELS)


def test_a_batch_of_one_is_a_batch(client: WebClient) -> None:
    assert len(client.post("/predict", json={"inputs": [["dull"]]}).json()) == 1


def test_two_texts_are_one_pair(pairs: WebClient, tiny_store: ModelStore) -> None:
    given = ["What is Deep Learning?", "Deep Learning is not..."]
    (scores,) = expected(tiny_store, "pairs", 1, [TextItem(*given)])
    check_predictions(pairs.post("/predict", json={"inputs": given}).json(), scores, PAIR_LABELS)
    (found,) = pairs.post("/predict", json={"inputs": [given]}).json()
    check_predictions(found, scores, PAIR_LABELS)


def test_raw_scores_are_logits(client: WebClient) -> None:
    def by_label(raw: bool) -> dict[str, float]:
        response = client.post("/predict", json={"inputs": "dull", "raw_scores": raw})
        return {entry["label"]: entry["score"] for entry in response.json()}

    raw, plain = by_label(True), by_label(False)
    difference = raw["positive"] - raw["negative"]
    assert np.log(plain["positive"] / plain["negative"]) == pytest.approx(difference, abs=1e-5)


def test_a_long_text_is_cut_from_the_side_that_is_asked_for(client: WebClient) -> None:
    long = "good " * 40 + "dull " * 40
    answers = {}
    for side in ("right", "Right", "left", "LEFT"):
        response = client.post("/predict", json={"inputs": long, "truncate": True, "truncation_direction": side})
        assert response.headers["x-truncated-texts"] == "1"
        answers[side] = response.json()
    assert answers["right"] == answers["Right"] != answers["left"]
    assert answers["left"] == answers["LEFT"]


def test_headers_say_what_it_took_in_whole_milliseconds(client: WebClient) -> None:
    headers = client.post("/predict", json={"inputs": [["a good"], ["dull"]]}).headers
    assert (headers["x-compute-type"], headers["x-compute-characters"], headers["x-compute-tokens"]) == (
        "cpu",
        "10",
        "7",
    )
    for part in ("compute", "total", "tokenization", "queue", "inference"):
        assert headers[f"x-{part}-time"].isdigit()
    assert headers["x-model-version"] == "tiny@2"


def test_the_server_says_what_it_is(client: WebClient) -> None:
    info = client.get("/info").json()
    assert (info["model_id"], info["served_model_name"], info["model_dtype"]) == ("tiny@2", "tiny", "float32")
    classifier = info["model_type"]["classifier"]
    assert classifier["id2label"] == {"0": "negative", "1": "positive"}
    assert classifier["label2id"] == {"negative": 0, "positive": 1}
    assert (info["max_client_batch_size"], info["max_input_length"], info["auto_truncate"]) == (4, 32, True)
    health = client.get("/health")
    assert (health.status_code, health.content) == (200, b"")


def refused(response: Response, status: int, error_type: str, message: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert response.json()["error_type"] == error_type
    assert message in response.json()["error"]


BAD: dict[str, tuple[object, int, str, str]] = {
    "no JSON": (b"{", 422, "Validation", "not valid JSON"),
    "no inputs": ({"input": "a"}, 422, "Validation", "'inputs' is missing"),
    "an empty batch": ({"inputs": []}, 400, "Empty", "at least one text"),
    "an empty text": ({"inputs": ""}, 422, "Tokenizer", "the text is empty"),
    "an empty input": ({"inputs": [[]]}, 422, "Validation", "inputs must be"),
    "a triple": ({"inputs": ["a", "b", "c"]}, 422, "Validation", "inputs must be"),
    "a mixed batch": ({"inputs": ["a", ["b"]]}, 422, "Validation", "inputs must be"),
    "a number": ({"inputs": 5}, 422, "Validation", "inputs must be"),
    "a pair for a model of single texts": ({"inputs": ["a", "b"]}, 422, "Tokenizer", "reads single texts"),
    "a wrong side": ({"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
    "a long text that must not be cut": ({"inputs": "a " * 60, "truncate": False}, 422, "Validation", "tokens"),
    "a batch that is too large": ({"inputs": [["a"]] * 5}, 413, "Validation", "5 texts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_the_dialects_shape(client: WebClient, name: str) -> None:
    body, status, error_type, message = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused(client.post("/predict", content=content), status, error_type, message)


def test_a_pair_is_one_text(tiny_store: ModelStore) -> None:
    settings = load_settings(
        store_dir=tiny_store.root, threads=1, store_poll_ms=0, default_model="pairs", max_texts_per_request=1
    )
    with running_app(create_app(settings)) as client:
        assert client.post("/predict", json={"inputs": ["a", "b"]}).status_code == 200
        assert client.post("/predict", json={"inputs": [["a", "b"], ["a", "b"]]}).status_code == 413


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
def test_it_is_well_if_its_default_model_answers(tiny_store: ModelStore, path: str) -> None:
    for name, status in (("tiny", 200), ("nobody", 503)):
        for client in serving(tiny_store, name):
            answer = client.get(path)
            assert answer.status_code == status
            assert answer.text == "" if status == 200 else answer.json()["error_type"] == "Unhealthy"


def test_without_a_default_model_it_says_which_setting_names_one(tiny_store: ModelStore) -> None:
    for client in serving(tiny_store, None):
        for response in (client.post("/predict", json={"inputs": "a"}), client.get("/info")):
            refused(response, 503, "Unhealthy", "SUCCESSOR_DEFAULT_MODEL")


def test_a_server_that_is_going_down_is_not_well(tiny_store: ModelStore) -> None:
    for client in serving(tiny_store, "tiny"):
        client.service.begin_to_drain()
        refused(client.get("/health"), 503, "Unhealthy", "going down")
