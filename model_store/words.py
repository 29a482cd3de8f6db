"""Token ids of words that were met before.

WordPiece walks through every character of every text, though most texts are made of words that it has seen. This takes
as much processor time as a tenth of a small model's inference.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

# Each is some 200 bytes.
_MOST_WORDS = 2**15
_LONGEST = 32
# Of one text. A word alone costs four times what it costs in a text: a text of strange words must not cost that.
_MOST_NEW = 8
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
        added = tokenizer.get_added_tokens_decoder().values()
        # These are found in the text before it is normalised and split; the others after, in whatever that made of it.
        self._added = [token.content for token in added]
        kinds = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
        by_words = all(map(isinstance, kinds, (BertNormalizer, BertPreTokenizer, WordPiece)))
        self._usable = by_words and not any(token.normalized for token in added)
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int] | None:
        """Token ids `(tokens,)` without special tokens; None where the tokenizer itself has to be asked."""
        if not self._usable or not text.isascii() or _CONTROL.search(text):
            return None
        for content in self._added:
            if content in text:
                return None
        ids: list[int] = []
        known, room = self._known, _MOST_NEW
        for word in _WORD.findall(text):
            found = known.get(word)
            if found is None:
                if room == 0 or len(word) > _LONGEST:
                    return None
                room -= 1
                found = self._learn(word)
            ids += found
        return ids

    def _learn(self, word: str) -> list[int]:
        if len(self._known) >= _MOST_WORDS:
            self._known.clear()
        ids: list[int] = self._tokenizer.encode_batch_fast([word], add_special_tokens=False)[0].ids
        self._known[word] = ids
        return ids
