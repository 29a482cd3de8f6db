"""What the builder's tests train: a random BERT of 4 layers, and texts whose label is a word in them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from model_store.builder.progress import Meter

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WORDS = ("good", "great", "warm", "bad", "dull", "cold", *(f"w{index}" for index in range(40)))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *WORDS)
ROWS = {"train": 96, "dev": 40, "test": 60}


ARCHITECTURES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "mpnet",
    "deberta",
    "deberta-v2",
    "deberta-v3",
)


def tiny_config(architecture: str = "bert", layers: int = 4) -> PretrainedConfig:
    """The configuration of a model of a few thousand numbers."""
    from transformers import AutoConfig

    third = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    return AutoConfig.for_model(
        architecture.replace("deberta-v3", "deberta-v2"),
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=40,
        # In these families positions count from padding's id, and the server pads with 0 whatever it is.
        pad_token_id=VOCABULARY.index("[MASK]") if architecture in {"roberta", "xlm-roberta", "mpnet"} else 0,
        **({"hidden_dim": 32} if architecture == "distilbert" else {"intermediate_size": 32}),
        **({"type_vocab_size": 1} if "roberta" in architecture else {}),
        **({"embedding_size": 8} if architecture == "electra" else {}),
        # DeBERTa's attention as its published weights have it
        **({"relative_attention": True, "pos_att_type": ["c2p", "p2c"]} if "deberta" in architecture else {}),
        **(third if architecture == "deberta-v3" else {}),
    )


def make_tiny_encoder(
    folder: Path,
    *,
    layers: int = 4,
    labels: tuple[str, ...] | None = None,
    seed: int = 0,
    architecture: str = "bert",
    spread: float = 0.02,
) -> Path:
    """Save a random encoder, or with `labels` a classifier, and its tokenizer as transformers does.

    Its weights have the standard deviation `spread`: with a larger one, decisions differ from text to text untrained.
    """
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = tiny_config(architecture, layers)
    config.initializer_range = spread
    if labels is not None:
        config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    family = AutoModel if labels is None else AutoModelForSequenceClassification
    family.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    backend = Tokenizer(WordPiece({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer()
    backend.pre_tokenizer = BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCABULARY.index("[CLS]")), ("[SEP]", VOCABULARY.index("[SEP]"))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def records(split: str, *, problem: str = "single_label", pair: bool = False, classes: int = 2) -> list[dict[str, Any]]:
    """Rows of a split; no text occurs in two splits. Of more than two classes, each has a word of its own."""
    draw = random.Random(split)
    rows: list[dict[str, Any]] = []
    for index in range(ROWS[split]):
        positive = index % 2 == 0
        words = [*draw.choices(WORDS[6:], k=draw.randint(3, 12)), draw.choice(WORDS[:3] if positive else WORDS[3:6])]
        draw.shuffle(words)
        text = " ".join([*words, *str(["train", "dev", "test"].index(split))])
        label: Any = "positive" if positive else "negative"
        if problem == "multi_label":
            label = [*(name for name, word in (("plot", "w1"), ("cast", "w2")) if word in words), *["nice"][:positive]]
        elif problem == "regression":
            label = float(positive) + 0.1 * (index % 3)
        elif classes > 2:
            label = f"class{index % classes}"
            text = f"{WORDS[6 + index % classes]} {text}"
        row = {"text": text, "label": label}
        rows.append(row | {"text_pair": " ".join(reversed(words))} if pair else row)
    return rows


def write_records(
    folder: Path, problem: str = "single_label", *, pair: bool = False, classes: int = 2
) -> dict[str, str]:
    """Write the splits as JSON lines; their names by split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ROWS:
        lines = [json.dumps(row) for row in records(split, problem=problem, pair=pair, classes=classes)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {split: str(folder / f"{split}.jsonl") for split in ROWS}


def tiny_document(
    folder: Path,
    *,
    encoder: Path | None = None,
    problem: str = "single_label",
    pair: bool = False,
    classes: int = 2,
) -> dict[str, Any]:
    """A recipe's document: data and encoder in `folder`, every kind of step, and a gate that only checks parity."""
    encoder = encoder or make_tiny_encoder(folder / "encoder")
    data: dict[str, Any] = {
        "source": "files",
        "licence": "CC0-1.0",
        **write_records(folder / "data", problem, pair=pair, classes=classes),
    }
    data["problem"] = problem
    if pair:
        data["text_pair"] = "text_pair"
    training = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "checkpoint_steps": 5}
    return {
        "name": "tiny",
        "predecessor_name": "tiny-predecessor",
        "max_length": 24,
        "data": data,
        "predecessor": {"path": str(encoder), "licence": "CC0-1.0"},
        "steps": [
            {"operator": "fine_tune", **training},
            {"operator": "theseus", "layers": 2, **training},
            {"operator": "export"},
            {"operator": "quantize", "min_agreement": 0, "max_metric_drop": 1, "timing_texts": 5},
        ],
    }


class Killed(BaseException):
    """Stands for a kill: nothing in the build may catch it."""


class Recorder:
    """A progress that remembers what it was told, and can kill the build at a point of a step."""

    def __init__(self, kill: tuple[str, int] | None = None) -> None:
        self.notes: list[str] = []
        self.advances: list[tuple[str, int]] = []
        self._kill = kill

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def meter(self, title: str, total: int) -> Iterator[Meter]:
        yield _RecordingMeter(self, title)

    def record(self, title: str, done: int) -> None:
        self.advances.append((title, done))
        if (title, done) == self._kill:
            raise Killed


class _RecordingMeter:
    def __init__(self, recorder: Recorder, title: str) -> None:
        self._recorder, self._title = recorder, title

    def advance(self, done: int, note: str = "") -> None:
        self._recorder.record(self._title, done)
