"""A text, or a pair of texts, to token ids: `tokenizers` alone, with ids equal to those of transformers.

A `tokenizer.json` may carry truncation and padding of its own. Both are switched off once, at construction, and
never set again: tokenisers are shared by threads, and truncation differs from request to request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from model_store.errors import ClassifierError, InvalidTextError, TextTooLongError
from model_store.manifest import InputContract, Side
from model_store.words import KnownWords

_EXAMPLE = "a text"


@dataclass(frozen=True, slots=True)
class TextItem:
    """One text to classify, or one pair."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids of one item, special tokens included; `input_ids` and `token_type_ids` are `(tokens,)`."""

    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)


class TextEncoder:
    """Encodes items as the model expects them; safe to call from several threads."""

    def __init__(self, tokenizer_file: Path, contract: InputContract) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the Rust side raises a bare Exception for every kind of malformed file
            raise ClassifierError(
                f"{tokenizer_file.name} is not a tokenizer that can be read: {' '.join(str(error).split())}"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._words = KnownWords(self._tokenizer)
        self._contract = contract
        self._frame = _frame(self._tokenizer, pair=contract.pair)
        self._room = contract.max_length - self._tokenizer.num_special_tokens_to_add(contract.pair)

    def encode(self, item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
        """Encode one item, cut to the model's `max_length` from `side` (the manifest's unless given).

        Raises:
            InvalidTextError: empty, a pair where the model reads single texts or the reverse, or not encodable.
            TextTooLongError: more tokens than `max_length` and `truncate` is false.
        """
        self._check(item)
        sequences = [self._ids(item.text)]
        if item.text_pair is not None:
            sequences.append(self._ids(item.text_pair))
        tokens = sum(map(len, sequences))
        too_long = tokens > self._room
        if too_long and not truncate:
            tokens += self._contract.max_length - self._room
            raise TextTooLongError(
                f"the text has {tokens} tokens and the model reads {self._contract.max_length}:"
                " shorten it or allow truncation"
            )
        if too_long:
            cut_left = (side or self._contract.truncation_side) == "left"
            kept = longest_first(len(sequences[0]), tokens - len(sequences[0]), self._room)
            sequences = [
                ids[len(ids) - count :] if cut_left else ids[:count]
                for ids, count in zip(sequences, kept, strict=False)
            ]
        input_ids: list[int] = []
        token_type_ids: list[int] = []
        for sequence, special, kind in self._frame:
            ids = special if sequence is None else sequences[sequence]
            input_ids += ids
            token_type_ids += [kind] * len(ids)
        return EncodedText(input_ids, token_type_ids, truncated=too_long)

    def _ids(self, text: str) -> list[int]:
        """Token ids of a text without special tokens, whole."""
        try:
            known = self._words.ids(text)
            if known is not None:
                return known
            # `fast` leaves out where in the text each token came from, which nobody asks for here.
            ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except Exception as error:  # the Rust side raises a bare Exception, or TypeError for lone surrogates
            reason = " ".join(str(error).split())
            raise InvalidTextError(f"the text can't be tokenised: {reason}") from error
        return ids

    def _check(self, item: TextItem) -> None:
        if (item.text_pair is not None) != self._contract.pair:
            wanted = "pairs of texts" if self._contract.pair else "single texts"
            raise InvalidTextError(f"this model reads {wanted}")
        if not item.text.strip() or (item.text_pair is not None and not item.text_pair.strip()):
            raise InvalidTextError("the text is empty")


_Part = tuple[int | None, list[int], int]
"""A sequence's number, or None and special tokens; and the token type of either."""


def _frame(tokenizer: Tokenizer, *, pair: bool) -> list[_Part]:
    """The order of sequences and special tokens in what the model reads: that of a short example.

    Raises:
        ClassifierError: the tokenizer gives an ordinary text no tokens.
    """
    example = tokenizer.encode(_EXAMPLE, _EXAMPLE if pair else None)
    frame: list[_Part] = []
    for token, kind, sequence in zip(example.ids, example.type_ids, example.sequence_ids, strict=True):
        if sequence is None:
            frame.append((None, [token], kind))
        elif not any(sequence == earlier for earlier, _, _ in frame):
            frame.append((sequence, [], kind))
    if sum(sequence is not None for sequence, _, _ in frame) != 1 + pair:
        raise ClassifierError(f"the tokenizer has no tokens for {_EXAMPLE!r}: it can't read ordinary texts")
    return frame


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each of two sequences to keep in `room`, as transformers' `longest_first` does."""
    short, long = sorted((first, second))
    if short + long > room:
        long = max(short, room - short) if short <= room else short
        if short + long > room:
            short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)
