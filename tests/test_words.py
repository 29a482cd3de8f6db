"""Words that are known give the ids that the tokenizer gives the whole text; what isn't plain is left to it."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import Whitespace

from model_store import words
from model_store.words import KnownWords
from tests.tiny import bert_tokenizer, write_tokenizer

PLAIN = string.ascii_letters[:4] + "fil goodm" + string.punctuation + "09 \t\n\r"


def direct(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    write_tokenizer(file)
    read = Tokenizer.from_file(str(file))
    read.no_truncation()
    read.no_padding()
    read.normalizer = BertNormalizer(lowercase=request.param)
    return read


@given(texts=st.lists(st.one_of(st.text(PLAIN, max_size=60), st.text(max_size=30)), min_size=1, max_size=6))
@example(texts=["a\x01b", "a\x7fb", "a\x0bb", "a\x00"])  # what is dropped joins its neighbours
@example(texts=["[CLS] good", "x[SEP]y", "[cls]", "[ CLS ]"])
@example(texts=["fılm", "good", "café", "a b\u2003c"])
@example(texts=["film" * 40, "a" * 33 + " good"])
def test_known_words_have_the_ids_that_the_tokenizer_gives_the_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    known = KnownWords(tokenizer)
    for text in texts + texts:
        ids = known.ids(text)
        assert ids is None or ids == direct(tokenizer, text)


def test_a_plain_text_is_never_asked_about_again(tokenizer: Tokenizer) -> None:
    known = KnownWords(tokenizer)
    text = "a good film, and a bad film!"
    assert known.ids(text) == known.ids(text) == direct(tokenizer, text)


@pytest.mark.parametrize("text", ["", "café", "a\x01b", "[SEP]", "x[sep]"])
def test_what_is_not_plain_is_left_to_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert KnownWords(tokenizer).ids(text) == ([] if text == "" else None)


def test_the_memory_for_words_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST_WORDS", 3)
    known = KnownWords(tokenizer)
    for text in ("a b", "c d", "e f a", "a good film"):
        assert known.ids(text) == direct(tokenizer, text)
        assert len(known._known) <= 3


def test_tokenizers_of_another_kind_are_asked_about_every_text() -> None:
    assert KnownWords(bert_tokenizer()).ids("a") is not None
    assert KnownWords(bert_tokenizer(normalizer=Lowercase())).ids("a") is None
    assert KnownWords(bert_tokenizer(pre_tokenizer=Whitespace())).ids("a") is None
    assert KnownWords(bert_tokenizer(model=WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))).ids("a") is None
    for content in ("GOOD film", "é"):  # found in what the normaliser makes of the text
        made = bert_tokenizer()
        made.add_tokens([AddedToken(content, normalized=True)])
        assert KnownWords(made).ids("a") is None
    made = bert_tokenizer()
    made.add_tokens([AddedToken(f"t{number}") for number in range(60)])
    assert KnownWords(made).ids("a") is None


def test_an_added_word_is_found_whatever_the_case_of_its_letters() -> None:
    made = bert_tokenizer()
    made.add_tokens([AddedToken("GOOD", normalized=True)])
    known = KnownWords(made)
    assert known.ids("a film") == direct(made, "a film")
    assert known.ids("a good film") is None
    assert made.token_to_id("GOOD") in direct(made, "a good film")
