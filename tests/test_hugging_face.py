"""`POST /models/{model}`: what `huggingface_hub` and transformers' pipelines send, and what they need back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from model_store.encoding import TextItem
from model_store.store import ModelStore
from service.app import create_app
from service.settings import load_settings
from tests.test_open_inference import expected
from tests.test_text_embeddings_inference import LABELS, PAIR_LABELS, check_predictions
from tests.web import WebClient, running_app


@pytest.fixture(scope="module")
def client(tiny_store: ModelStore) -> Iterator[WebClient]:
    with running_app(create_app(load_settings(store_dir=tiny_store.root, threads=1, store_poll_ms=0))) as client:
        yield client


def test_a_text_is_answered_with_a_list_in_a_list(client: WebClient, tiny_store: ModelStore) -> None:
    response = client.post("/models/tiny", json={"inputs": "a great film", "parameters": {}})
    assert response.status_code == 200, response.text
    (found,) = response.json()
    (scores,) = expected(tiny_store, "tiny", 2, [TextItem("a great film")])
    check_predictions(found, scores, LABELS)
    assert response.headers["x-model-version"] == "tiny@2"


def test_several_texts_or_pairs_get_a_list_each(client: WebClient, tiny_store: ModelStore) -> None:
    texts = ["dull", "a great film"]
    wanted = expected(tiny_store, "tiny", 2, [TextItem(text) for text in texts])
    for found, scores in zip(client.post("/models/tiny@2", json={"inputs": texts}).json(), wanted, strict=True):
        check_predictions(found, scores, LABELS)
    pair = {"text": "a film", "text_pair": "dull"}
    (scores,) = expected(tiny_store, "pairs", 1, [TextItem("a film", "dull")])
    for given in (pair, [pair]):
        (found,) = client.post("/models/pairs", json={"inputs": given}).json()
        check_predictions(found, scores, PAIR_LABELS)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none", None])
def test_the_function_from_logits_to_scores_may_be_chosen(client: WebClient, function: str | None) -> None:
    raw = client.post("/v1/classify", json={"model": "tiny", "input": "dull", "raw_scores": True}).json()
    logits = np.array(raw["data"][0]["probs"])
    scores = {
        "softmax": np.exp(logits) / np.exp(logits).sum(),
        None: np.exp(logits) / np.exp(logits).sum(),
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "none": logits,
    }[function]
    (found,) = client.post(
        "/models/tiny", json={"inputs": "dull", "parameters": {"function_to_apply": function}}
    ).json()
    check_predictions(found, scores, LABELS)


def test_top_k_limits_the_labels(client: WebClient) -> None:
    (all_labels,) = client.post("/models/topics", json={"inputs": "dull"}).json()
    (best,) = client.post("/models/topics", json={"inputs": "dull", "parameters": {"top_k": 2}}).json()
    assert best == all_labels[:2]


def test_a_long_text_is_cut_unless_that_is_refused(client: WebClient) -> None:
    body = {"inputs": "good " * 60 + "dull " * 60, "parameters": {"truncation_side": "left"}}
    left = client.post("/models/tiny", json=body)
    right = client.post("/models/tiny", json={"inputs": body["inputs"]})
    assert (left.headers["x-truncated-texts"], right.headers["x-truncated-texts"]) == ("1", "1")
    assert left.json() != right.json()
    refused = client.post("/models/tiny", json={"inputs": body["inputs"], "parameters": {"truncation": False}})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "text_too_long")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("tiny", b"{", 400, "not valid JSON"),
        ("tiny", {"inputs": 5}, 400, "inputs must be"),
        ("tiny", {"inputs": []}, 400, "at least one text"),
        ("tiny", {"inputs": "a", "parameters": {"top_k": 0}}, 400, "parameters.top_k"),
        ("tiny", {"inputs": "a", "parameters": {"function_to_apply": "relu"}}, 400, "function_to_apply"),
        ("nobody", {"inputs": "a"}, 404, "no model 'nobody' here"),
        ("some/name", {"inputs": "a"}, 404, "no route"),
    ],
)
def test_bad_input_is_refused_in_the_dialects_shape(
    client: WebClient, path: str, body: object, status: int, message: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(f"/models/{path}", content=content)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_type"}
    assert message in response.json()["error"]
