"""Token ids equal to those of transformers, on wild texts and pairs, whatever the tokenizer.json carries."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import BertProcessing, RobertaProcessing, Sequence, TemplateProcessing
from tokenizers.processors import ByteLevel as ByteLevelProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from model_store.encoding import TextEncoder, TextItem, longest_first
from model_store.errors import ClassifierError, InvalidTextError, TextTooLongError
from model_store.manifest import InputContract, Side
from tests.tiny import VOCABULARY, bert_tokenizer, write_tokenizer

MAX_LENGTH = 12
WILD = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab c.,!'-éß漢字🙂\u200b\u0301\t\n", max_size=60),
    st.lists(st.sampled_from(["good", "bad", "film", "[CLS]", "[SEP]", "[PAD]", "</s>", "zzz", "42"]), max_size=20).map(
        " ".join
    ),
)
TEXT = WILD.filter(lambda text: bool(text.strip()))


@dataclass(frozen=True)
class Reference:
    """One tokenizer.json, read by us and by transformers."""

    file: Path
    transformers: PreTrainedTokenizerFast

    def ours(self, *, pair: bool, side: Side = "right", max_length: int = MAX_LENGTH) -> TextEncoder:
        return TextEncoder(self.file, InputContract(pair=pair, max_length=max_length, truncation_side=side))

    def check(self, item: TextItem, side: Side) -> None:
        encoder = self.ours(pair=item.text_pair is not None, side=side)
        ours = encoder.encode(item)
        assert encoder.encode(item) == ours  # its words are known now
        self.transformers.truncation_side = side
        theirs = self.transformers(
            item.text,
            item.text_pair,
            truncation="longest_first",
            max_length=MAX_LENGTH,
            padding=False,
            return_token_type_ids=True,
        )
        assert ours.input_ids == theirs["input_ids"]
        assert ours.token_type_ids == theirs["token_type_ids"]
        whole = self.transformers(item.text, item.text_pair, truncation=False, padding=False)
        assert ours.truncated == (len(whole["input_ids"]) > MAX_LENGTH)


def write_byte_level(path: Path) -> None:
    """A byte-level BPE in the manner of RoBERTa, which puts two separators between the texts of a pair."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>"]
    corpus = ["the film is good", "a bad story and a dull film", "漢字 🙂"]
    tokenizer.train_from_iterator(
        corpus,
        BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False),
    )
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_truncation(max_length=5)
    tokenizer.save(str(path))


@pytest.fixture(scope="module", params=["word_piece", "byte_level"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    write, padding = {"word_piece": (write_tokenizer, "[PAD]"), "byte_level": (write_byte_level, "<pad>")}[
        request.param
    ]
    file = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    write(file)
    read_by_transformers: Any = PreTrainedTokenizerFast  # its constructor has no types
    return Reference(file, read_by_transformers(tokenizer_file=str(file), pad_token=padding))


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


@given(text=TEXT, side=st.sampled_from(["right", "left"]))
@example(text="\x00\u200b", side="right")
@example(text="a " * 500, side="left")
def test_a_text_has_the_ids_that_transformers_gives_it(reference: Reference, text: str, side: Side) -> None:
    reference.check(TextItem(text), side)


@given(first=TEXT, second=TEXT, side=st.sampled_from(["right", "left"]))
@example(first="a " * 100, second="b " * 100, side="right")
@example(first="a " * 100, second="b", side="left")
@example(first="a", second="b " * 100, side="left")
def test_a_pair_has_the_ids_that_transformers_gives_it(
    reference: Reference, first: str, second: str, side: Side
) -> None:
    reference.check(TextItem(first, second), side)


@given(first=st.integers(0, 30), second=st.integers(0, 30), room=st.integers(0, 30))
def test_longest_first_keeps_all_that_fits_and_cuts_the_longer_text(first: int, second: int, room: int) -> None:
    kept = longest_first(first, second, room)
    assert sum(kept) == min(first + second, room)
    assert kept[0] <= first
    assert kept[1] <= second
    if kept[0] < first and kept[1] < second:
        assert abs(kept[0] - kept[1]) <= 1


def test_the_files_own_truncation_and_padding_are_ignored(tokenizer_file: Path) -> None:
    encoder = TextEncoder(tokenizer_file, InputContract(max_length=32))
    text = "a b c d e f g h i j"
    assert len(encoder.encode(TextItem(text))) == 12
    assert len(encoder.encode(TextItem("a"))) == 3


def test_the_side_of_a_request_overrides_the_manifests(tokenizer_file: Path) -> None:
    encoder = TextEncoder(tokenizer_file, InputContract(max_length=4, truncation_side="right"))
    tokens = {side: encoder.encode(TextItem("a b c d"), side=side).input_ids for side in ("left", "right")}
    assert [VOCABULARY[token] for token in tokens["left"]] == ["[CLS]", "c", "d", "[SEP]"]
    assert [VOCABULARY[token] for token in tokens["right"]] == ["[CLS]", "a", "b", "[SEP]"]


def test_truncation_that_is_refused_says_how_long_the_text_is(tokenizer_file: Path) -> None:
    encoder = TextEncoder(tokenizer_file, InputContract(max_length=4))
    with pytest.raises(TextTooLongError, match=r"6 tokens .* reads 4"):
        encoder.encode(TextItem("a b c d"), truncate=False)
    assert not encoder.encode(TextItem("a b"), truncate=False).truncated


@pytest.mark.parametrize(("pair", "item"), [(False, TextItem("a", "b")), (True, TextItem("a"))])
def test_a_pair_where_single_texts_are_read_is_refused_and_the_reverse(
    tokenizer_file: Path, pair: bool, item: TextItem
) -> None:
    with pytest.raises(InvalidTextError, match="this model reads"):
        TextEncoder(tokenizer_file, InputContract(pair=pair, max_length=8)).encode(item)


@pytest.mark.parametrize("item", [TextItem(""), TextItem(" \n\t"), TextItem("", "b"), TextItem("a", " ")])
def test_an_empty_text_is_refused(tokenizer_file: Path, item: TextItem) -> None:
    with pytest.raises(InvalidTextError, match="empty"):
        TextEncoder(tokenizer_file, InputContract(pair=item.text_pair is not None, max_length=8)).encode(item)


@pytest.mark.parametrize("item", [TextItem("a\ud800b"), TextItem("a", "\udfff")])
def test_half_a_surrogate_pair_is_refused_in_one_line(tokenizer_file: Path, item: TextItem) -> None:
    with pytest.raises(InvalidTextError, match="can't be tokenised") as caught:
        TextEncoder(tokenizer_file, InputContract(pair=item.text_pair is not None, max_length=8)).encode(item)
    assert "\n" not in str(caught.value)


SPECIAL = [(token, VOCABULARY.index(token)) for token in ("[CLS]", "[SEP]")]
TEMPLATE = TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=SPECIAL)


@pytest.mark.parametrize(
    "post_processor",
    [
        TEMPLATE,
        BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        Sequence([BertProcessing(("[SEP]", 3), ("[CLS]", 2)), ByteLevelProcessing(trim_offsets=False)]),
        Sequence([TEMPLATE, ByteLevelProcessing(trim_offsets=False)]),
        TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=SPECIAL),
        None,
    ],
)
@pytest.mark.parametrize("pair", [False, True])
def test_special_tokens_go_where_the_file_says(tmp_path: Path, post_processor: object, pair: bool) -> None:
    made = bert_tokenizer()
    made.post_processor = post_processor
    made.save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(tmp_path / "tokenizer.json", InputContract(pair=pair, max_length=64))
    for text in ("good", "a good film, and a bad film", "ok ok", "good"):
        whole = made.encode(text, "a film" if pair else None)
        ours = encoder.encode(TextItem(text, "a film" if pair else None))
        assert (ours.input_ids, ours.token_type_ids) == (whole.ids, whole.type_ids)


def test_a_tokenizer_that_can_not_read_every_text_reads_those_that_it_can(tmp_path: Path) -> None:
    vocabulary = {"[CLS]": 0, "[SEP]": 1, "good": 2, "film": 3}
    made = bert_tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(tmp_path / "tokenizer.json", InputContract(max_length=8))
    assert encoder.encode(TextItem("good film")).input_ids == [2, 3]
    with pytest.raises(InvalidTextError, match="can't be tokenised"):
        encoder.encode(TextItem("a strange word"))


@pytest.mark.parametrize("content", ["", "{}", "[1]", "{\n"])
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ClassifierError, match=r"tokenizer\.json") as caught:
        TextEncoder(tmp_path / "tokenizer.json", InputContract(max_length=8))
    assert "\n" not in str(caught.value)


def test_threads_that_share_an_encoder_get_the_ids_they_would_get_alone(tokenizer_file: Path) -> None:
    encoder = TextEncoder(tokenizer_file, InputContract(max_length=8))
    texts = ["a b c d e f g h i", "good", "the film is dull and cold and it is not great"] * 30
    alone = [encoder.encode(TextItem(text), side="left") for text in texts]
    found: dict[int, list[object]] = {}
    threads = [
        threading.Thread(
            target=lambda number=number: found.update(
                {number: [encoder.encode(TextItem(text), side="left") for text in texts]}
            )
        )
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == [alone] * 4
