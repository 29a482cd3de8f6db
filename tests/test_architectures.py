"""Every architecture and every kind of task: data, training, export, gate, store, server, with tiny random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from model_store.builder.pipeline import Build, build
from model_store.builder.recipe import resolve
from model_store.store import ModelStore
from service.app import create_app
from service.settings import load_settings
from tests.tiny_torch import ARCHITECTURES, Recorder, make_tiny_encoder, tiny_document
from tests.web import running_app

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")]


def built(folder: Path, document: dict[str, Any]) -> tuple[Build, ModelStore]:
    store = ModelStore(folder / "store")
    return build(resolve(document, folder), store, folder / "work", Recorder()), store


def served(store: ModelStore, text: str | list[str]) -> dict[str, Any]:
    """What the server answers for one text, or one pair."""
    request = {"model": "tiny", "input": [text] if isinstance(text, list) else text}
    with running_app(create_app(load_settings(store_dir=store.root, threads=1))) as client:
        response = client.post("/v1/classify", json=request)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_theseus_builds_exports_and_serves_it(tmp_path: Path, architecture: str) -> None:
    encoder = make_tiny_encoder(tmp_path / "encoder", architecture=architecture)
    document = tiny_document(tmp_path, encoder=encoder)
    document["steps"][3]["candidates"] = ["per-token-u8s8"]
    done, store = built(tmp_path, document)
    manifest = store.manifest(done.successor)
    assert done.measurements["successor_parity"] <= 1e-5
    assert done.measurements["predecessor_parity"] <= 1e-5
    assert [artifact.precision for artifact in manifest.artifacts] == ["fp32", "int8"]
    assert all(artifact.batch_invariant for artifact in manifest.artifacts)
    assert all(artifact.unpadded == ("deberta" not in architecture) for artifact in manifest.artifacts)
    assert manifest.artifacts[0].bytes < store.manifest(done.predecessor).artifacts[0].bytes
    assert agrees(tmp_path, served(store, "good w1 w2"), "good w1 w2")


def agrees(folder: Path, answer: dict[str, Any], text: str) -> bool:
    """Whether a served answer is what transformers makes of the trained successor, but for its int8 weights."""
    (trained,) = (folder / "work" / "steps").glob("theseus-*")
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    with torch.no_grad():
        wanted = model(tokenizer(text, return_tensors="pt")["input_ids"]).logits.softmax(-1)[0].tolist()
    return bool(answer["data"][0]["probs"] == pytest.approx(wanted, abs=5e-3))


def test_modules_of_different_sizes_are_built_and_served(tmp_path: Path) -> None:
    document = tiny_document(tmp_path)
    document["steps"][1] |= {"layers": None, "modules": [1, 3]}
    document["steps"][3]["candidates"] = ["per-token-u8s8"]
    done, store = built(tmp_path, document)
    assert done.measurements["successor_parity"] <= 1e-5
    assert agrees(tmp_path, served(store, "bad w3"), "bad w3")


@pytest.mark.parametrize(
    ("kind", "changes", "measured", "labels"),
    [
        ({"pair": True}, {"metrics": ["accuracy", "f1"], "positive_label": "positive"}, {"successor_f1"}, 2),
        ({"classes": 12}, {"metrics": ["macro_f1"]}, set(), 12),
        ({"problem": "regression", "pair": True}, {"metrics": ["spearman", "pearson"]}, {"predecessor_pearson"}, 1),
        ({"problem": "multi_label"}, {"metrics": ["micro_f1", "accuracy"]}, {"tfidf_accuracy"}, 3),
        ({}, {"metrics": ["matthews"]}, set(), 2),
    ],
    ids=["pairs", "many classes", "regression", "multi-label", "two classes"],
)
def test_every_kind_of_task_is_built_with_its_fields_metrics_and_served(
    tmp_path: Path, kind: dict[str, Any], changes: dict[str, Any], measured: set[str], labels: int
) -> None:
    document = tiny_document(tmp_path, **kind)
    document["data"] |= changes
    document["steps"] = [document["steps"][0] | {"best_on_dev": True}, document["steps"][1], {"operator": "export"}]
    done, store = built(tmp_path, document)
    manifest = store.manifest(done.successor)
    assert measured <= set(done.measurements)
    assert len(manifest.scores.labels) == labels
    assert manifest.artifacts[0].max_logit_difference <= 1e-5
    text = ["good w1", "w2 w1"] if manifest.inputs.pair else "good w1"
    assert served(store, text)["data"]
