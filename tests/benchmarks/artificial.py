"""Model files with random weights in the shape of MiniLM: time and memory do not depend on what weights say."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tokenizers import BertWordPieceTokenizer

from model_store.errors import ModelNotFoundError, SuccessorError
from model_store.manifest import (
    TOKENIZER_FILE,
    Artifact,
    DataLineage,
    InputContract,
    Lineage,
    ModelId,
    ScoreContract,
)
from model_store.store import Draft, ModelStore, digest_file
from tests.benchmarks.subjects import Subject

Method = Literal["per-token", "dynamic"]

_MODEL_FILE = "int8.onnx"
_VOCABULARY = 30_522
_MAX_LENGTH = 128
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def available() -> bool:
    """Whether the packages that make such files are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "onnx"))


def artificial_subject(store: ModelStore, layers: int, method: Method, texts: list[str]) -> Subject:
    """An int8 classifier with `layers` layers of hidden size 384; made once, then taken from the store.

    Its vocabulary is that of the texts, so that they get as many tokens as they would from a tokenizer that knows them.
    """
    name = f"random-{layers}-layers-{method}-rows-{zlib.crc32(''.join(texts).encode()):08x}"
    try:
        model = store.resolve(name)
    except ModelNotFoundError:
        model = _publish(store, name, layers, method, texts)
    return Subject(f"{layers} layers, random, {method} int8", store, model, texts)


def _publish(store: ModelStore, name: str, layers: int, method: Method, texts: list[str]) -> ModelId:
    inputs = InputContract(max_length=_MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        files = {file: Path(folder) / file for file in (_MODEL_FILE, TOKENIZER_FILE)}
        _write_tokenizer(files[TOKENIZER_FILE], texts)
        _export(Path(folder) / "fp32.onnx", layers)
        _quantize(Path(folder) / "fp32.onnx", files[_MODEL_FILE], method)
        sha256, size = digest_file(files[_MODEL_FILE])
        artifact = Artifact(
            file=_MODEL_FILE,
            sha256=sha256,
            bytes=size,
            precision="int8",
            method=method,
            batch_invariant=method == "per-token",  # `engine` compares the answers of every arrangement
            unpadded=True,
            max_logit_difference=0.0,
            agreement=1.0,
            dev_metric=0.0,
        )
        draft = Draft(
            name=name,
            scores=ScoreContract(problem="single_label", labels=("negative", "positive"), function="softmax"),
            inputs=inputs,
            artifacts=(artifact,),
            lineage=_lineage(layers, method),
            measurements={},
            gate=(),
        )
        return store.publish(draft, files)


def _lineage(layers: int, method: Method) -> Lineage:
    return Lineage(
        predecessor=None,
        encoder="random weights",
        encoder_sha256="0" * 64,
        encoder_licence="none",
        recipe={"layers": layers, "method": method},
        data=DataLineage(source="none", licence="none", splits={}),
        seed=0,
        code_version="0",
        packages={},
    )


def _write_tokenizer(path: Path, texts: Sequence[str]) -> None:
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=_VOCABULARY, min_frequency=1, show_progress=False)
    tokenizer.save(str(path))


def _export(path: Path, layers: int) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from model_store.builder.unpadding import write_unpadded

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=1536,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config).eval()
    sample = tuple(torch.ones(2, 8, dtype=torch.long) for _ in _INPUTS)
    padded = path.with_name("padded.onnx")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about every shape that it takes for a constant
        torch.onnx.export(
            model,
            sample,
            str(padded),
            input_names=list(_INPUTS),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in _INPUTS} | {"logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    if not write_unpadded(padded, path):
        raise SuccessorError("the benchmark's own model can't be unpadded: its export has changed")


def _quantize(source: Path, target: Path, method: Method) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from model_store.builder.per_token import quantize_per_token
    from model_store.builder.quantization import LARGEST_SAFE_WEIGHT

    if method == "per-token":
        quantize_per_token(source, target, LARGEST_SAFE_WEIGHT)
        return
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # sums of u8×s8 products stay exact without VNNI
        extra_options={"MatMulConstBOnly": True},
    )
