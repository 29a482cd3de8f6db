"""Token ids of words that were met before.

WordPiece walks through every character of every text, though most texts are made of words that it has seen. This takes
as much processor time as a tenth of a small model's inference.
"""

from __future__ import annotations

import re
from itertools import groupby
from operator import itemgetter

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

# Each is some 200 bytes, of a word that is all pieces a thousand.
_MOST_WORDS = 2**15
_LONGEST = 32
# Looked for in every text, one by one.
_MOST_ADDED = 50
_WORD = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
# What BERT's normaliser drops from between characters that it leaves, among ASCII.
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")


class KnownWords:
    """Token ids of plain texts word by word; safe to use from several threads.

    It is exact for tokenisers of BERT's kind (also ELECTRA's, DistilBERT's, MPNet's): in ASCII without control
    characters they change each character by itself, split at white space and around each punctuation mark, and look
    words up one by one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        # These are found before the text is split, some in what the normaliser makes of it: whatever the letters' case.
        self._added = [token.content.lower() for token in tokenizer.get_added_tokens_decoder().values()]
        kinds = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
        self.usable = (
            all(map(isinstance, kinds, (BertNormalizer, BertPreTokenizer, WordPiece)))
            and len(self._added) <= _MOST_ADDED
            and all(content.isascii() and len(content.split()) == 1 for content in self._added)
        )
        """Whether the tokenizer is of this kind."""

    def ids(self, text: str) -> list[int] | None:
        """Token ids `(tokens,)` without special tokens; None where the tokenizer itself has to be asked."""
        if not self.usable or not text.isascii() or _CONTROL.search(text):
            return None
        lowered = text.lower()
        for content in self._added:
            if content in lowered:
                return None
        words = _WORD.findall(text)
        ids: list[int] = []
        known = self._known
        for word in words:
            found = known.get(word)
            if found is None:
                return self._learn(text, words)
            ids += found
        return ids

    def _learn(self, text: str, words: list[str]) -> list[int]:
        """Ask the tokenizer once for all words of a text."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if len(self._known) + len(words) > _MOST_WORDS:
            self._known.clear()
        for number, pieces in groupby(zip(encoding.word_ids, ids, strict=True), itemgetter(0)):
            if len(words[number]) <= _LONGEST:
                self._known[words[number]] = [token for _, token in pieces]
        return ids
