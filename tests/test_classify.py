"""`POST /v1/classify`: answers, headers, limits and bad input, on real tiny models."""

from __future__ import annotations

import gc
import gzip
import json
import math
import re
import time
from collections.abc import Iterator

import pytest
from httpx import Response

from model_store.encoding import TextEncoder, TextItem
from model_store.manifest import TOKENIZER_FILE, ModelId
from model_store.store import ModelStore
from service.api.classify_schema import ClassifyAnswer
from service.app import create_app
from service.batcher import Job
from service.settings import load_settings
from tests.tiny import TinyWeights
from tests.web import WebClient, running_app

MAX_CHARS, MAX_TEXTS, MAX_BODY = 500, 8, 8_192


@pytest.fixture(scope="module")
def client(tiny_store: ModelStore) -> Iterator[WebClient]:
    settings = load_settings(
        store_dir=tiny_store.root,
        threads=1,
        store_poll_ms=0,
        max_text_chars=MAX_CHARS,
        max_texts_per_request=MAX_TEXTS,
        max_body_bytes=MAX_BODY,
    )
    with running_app(create_app(settings)) as client:
        yield client


def classify(client: WebClient, given: object, **more: object) -> Response:
    return client.post("/v1/classify", json={"model": "tiny", "input": given, **more})


def expected_logits(store: ModelStore, text: str) -> list[float]:
    """What `tiny@2` must answer, by numpy."""
    version = store.open(ModelId(name="tiny", version=2))
    encoder = TextEncoder(version.folder / TOKENIZER_FILE, version.manifest.inputs)
    return list(TinyWeights.drawn(2, seed=1).logits(encoder.encode(TextItem(text)).input_ids).astype(float))


def test_a_text_is_classified_with_its_probabilities(client: WebClient, tiny_store: ModelStore) -> None:
    response = classify(client, "a great film")
    assert response.status_code == 200
    body = response.json()
    low, high = expected_logits(tiny_store, "a great film")
    second = 1 / (1 + math.exp(low - high))
    (entry,) = body["data"]
    assert entry["probs"] == pytest.approx([1 - second, second], abs=1e-6)
    assert entry["label"] == ("positive" if second > 0.5 else "negative")
    assert (entry["index"], entry["num_classes"], entry["truncated"]) == (0, 2, False)
    assert (body["object"], body["model"]) == ("list", "tiny@2")
    assert abs(body["created"] - time.time()) < 60
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_several_texts_are_answered_in_their_order_as_they_would_be_alone(client: WebClient) -> None:
    texts = ["a great film", "dull", "it is not good and it is not bad .", "warm"]
    together = classify(client, texts).json()["data"]
    for index, text in enumerate(texts):
        (alone,) = classify(client, text).json()["data"]
        assert together[index]["index"] == index
        assert together[index]["probs"] == pytest.approx(alone["probs"], abs=1e-6)


def test_a_request_may_name_a_model_a_version_or_an_alias(client: WebClient) -> None:
    answers = {
        reference: client.post("/v1/classify", json={"model": reference, "input": "dull"})
        for reference in ("tiny", "tiny@2", "tiny@production")
    }
    assert {answer.json()["model"] for answer in answers.values()} == {"tiny@2"}
    assert [answer.headers["x-arm"] for answer in answers.values()] == ["default", "default", "production"]


def test_an_answer_says_who_gave_it_and_how_long_it_took(client: WebClient) -> None:
    response = client.post(
        "/v1/classify", json={"model": "tiny", "input": "dull"}, headers={"x-request-id": "my-request"}
    )
    assert response.headers["x-model-version"] == "tiny@2"
    assert response.headers["x-request-id"] == "my-request"
    assert response.json()["id"] == "classify-my-request"
    times = [float(response.headers[f"x-{part}-time"]) for part in ("queue", "tokenization", "inference", "total")]
    assert all(value >= 0 for value in times)
    assert times[3] >= times[2]


@pytest.mark.parametrize("given", ["", "x" * 200, "with\x01control"])
def test_a_request_id_that_does_not_fit_is_replaced(client: WebClient, given: str) -> None:
    response = client.post("/v1/classify", json={"model": "tiny", "input": "dull"}, headers={"x-request-id": given})
    assert response.headers["x-request-id"] not in {"", given}


def test_top_k_gives_the_best_labels_first(client: WebClient) -> None:
    (entry,) = classify(client, "a great film", top_k=5).json()["data"]
    assert [one["score"] for one in entry["top"]] == sorted(entry["probs"], reverse=True)
    assert entry["top"][0]["label"] == entry["label"]
    (entry,) = classify(client, "a great film", top_k=1).json()["data"]
    assert len(entry["top"]) == 1


def test_raw_scores_are_the_logits(client: WebClient, tiny_store: ModelStore) -> None:
    (entry,) = classify(client, "a great film", raw_scores=True).json()["data"]
    assert entry["probs"] == pytest.approx(expected_logits(tiny_store, "a great film"), abs=1e-5)


def test_a_model_of_pairs_reads_pairs(client: WebClient) -> None:
    response = client.post("/v1/classify", json={"model": "pairs", "input": [["a film", "a story"], ["dull", "warm"]]})
    entries = response.json()["data"]
    assert [entry["num_classes"] for entry in entries] == [3, 3]
    assert entries[0]["probs"] != entries[1]["probs"]


@pytest.mark.parametrize(("model", "given"), [("pairs", "single"), ("pairs", ["a", "b"]), ("tiny", [["a", "b"]])])
def test_a_pair_where_single_texts_are_read_is_refused_and_the_reverse(
    client: WebClient, model: str, given: object
) -> None:
    response = client.post("/v1/classify", json={"model": model, "input": given})
    assert_refused(response, 400, "invalid_text", "this model reads")


def test_a_multi_label_model_gives_the_labels_above_its_threshold_raw_or_not(client: WebClient) -> None:
    answers = []
    for raw in (False, True):
        response = client.post("/v1/classify", json={"model": "topics", "input": "a warm story", "raw_scores": raw})
        answers.append(response.json()["data"][0])
    plain, raw_answer = answers
    names = ("plot", "acting", "music")
    assert plain["labels"] == [name for name, score in zip(names, plain["probs"], strict=True) if score > 0.5]
    assert raw_answer["labels"] == plain["labels"]
    assert plain["label"] in names


def test_a_regression_gives_a_score_and_no_label(client: WebClient) -> None:
    (entry,) = client.post("/v1/classify", json={"model": "rating", "input": "good"}).json()["data"]
    assert entry["label"] is None
    assert entry["probs"] == [entry["score"]]


def test_a_long_text_is_cut_and_the_answer_says_so(client: WebClient) -> None:
    long, short = classify(client, ["good " * 60, "good"]).json()["data"]
    assert (long["truncated"], short["truncated"]) == (True, False)


def test_a_long_text_is_cut_from_the_side_that_is_asked_for(client: WebClient) -> None:
    text = "good " * 40 + "dull " * 40
    answers = {side: classify(client, text, truncation_side=side) for side in ("right", "left", None)}
    assert {answer.headers["x-truncated-texts"] for answer in answers.values()} == {"1"}
    probs = {side: answer.json()["data"][0]["probs"] for side, answer in answers.items()}
    assert probs["right"] == probs[None] != probs["left"]


def test_a_long_text_is_refused_where_truncation_is_not_wanted(client: WebClient) -> None:
    answer = classify(client, ["good", "good " * 60], truncate=False)
    assert_refused(answer, 400, "text_too_long", "the text has ", "input[1]")


def test_a_request_that_failed_is_let_go_of_at_once(client: WebClient) -> None:
    def kept() -> int:
        return sum(type(one) is Job for one in gc.get_objects())

    classify(client, "")
    gc.collect()
    gc.disable()
    try:
        before = kept()
        for _ in range(10):
            assert_refused(classify(client, ""), 400, "invalid_text", "", "input")
        assert kept() <= before + 1
    finally:
        gc.enable()


def assert_refused(response: Response, status: int, code: str, message: str, param: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert message in error["message"]
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]


BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "not valid JSON"),
    "malformed": (b'{"model": "tiny", "input": ', 400, "not valid JSON"),
    "NaN": (b'{"model": "tiny", "input": NaN}', 400, "input must be"),
    "NaN beside a text": (b'{"model": "tiny", "input": "a", "top_k": NaN}', 400, "top_k: "),
    "infinity": (b'{"model": "tiny", "input": "a", "top_k": Infinity}', 400, "top_k: "),
    "invalid UTF-8": (b'{"model": "tiny", "input": "\xff\xfe"}', 400, "not valid JSON"),
    "a lone surrogate": (b'{"model": "tiny", "input": "\\ud800"}', 400, "not valid JSON"),
    "deep nesting": (b"[" * 4_000, 400, "not valid JSON"),
    "deep nesting inside": (b'{"model": "tiny", "input": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", 400, "not valid JSON"),
    "a list": (b'["a"]', 400, "must be a JSON object"),
    "a number": (b"5", 400, "must be a JSON object"),
    "no input": (b'{"model": "tiny"}', 400, "'input' is missing"),
    "an unknown key": (b'{"model": "tiny", "input": "a", "inptu": 1}', 400, "unknown key 'inptu'"),
    "a number as input": (b'{"model": "tiny", "input": 5}', 400, "input must be"),
    "null as input": (b'{"model": "tiny", "input": null}', 400, "input must be"),
    "an object as input": (b'{"model": "tiny", "input": {"text": "a"}}', 400, "input must be"),
    "mixed input": (b'{"model": "tiny", "input": ["a", ["a", "b"]]}', 400, "input must be"),
    "a triple": (b'{"model": "pairs", "input": [["a", "b", "c"]]}', 400, "input must be"),
    "no texts": (b'{"model": "tiny", "input": []}', 400, "at least one text"),
    "an empty text": (b'{"model": "tiny", "input": ""}', 400, "the text is empty"),
    "white space": (b'{"model": "tiny", "input": " \\n\\t "}', 400, "the text is empty"),
    "a model that is a number": (b'{"model": 5, "input": "a"}', 400, "model: "),
    "no model": (b'{"input": "a"}', 400, "name a model"),
    "truncate that is a word": (b'{"model": "tiny", "input": "a", "truncate": "yes"}', 400, "truncate: "),
    "top_k of nothing": (b'{"model": "tiny", "input": "a", "top_k": 0}', 400, "top_k: "),
    "an unknown model": (b'{"model": "nobody", "input": "a"}', 404, "no model 'nobody' here"),
    "an unknown version": (b'{"model": "tiny@77", "input": "a"}', 404, "no model 'tiny@77' here"),
    "a path as model": (b'{"model": "../../etc/passwd", "input": "a"}', 404, "no model"),
    "a text that is too large": (json.dumps({"model": "tiny", "input": "x" * 501}).encode(), 413, "500 characters"),
    "too many texts": (json.dumps({"model": "tiny", "input": ["a"] * 9}).encode(), 413, "9 texts"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_is_refused_in_one_clear_sentence_and_the_server_goes_on(client: WebClient, name: str) -> None:
    body, status, message = BAD_BODIES[name]
    response = client.post("/v1/classify", content=body)
    assert response.status_code == status, response.text
    assert_refused(response, status, response.json()["error"]["code"], message)
    assert classify(client, "still here").status_code == 200


def test_a_body_that_is_too_large_is_refused_by_its_announcement(client: WebClient) -> None:
    assert_refused(classify(client, "x" * MAX_BODY), 413, "body_too_large", f"larger than {MAX_BODY} bytes")


def test_a_body_that_announces_nothing_is_refused_by_its_bytes(client: WebClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 1_000

    assert_refused(client.post("/v1/classify", content=chunks()), 413, "body_too_large", "larger than")


def test_a_body_in_pieces_is_one_body(client: WebClient) -> None:
    whole = json.dumps({"model": "tiny", "input": "a great film"}).encode()
    response = client.post("/v1/classify", content=(whole[start : start + 7] for start in range(0, len(whole), 7)))
    assert response.status_code == 200


def test_a_timeout_that_leaves_time_is_kept(client: WebClient) -> None:
    deadline = str(int((time.time() + 60) * 1e3))
    for headers in ({"request-timeout-ms": "60000"}, {"request-deadline-ms": deadline}):
        body = {"model": "tiny", "input": "dull"}
        assert client.post("/v1/classify", json=body, headers=headers).status_code == 200


def test_a_deadline_in_the_past_is_a_timeout(client: WebClient) -> None:
    response = client.post(
        "/v1/classify", json={"model": "tiny", "input": "dull"}, headers={"request-deadline-ms": "1000"}
    )
    assert_refused(response, 504, "deadline_exceeded", "allow more time")


@pytest.mark.parametrize("value", ["soon", "-5", "0", "1.5", "9" * 30, ""])
@pytest.mark.parametrize("header", ["request-timeout-ms", "request-deadline-ms"])
def test_a_timeout_that_is_no_number_is_refused_by_its_header(client: WebClient, header: str, value: str) -> None:
    response = client.post("/v1/classify", json={"model": "tiny", "input": "dull"}, headers={header: value})
    assert_refused(response, 400, "invalid_request", "positive whole number", param=header)


def test_another_method_is_refused_with_those_that_are_allowed(client: WebClient) -> None:
    response = client.get("/v1/classify")
    assert_refused(response, 405, "method_not_allowed", "GET is not allowed here")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("encoding", ["gzip", "BR", "identity, gzip"])
def test_a_body_with_an_encoding_is_refused_by_its_name(client: WebClient, encoding: str) -> None:
    body = gzip.compress(b'{"model": "tiny", "input": "dull"}')
    for method, path in (("POST", "/v1/classify"), ("PUT", "/v1/admin/models/tiny/aliases/canary")):
        response = client.request(method, path, content=body, headers={"content-encoding": encoding})
        assert_refused(response, 415, "unsupported_encoding", repr(encoding), param="content-encoding")
    assert 'successor_refusals_total{reason="unsupported_encoding"}' in client.get("/metrics").text


def test_the_encoding_identity_is_none(client: WebClient) -> None:
    body = {"model": "tiny", "input": "dull"}
    for encoding in ("Identity", ""):
        assert client.post("/v1/classify", json=body, headers={"content-encoding": encoding}).status_code == 200


def test_refusals_are_counted_by_reason(client: WebClient) -> None:
    client.post("/v1/classify", content=b"{")
    assert 'successor_refusals_total{reason="invalid_request"}' in client.get("/metrics").text


def test_the_openapi_document_describes_it_whole(client: WebClient) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/classify"]["post"]
    assert set(operation["responses"]) == {
        *("200", "400", "401", "403", "404", "408", "413", "415", "429", "431", "500", "503", "504")
    }
    schemas = document["components"]["schemas"]
    for reference in set(find_references(document)):
        assert reference.removeprefix("#/components/schemas/") in schemas
    request = schemas["ClassifyRequest"]
    assert set(request["properties"]) == {"model", "input", "truncate", "truncation_side", "top_k", "raw_scores"}
    for example in request["examples"]:
        assert classify(client, "x") is not None
        assert set(example) <= set(request["properties"])
    assert schemas["ErrorAnswer"]["example"]["error"]["code"] == "model_not_found"
    page = client.get("/docs")
    assert page.status_code == client.request("HEAD", "/docs").status_code == 200
    # What comes from elsewhere is of one version, and checked by the browser.
    assert len(re.findall(r'(?:src|href)="https://[^"]+@\d+\.\d+\.\d+/[^"]+" integrity="sha384-', page.text)) == 2
    assert page.text.count("https://") == 2


@pytest.mark.parametrize("path", ["/docs/", "/v1/models/", "/redoc"])
def test_nobody_is_sent_elsewhere(client: WebClient, path: str) -> None:
    answer = client.get(path, headers={"host": "elsewhere.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_answers_are_as_their_documented_schema(client: WebClient) -> None:
    for model, given in (("tiny", "a"), ("topics", "a"), ("rating", "a"), ("pairs", [["a", "b"]])):
        response = client.post("/v1/classify", json={"model": model, "input": given, "top_k": 2})
        ClassifyAnswer.model_validate(response.json(), extra="forbid")


def find_references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from find_references(child)
    elif isinstance(node, list):
        for child in node:
            yield from find_references(child)
