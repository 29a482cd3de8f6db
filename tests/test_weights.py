from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_store.builder.errors import NotFetchedError, WeightsError
from model_store.builder.step import Shape
from model_store.builder.weights import HubWeights, LocalWeights, inspect_weights


def safetensors(numbers: bytes, shape: list[int] | None = None, kind: str = "U8") -> bytes:
    """A file with one tensor."""
    tensor = {"dtype": kind, "shape": [len(numbers)] if shape is None else shape, "data_offsets": [0, len(numbers)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "numbers": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + numbers


def save(folder: Path, config: object, weights: bytes = b"numbers") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors(weights))
    return folder


def test_an_encoder_has_a_shape_and_no_labels(tmp_path: Path) -> None:
    info = inspect_weights(save(tmp_path, {"num_hidden_layers": 6, "max_position_embeddings": 512}))
    assert (info.shape, info.labels, info.max_positions) == (Shape("encoder", 6), None, 512)


def test_an_architecture_that_counts_positions_after_paddings_id_reads_fewer_tokens(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 6, "max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}
    assert inspect_weights(save(tmp_path, config)).max_positions == 512


def test_a_tuned_classifier_has_its_labels_in_the_order_of_its_logits(tmp_path: Path) -> None:
    config = {
        "n_layers": 3,
        "architectures": ["DistilBertForSequenceClassification"],
        "id2label": {"10": "k", "2": "c", "0": "a", "1": "b"},
    }
    info = inspect_weights(save(tmp_path, config))
    assert (info.shape, info.labels) == (Shape("classifier", 3), ("a", "b", "c", "k"))


def test_a_tuned_classifier_without_names_has_two_numbered_labels(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 3, "architectures": ["BertForSequenceClassification"]}
    assert inspect_weights(save(tmp_path, config)).labels == ("LABEL_0", "LABEL_1")


def test_the_digest_follows_weights_and_configuration(tmp_path: Path) -> None:
    digests = {
        inspect_weights(save(tmp_path, {"num_hidden_layers": layers}, weights)).sha256
        for layers, weights in ((1, b"a"), (1, b"b"), (2, b"a"), (1, b"a"))
    }
    assert len(digests) == 3


def test_a_folder_that_transformers_did_not_save_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json that can be read"):
        inspect_weights(tmp_path)
    with pytest.raises(WeightsError, match="names no number of layers"):
        inspect_weights(save(tmp_path, {}))
    save(tmp_path, {"num_hidden_layers": 2})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="has no weights"):
        inspect_weights(tmp_path)


def test_weights_in_a_pickle_are_not_read(tmp_path: Path) -> None:
    save(tmp_path, {"num_hidden_layers": 2})
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="other formats are not read, so save the model again"):
        inspect_weights(tmp_path)


def test_a_hub_is_not_asked_offline() -> None:
    with pytest.raises(NotFetchedError, match="org/name is on a hub"):
        HubWeights(hub="org/name").folder(offline=True)
    assert HubWeights(hub="org/name").describe() == "hub model org/name at main"


def test_a_hub_model_that_can_not_be_fetched_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"predecessor\.hub: .* can't be fetched"):
        HubWeights(hub="not a name!").folder()


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert LocalWeights(path=tmp_path).folder() == tmp_path
    assert LocalWeights(path=tmp_path).describe() == f"folder {tmp_path}"


def test_the_tokenizers_files_have_a_digest_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, {"num_hidden_layers": 1})
    found = []
    for name, content in (
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("spiece.model", "x"),
        ("README.md", "x"),
    ):
        (tmp_path / name).write_text(content)
        found.append(inspect_weights(tmp_path))
    assert len({info.sha256 for info in found}) == 1
    assert len({info.tokenizer_sha256 for info in found}) == 3


TUNED = {"num_hidden_layers": 3, "architectures": ["BertForSequenceClassification"]}


def test_labels_that_are_numbers_are_names(tmp_path: Path) -> None:
    assert inspect_weights(save(tmp_path, TUNED | {"id2label": {"0": 0, "1": 1}})).labels == ("0", "1")


@pytest.mark.parametrize("labels", [["a", "b"], {"x": "a", "y": "b"}])
def test_labels_that_are_not_numbered_are_refused(tmp_path: Path, labels: object) -> None:
    with pytest.raises(WeightsError, match="does not name outputs by number"):
        inspect_weights(save(tmp_path, TUNED | {"id2label": labels}))


def test_a_configuration_that_is_none_is_refused_and_padding_may_have_no_id(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a model's configuration"):
        inspect_weights(save(tmp_path, []))
    config = {"num_hidden_layers": 6, "max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": None}
    assert inspect_weights(save(tmp_path, config)).max_positions == 512


def test_weights_that_no_onnx_file_can_hold_in_float32_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path, {"num_hidden_layers": 6}) / "model.safetensors"
    file.write_bytes(safetensors(b"", [2**29 + 1], "F16").replace(b"[0, 0]", b"[0, 9]") + bytes(9))
    with pytest.raises(WeightsError, match="more than the 2 GiB"):
        inspect_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        safetensors(b"numbers")[:-1],
        b"\xff" * 100,
        safetensors(b"n").replace(b"shape", b"shave"),
        b"\2" + bytes(7) + b"[]",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_a_file_that_is_not_whole_is_refused_before_anything_is_trained(tmp_path: Path, content: bytes) -> None:
    (save(tmp_path, {"num_hidden_layers": 6}) / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="no safetensors file, or not a whole one"):
        inspect_weights(tmp_path)


def test_weights_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    (save(tmp_path, {"num_hidden_layers": 6}) / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="has no tokenizer"):
        inspect_weights(tmp_path)
