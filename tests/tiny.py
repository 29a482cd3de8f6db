"""A real classifier that is tiny: an ONNX file, a WordPiece tokenizer and a published version, without torch.

The graph is an embedding, a mean over the tokens that the mask keeps, and a linear layer, so that
`TinyWeights.logits` can say in numpy what ONNX Runtime must answer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper, save
from tokenizers import Tokenizer
from tokenizers.models import Model, WordPiece
from tokenizers.normalizers import BertNormalizer, Normalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, PreTokenizer
from tokenizers.processors import TemplateProcessing

from model_store.manifest import (
    TOKENIZER_FILE,
    Artifact,
    Check,
    DataLineage,
    InputContract,
    Lineage,
    ModelId,
    Problem,
    ScoreContract,
    Side,
    Split,
)
from model_store.store import Draft, ModelStore, digest_file

HIDDEN_SIZE = 8
MODEL_FILE = "fp32.onnx"
REPORT_FILE = "report.md"
LABELS = ("negative", "positive")

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("a", "the", "film", "story", "is", "not", "good", "bad", "great", "dull", "warm", "cold", "it", "and", ".")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = (*_SPECIAL, *_WORDS, *(letter for letter in _LETTERS if letter != "a"), *(f"##{c}" for c in _LETTERS))

_FUNCTIONS: Mapping[Problem, str] = {"single_label": "softmax", "multi_label": "sigmoid", "regression": "identity"}


@dataclass(frozen=True)
class TinyWeights:
    """One model: `embedding` (vocabulary, hidden), `types` (2, hidden), `head` (hidden, labels), `bias` (labels,)."""

    embedding: NDArray[np.float32]
    types: NDArray[np.float32]
    head: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def drawn(cls, labels: int, seed: int) -> TinyWeights:
        generator = np.random.default_rng(seed)

        def normal(*shape: int) -> NDArray[np.float32]:
            return generator.normal(size=shape).astype(np.float32)

        return cls(
            embedding=normal(len(VOCABULARY), HIDDEN_SIZE),
            types=normal(2, HIDDEN_SIZE),
            head=normal(HIDDEN_SIZE, labels),
            bias=normal(labels),
        )

    def logits(self, input_ids: Sequence[int], token_type_ids: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Logits `(labels,)` of one text alone; `token_type_ids` for a model that reads pairs."""
        hidden = self.embedding[list(input_ids)]
        if token_type_ids is not None:
            hidden = hidden + self.types[list(token_type_ids)]
        return np.asarray(hidden.mean(axis=0) @ self.head + self.bias, dtype=np.float32)


def bert_tokenizer(
    model: Model | None = None, normalizer: Normalizer | None = None, pre_tokenizer: PreTokenizer | None = None
) -> Tokenizer:
    """An uncased WordPiece without special tokens, but for the parts that are given."""
    known = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(model or WordPiece(known, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer or BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizer or BertPreTokenizer()
    return tokenizer


def write_tokenizer(path: Path) -> None:
    """Write a small uncased WordPiece `tokenizer.json`, which carries truncation and padding that must be ignored."""
    tokenizer = bert_tokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, VOCABULARY.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.enable_truncation(max_length=6)
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(path))


def write_onnx(path: Path, weights: TinyWeights, *, pair: bool = False, batch_invariant: bool = True) -> None:
    """Write the classifier; one that is not batch-invariant adds a quarter of the batch's mean logits to each row."""
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["words"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]),
        helper.make_node("Add", ["words", "kinds"], ["hidden"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["hidden", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Gemm", ["mean", "head", "bias"], ["logits"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "embedding": weights.embedding,
        "types": weights.types,
        "head": weights.head,
        "bias": weights.bias,
        "last": np.array([2], np.int64),
        "tokens": np.array([1], np.int64),
    }
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    if not pair:
        inputs.pop()
        del constants["types"], nodes[1:3]
        nodes[0] = helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"])
    if not batch_invariant:
        constants["share"] = np.array(0.25, np.float32)
        nodes[-1] = helper.make_node("Gemm", ["mean", "head", "bias"], ["alone"])
        nodes += [
            helper.make_node("ReduceMean", ["alone"], ["mates"], axes=[0], keepdims=1),
            helper.make_node("Mul", ["mates", "share"], ["spill"]),
            helper.make_node("Add", ["alone", "spill"], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens_in"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.bias.size])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    save(model, path)


def tiny_draft(
    folder: Path,
    name: str = "tiny",
    *,
    pair: bool = False,
    problem: Problem = "single_label",
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
    batch_invariant: bool = True,
    max_length: int = 32,
    truncation_side: Side = "right",
) -> tuple[Draft, dict[str, Path]]:
    """Write a version's files into `folder` and describe them: the two arguments of `ModelStore.publish`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {file: folder / file for file in (MODEL_FILE, TOKENIZER_FILE, REPORT_FILE)}
    weights = TinyWeights.drawn(len(labels), seed)
    write_onnx(files[MODEL_FILE], weights, pair=pair, batch_invariant=batch_invariant)
    write_tokenizer(files[TOKENIZER_FILE])
    files[REPORT_FILE].write_text(f"# {name}\n")
    sha256, size = digest_file(files[MODEL_FILE])
    artifact = Artifact(
        file=MODEL_FILE,
        sha256=sha256,
        bytes=size,
        precision="fp32",
        method="export",
        batch_invariant=batch_invariant,
        max_logit_difference=0.0,
        agreement=1.0,
        dev_metric=0.75,
    )
    lineage = Lineage(
        predecessor=None,
        encoder="tiny",
        encoder_sha256="0" * 64,
        encoder_licence="Apache-2.0",
        recipe={"seed": seed},
        data=DataLineage(source="none", licence="none", splits={"test": Split(rows=1, sha256="0" * 64)}),
        seed=seed,
        code_version="0",
        packages={},
    )
    draft = Draft(
        name=name,
        scores=ScoreContract.model_validate({"problem": problem, "labels": labels, "function": _FUNCTIONS[problem]}),
        inputs=InputContract(pair=pair, max_length=max_length, truncation_side=truncation_side),
        artifacts=(artifact,),
        lineage=lineage,
        measurements={"accuracy": 0.75},
        gate=(Check(name="parity", value=0.0, bound=1e-4, direction="at_most"),),
    )
    return draft, files


def make_tiny_version(
    store: ModelStore,
    name: str = "tiny",
    *,
    pair: bool = False,
    problem: Problem = "single_label",
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
    aliases: tuple[str, ...] = (),
    batch_invariant: bool = True,
    max_length: int = 32,
    truncation_side: Side = "right",
) -> ModelId:
    """Publish a tiny model whose logits are those of `TinyWeights.drawn(len(labels), seed)`."""
    with tempfile.TemporaryDirectory() as folder:
        draft, files = tiny_draft(
            Path(folder),
            name,
            pair=pair,
            problem=problem,
            labels=labels,
            seed=seed,
            batch_invariant=batch_invariant,
            max_length=max_length,
            truncation_side=truncation_side,
        )
        return store.publish(draft, files, aliases)
