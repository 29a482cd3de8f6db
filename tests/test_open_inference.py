"""Open Inference Protocol v2 over HTTP: tensors in JSON and in bytes, models, and the repository of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Response

from model_store.classifier import OnnxClassifier, to_scores
from model_store.encoding import TextItem
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.app import create_app
from service.settings import load_settings
from tests.keys import BEARER, write_keys
from tests.tiny import MODEL_FILE, make_tiny_version
from tests.web import WebClient, running_app

LENGTH = "inference-header-content-length"


@pytest.fixture(scope="module")
def client(tiny_store: ModelStore) -> Iterator[WebClient]:
    models = "tiny,tiny@1,pairs,rating,topics"
    settings = load_settings(
        store_dir=tiny_store.root, threads=1, store_poll_ms=0, max_texts_per_request=8, models=models
    )
    with running_app(create_app(settings)) as client:
        yield client


def expected(store: ModelStore, name: str, version: int, texts: list[TextItem]) -> np.ndarray[Any, Any]:
    """What `OnnxClassifier` itself says of each text."""
    opened = store.open(ModelId(name=name, version=version))
    classifier = OnnxClassifier(opened)
    logits = np.concatenate([classifier.run([classifier.encode(text)]) for text in texts])
    return to_scores(logits, opened.manifest.scores)


def tensor(texts: object, name: str = "text", **more: object) -> dict[str, object]:
    shape = [len(texts)] if isinstance(texts, list) else [1]
    return {"name": name, "shape": shape, "datatype": "BYTES", "data": texts} | more


def infer(client: WebClient, texts: list[str], model: str = "tiny", **more: object) -> Response:
    return client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor(texts)], **more})


def outputs(response: Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output for output in response.json()["outputs"]}


def refused(response: Response, status: int, message: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert message in response.json()["error"]
    assert response.headers["x-request-id"]


TEXTS = ["a great film", "dull", "it is not bad ."]


def test_texts_are_answered_with_the_models_scores_and_labels(client: WebClient, tiny_store: ModelStore) -> None:
    response = infer(client, TEXTS, id="seven")
    body = response.json()
    assert (body["id"], body["model_name"], body["model_version"]) == ("seven", "tiny", "2")
    assert [output["name"] for output in body["outputs"]] == ["scores", "label", "truncated"]
    found = outputs(response)
    scores = expected(tiny_store, "tiny", 2, [TextItem(text) for text in TEXTS])
    assert (found["scores"]["datatype"], found["scores"]["shape"]) == ("FP32", [3, 2])
    np.testing.assert_allclose(np.array(found["scores"]["data"]).reshape(3, 2), scores, atol=1e-6)
    labels = [("negative", "positive")[row.argmax()] for row in scores]
    assert (found["label"]["data"], found["truncated"]["data"]) == (labels, [False] * 3)
    assert response.headers["x-model-version"] == "tiny@2"


def test_an_answer_without_an_id_has_none(client: WebClient) -> None:
    assert "id" not in infer(client, ["dull"]).json()


@pytest.mark.parametrize(
    "path",
    ["tiny/infer", "tiny@1/infer", "tiny/versions/1/infer", "tiny@production/infer", "tiny/versions/production/infer"],
)
def test_the_path_names_a_model_and_perhaps_a_version_or_alias(client: WebClient, path: str) -> None:
    body = client.post(f"/v2/models/{path}", json={"inputs": [tensor(["dull"])]}).json()
    assert body["model_version"] == ("1" if "1" in path else "2")


def test_a_model_of_pairs_reads_two_inputs(client: WebClient, tiny_store: ModelStore) -> None:
    pairs = [("a film", "a story"), ("dull", "warm")]
    both = [tensor([second for _, second in pairs], "text_pair"), tensor([first for first, _ in pairs])]
    found = outputs(client.post("/v2/models/pairs/infer", json={"inputs": both}))
    scores = expected(tiny_store, "pairs", 1, [TextItem(*pair) for pair in pairs])
    np.testing.assert_allclose(np.array(found["scores"]["data"]).reshape(2, 3), scores, atol=1e-6)


def test_a_multi_label_model_gives_each_label_its_probability(client: WebClient, tiny_store: ModelStore) -> None:
    found = outputs(infer(client, ["warm"], "topics"))
    np.testing.assert_allclose(
        [found["scores"]["data"]], expected(tiny_store, "topics", 1, [TextItem("warm")]), atol=1e-6
    )


def test_a_regression_gives_its_number_and_no_label(client: WebClient, tiny_store: ModelStore) -> None:
    found = outputs(infer(client, ["good"], "rating"))
    assert set(found) == {"scores", "truncated"}
    np.testing.assert_allclose(
        [found["scores"]["data"]], expected(tiny_store, "rating", 1, [TextItem("good")]), atol=1e-6
    )


def test_only_the_outputs_that_are_wanted_come_in_the_order_of_the_request(client: WebClient) -> None:
    body = infer(client, ["dull"], outputs=[{"name": "label"}, {"name": "scores"}]).json()
    assert [output["name"] for output in body["outputs"]] == ["label", "scores"]


def test_a_classification_gives_the_best_labels_with_their_scores(client: WebClient) -> None:
    scores = outputs(infer(client, TEXTS))["scores"]["data"]
    for count in (1, 2, 9):
        wanted = [{"name": "scores", "parameters": {"classification": count}}]
        found = outputs(infer(client, TEXTS, outputs=wanted))["scores"]
        kept = min(count, 2)
        assert (found["datatype"], found["shape"]) == ("BYTES", [3, kept])
        for row in range(3):
            entries = [entry.split(":") for entry in found["data"][row * kept : (row + 1) * kept]]
            values = [float(value) for value, _, _ in entries]
            assert values == sorted(values, reverse=True)
            assert values == pytest.approx([scores[2 * row + int(index)] for _, index, _ in entries], abs=1e-8)
            assert [label for _, _, label in entries] == [
                ("negative", "positive")[int(index)] for _, index, _ in entries
            ]


def binary(texts: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def test_bytes_after_the_json_are_texts_and_answers_come_so_if_they_are_wanted_so(client: WebClient) -> None:
    raw = binary(TEXTS)
    document = {
        "inputs": [{"name": "text", "shape": [3], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}],
        "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "scores"}, {"name": "truncated"}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    response = client.post("/v2/models/tiny/infer", content=head + raw, headers={LENGTH: str(len(head))})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    end = int(response.headers[LENGTH])
    label, scores, truncated = json.loads(response.content[:end])["outputs"]
    plain = outputs(infer(client, TEXTS))
    assert label["data"] == plain["label"]["data"]
    size = scores["parameters"]["binary_data_size"]
    got = np.frombuffer(response.content[end : end + size], "<f4")
    np.testing.assert_allclose(got, plain["scores"]["data"], atol=1e-7)
    assert response.content[end + size :] == b"\0\0\0"
    assert truncated["parameters"]["binary_data_size"] == 3


def test_one_output_may_be_wanted_in_bytes(client: WebClient) -> None:
    response = infer(client, ["dull"], outputs=[{"name": "label", "parameters": {"binary_data": True}}])
    end = int(response.headers[LENGTH])
    assert response.content[end:] in {binary(["negative"]), binary(["positive"])}


def test_a_long_text_is_cut_from_the_side_that_is_asked_for_and_the_answer_says_so(client: WebClient) -> None:
    long = "good " * 40 + "dull " * 40
    answers = {}
    for side in ("right", "left", None):
        response = infer(client, [long, "good"], parameters={"truncation_side": side})
        found = outputs(response)
        assert found["truncated"]["data"] == [True, False]
        assert response.headers["x-truncated-texts"] == "1"
        answers[side] = found["scores"]["data"][:2]
    assert answers["right"] == pytest.approx(answers[None], abs=1e-6)  # in whatever batch it was
    assert answers["left"] != pytest.approx(answers[None], abs=1e-6)


def test_a_long_text_is_refused_where_it_must_not_be_cut(client: WebClient) -> None:
    refused(infer(client, ["good " * 60], parameters={"truncate": False}), 400, "tokens and the model reads 32")


def test_raw_scores_are_logits(client: WebClient) -> None:
    raw = outputs(infer(client, ["dull"], parameters={"raw_scores": True}))["scores"]["data"]
    plain = outputs(infer(client, ["dull"]))["scores"]["data"]
    assert np.log(plain[1] / plain[0]) == pytest.approx(raw[1] - raw[0], abs=1e-5)


def test_what_clients_add_and_means_nothing_here_is_left_aside(client: WebClient) -> None:
    more: dict[str, Any] = {
        "model_name": "tiny",
        "parameters": {"priority": 1, "headers": {}},
        "outputs": None,
        "id": None,
    }
    assert infer(client, ["dull"], **more).status_code == 200


BAD: dict[str, tuple[object, int, str]] = {
    "nothing": (b"", 400, "not valid JSON"),
    "half": (b'{"inputs": ', 400, "not valid JSON"),
    "a list": ([], 400, "must be a JSON object"),
    "no inputs": ({}, 400, "'inputs' is missing"),
    "an input without a shape": (
        {"inputs": [{"name": "text", "datatype": "BYTES", "data": ["a"]}]},
        400,
        "'inputs.0.shape' is missing",
    ),
    "a shape of words": ({"inputs": [tensor(["a"], shape=["one"])]}, 400, "inputs.0.shape.0"),
    "a wrong datatype": ({"inputs": [tensor(["a"], datatype="FP32")]}, 400, "datatype BYTES"),
    "numbers": ({"inputs": [tensor([1])]}, 400, "list of strings"),
    "no texts": ({"inputs": [tensor([])]}, 400, "at least one text"),
    "an empty text": ({"inputs": [tensor([""])]}, 400, "the text is empty"),
    "a negative timeout": ({"inputs": [tensor(["a"])], "parameters": {"timeout": -1}}, 400, "parameters.timeout"),
    "a wrong side": ({"inputs": [tensor(["a"])], "parameters": {"truncation_side": "up"}}, 400, "truncation_side"),
    "an unknown output": ({"inputs": [tensor(["a"])], "outputs": [{"name": "logits"}]}, 400, "no output 'logits'"),
    "a sequence": ({"inputs": [tensor(["a"])], "parameters": {"sequence_id": 5}}, 501, "sequence_id is not supported"),
    "too many texts": ({"inputs": [tensor(["a"] * 9)]}, 413, "9 texts"),
    "a text that is too large": ({"inputs": [tensor(["x" * 20_001])]}, 413, "20000 characters"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_clear_sentence(client: WebClient, name: str) -> None:
    body, status, message = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    refused(client.post("/v2/models/tiny/infer", content=content), status, message)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("nobody/infer", 404, "no model 'nobody' here"),
        ("tiny/versions/77/infer", 404, "no model 'tiny@77' here"),
        ("tiny@1/versions/2/infer", 400, "name no other one"),
        ("..%2F..%2Fetc/infer", 404, ""),
        ("tiny/infer/more", 404, "no route"),
    ],
)
def test_an_unknown_model_or_route_is_refused_in_the_dialects_shape(
    client: WebClient, path: str, status: int, message: str
) -> None:
    refused(client.post(f"/v2/models/{path}", json={"inputs": [tensor(["a"])]}), status, message)


def test_a_deadline_in_microseconds_is_kept(client: WebClient) -> None:
    for timeout, status in ((60_000_000, 200), (0, 200), (1, 504)):
        assert infer(client, ["dull"], parameters={"timeout": timeout}).status_code == status
    response = client.post(
        "/v2/models/tiny/infer", json={"inputs": [tensor(["a"])]}, headers={"request-deadline-ms": "1000"}
    )
    refused(response, 504, "allow more time")


def test_another_method_is_refused_with_the_one_that_is_there(client: WebClient) -> None:
    response = client.get("/v2/models/tiny/infer")
    refused(response, 405, "GET is not allowed here")
    assert response.headers["allow"] == "POST"


def test_the_server_says_its_name_and_that_it_is_well(client: WebClient) -> None:
    assert client.get("/v2").json()["name"] == "successor"
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert client.get("/v2/models/nobody/ready").status_code == 404


def test_a_model_says_what_it_reads_and_gives(client: WebClient) -> None:
    metadata = client.get("/v2/models/tiny").json()
    assert (metadata["name"], metadata["versions"]) == ("tiny", ["1", "2"])
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 2]}
    assert [one["name"] for one in client.get("/v2/models/pairs/versions/1").json()["inputs"]] == ["text", "text_pair"]
    config = client.get("/v2/models/topics/config").json()
    assert json.loads(config["parameters"]["labels"]["string_value"]) == ["plot", "acting", "music"]
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}]


def test_a_model_says_what_it_has_done(client: WebClient) -> None:
    def seen() -> dict[str, Any]:
        (entry,) = client.get("/v2/models/pairs/stats").json()["model_stats"]
        return dict(entry)

    before = seen()
    both = [tensor(["a", "b"]), tensor(["c", "d"], "text_pair")]
    assert client.post("/v2/models/pairs/infer", json={"inputs": both}).status_code == 200
    refused(client.post("/v2/models/pairs/infer", json={"inputs": [tensor([""]), tensor(["a"], "text_pair")]}), 400, "")
    after = seen()
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] > before["execution_count"]
    for kind, count in (("success", 1), ("fail", 1), ("compute_input", 2)):
        assert after["inference_stats"][kind]["count"] - before["inference_stats"][kind]["count"] == count
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert after["last_inference"] > before["last_inference"]
    every = client.get("/v2/models/stats").json()["model_stats"]
    assert [(one["name"], one["version"]) for one in every] == [
        ("pairs", "1"),
        ("rating", "1"),
        ("tiny", "1"),
        ("tiny", "2"),
        ("topics", "1"),
    ]


@pytest.fixture
def own(store: ModelStore, tiny: ModelId, tmp_path: Path) -> Iterator[WebClient]:
    """A client of a server whose models may be let go of."""
    make_tiny_version(store, "other")
    settings = load_settings(
        store_dir=store.root,
        threads=1,
        store_poll_ms=0,
        models="tiny",
        api_keys_file=write_keys(tmp_path / "keys.json", anonymous=("infer",)),
    )
    with running_app(create_app(settings)) as client:
        yield client


def states(client: WebClient, body: object = None) -> dict[str, tuple[str, str]]:
    listed = client.post("/v2/repository/index", json=body).json()
    return {f"{one['name']}@{one['version']}": (one["state"], one["reason"]) for one in listed}


def test_the_repository_lists_what_answers_and_what_does_not(own: WebClient) -> None:
    assert states(own) == {"other@1": ("UNAVAILABLE", "not asked for"), "tiny@1": ("READY", "")}
    assert states(own, {"ready": True}) == {"tiny@1": ("READY", "")}


def test_a_model_is_loaded_and_let_go_of_by_hand(own: WebClient) -> None:
    assert own.post("/v2/repository/models/other/load", headers=BEARER).status_code == 200
    assert infer(own, ["dull"], "other").status_code == 200
    assert own.post("/v2/repository/models/tiny/unload", headers=BEARER).status_code == 200
    refused(infer(own, ["dull"]), 404, "was unloaded")
    assert states(own) == {"other@1": ("READY", ""), "tiny@1": ("UNAVAILABLE", "unloaded")}
    assert own.post("/v2/repository/models/tiny/unload", headers=BEARER).status_code == 200
    assert own.post("/v2/repository/models/tiny/load", headers=BEARER).status_code == 200
    assert infer(own, ["dull"]).status_code == 200


def test_what_was_let_go_of_stays_so_where_there_is_a_state_folder(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    settings = load_settings(
        store_dir=store.root,
        state_dir=tmp_path / "state",
        threads=1,
        api_keys_file=write_keys(tmp_path / "keys.json", anonymous=("infer",)),
    )
    with running_app(create_app(settings)) as client:
        assert client.post("/v2/repository/models/tiny/unload", headers=BEARER).status_code == 200
    with running_app(create_app(settings)) as client:
        refused(infer(client, ["dull"]), 404, "was unloaded")
        refused(client.get("/v2/models/tiny/ready"), 404, "was unloaded")
        ready = client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert client.post("/v2/repository/models/tiny/load", headers=BEARER).status_code == 200
        assert infer(client, ["dull"]).status_code == 200


def test_a_demand_that_cannot_be_kept_is_a_conflict(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    (tmp_path / "demand").write_text("a file, where a folder should be")
    keys = write_keys(tmp_path / "keys.json")
    settings = load_settings(store_dir=store.root, state_dir=tmp_path, threads=1, api_keys_file=keys)
    with running_app(create_app(settings)) as client:
        refused(client.post("/v2/repository/models/tiny/unload", headers=BEARER), 409, "can't be written")


def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(own: WebClient, store: ModelStore) -> None:
    file = store.root / make_tiny_version(store, "broken").name / "1" / MODEL_FILE
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-10])
    refused(own.post("/v2/repository/models/broken/load", headers=BEARER), 404, "is not what was published")
    assert states(own)["broken@1"][0] == "UNAVAILABLE"


@pytest.mark.parametrize(("name", "status"), [("nobody", 404), ("UPPER", 400), ("tiny@1", 400), ("..", 400)])
def test_only_names_of_the_store_can_be_loaded(own: WebClient, name: str, status: int) -> None:
    for action in ("load", "unload"):
        path = f"/v2/repository/models/{name.replace('..', '%2E%2E')}/{action}"
        assert own.post(path, headers=BEARER).status_code in {status, 404}


def test_the_repository_is_changed_by_administrators_only(own: WebClient) -> None:
    refused(own.post("/v2/repository/models/tiny/unload"), 401, "Authorization: Bearer")
    assert infer(own, ["dull"]).status_code == 200


def test_a_newer_version_that_cannot_be_loaded_is_said_though_an_older_one_answers(
    own: WebClient, store: ModelStore
) -> None:
    assert own.post("/v2/repository/models/other/load", headers=BEARER).status_code == 200
    file = store.root / "other" / str(make_tiny_version(store, "other", seed=1).version) / MODEL_FILE
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-10])
    refused(own.post("/v2/repository/models/other/load", headers=BEARER), 404, "is not what was published")
    assert infer(own, ["dull"], "other").status_code == 200
