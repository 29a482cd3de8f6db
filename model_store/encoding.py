"""A text, or a pair of texts, to token ids: `tokenizers` alone, with ids equal to those of transformers.

A `tokenizer.json` may carry truncation and padding of its own. Both are switched off once, at construction, and
never set again: tokenisers are shared by threads, and truncation differs from request to request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from model_store.errors import ClassifierError, InvalidTextError, TextTooLongError, one_line
from model_store.manifest import InputContract, Side
from model_store.words import KnownWords

_EXAMPLES = ("a", "it is a longer text", "...")


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
                f"{tokenizer_file.name} is not a tokenizer that can be read: {one_line(error)}"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._contract = contract
        self._words = KnownWords(self._tokenizer)
        self._frame = _frame(self._tokenizer, pair=contract.pair) if self._words.usable else []
        self._room: int = contract.max_length - self._tokenizer.num_special_tokens_to_add(contract.pair)

    @property
    def room(self) -> int:
        """How many tokens of a text, or of both of a pair, are read beside the special ones."""
        return self._room

    def encode(self, item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
        """Encode one item, cut to the model's `max_length` from `side` (the manifest's unless given).

        Raises:
            InvalidTextError: empty, a pair where the model reads single texts or the reverse, or not encodable.
            TextTooLongError: more tokens than `max_length` and `truncate` is false.
        """
        self._check(item)
        texts = [item.text] if item.text_pair is None else [item.text, item.text_pair]
        try:
            known = self._known(texts)
            # `fast` leaves out where in the text each token came from, which nobody asks for here.
            found = (
                []
                if known
                else [self._tokenizer.encode_batch_fast([one], add_special_tokens=False)[0] for one in texts]
            )
        except Exception as error:  # the Rust side raises a bare Exception, or TypeError for lone surrogates
            raise InvalidTextError(f"the text can't be tokenised: {one_line(error)}") from error
        lengths = [len(sequence) for sequence in known or found]
        too_long = sum(lengths) > self._room
        if too_long and not truncate:
            tokens = sum(lengths) + self._contract.max_length - self._room
            raise TextTooLongError(
                f"the text has {tokens} tokens and the model reads {self._contract.max_length}:"
                " shorten it or allow truncation"
            )
        keep = longest_first(lengths[0], sum(lengths[1:]), self._room) if too_long else ()
        cut = side or self._contract.truncation_side
        if known:
            for number, count in enumerate(keep[: len(known)]):
                ids = known[number]
                known[number] = ids[len(ids) - count :] if cut == "left" else ids[:count]
            return EncodedText(*_framed(self._frame, known), truncated=too_long)
        for encoding, count in zip(found, keep, strict=False):
            encoding.truncate(count, direction=cut)
        whole = self._tokenizer.post_process(*found)
        return EncodedText(whole.ids, whole.type_ids, truncated=too_long)

    def _known(self, texts: list[str]) -> list[list[int]]:
        """Each text's token ids without special tokens, if all of them are made of words; else nothing."""
        if not self._frame:
            return []
        known = []
        for text in texts:
            ids = self._words.ids(text)
            if ids is None:
                return []
            known.append(ids)
        return known

    def _check(self, item: TextItem) -> None:
        if (item.text_pair is not None) != self._contract.pair:
            wanted = "pairs of texts" if self._contract.pair else "single texts"
            raise InvalidTextError(f"this model reads {wanted}")
        if not item.text.strip() or (item.text_pair is not None and not item.text_pair.strip()):
            raise InvalidTextError("the text is empty")


_Frame = list[tuple[int | list[int], int]]
"""What the model reads: a text's number or special tokens, and the token type of either."""


def _framed(frame: _Frame, sequences: list[list[int]]) -> tuple[list[int], list[int]]:
    """Token ids and token types of texts with their special tokens."""
    ids: list[int] = []
    types: list[int] = []
    for part, kind in frame:
        tokens = sequences[part] if isinstance(part, int) else part
        ids += tokens
        types += [kind] * len(tokens)
    return ids, types


def _frame(tokenizer: Tokenizer, *, pair: bool) -> _Frame:
    """Where special tokens go, found with one example and tried on others; empty if it depends on the text."""
    first, *others = ([example, example] if pair else [example] for example in _EXAMPLES)
    frame: _Frame = []
    try:
        whole = tokenizer.encode(*first)
        for token, kind, number in zip(whole.ids, whole.type_ids, whole.sequence_ids, strict=True):
            if number is None:
                frame.append(([token], kind))
            elif (number, kind) not in frame:
                frame.append((number, kind))
        for texts in [first, *others]:
            sequences = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
            whole = tokenizer.encode(*texts)
            if _framed(frame, sequences) != (whole.ids, whole.type_ids):
                return []
    except Exception:  # noqa: BLE001 - the Rust side raises a bare Exception; texts that can be encoded go without a frame
        return []
    return frame


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each of two sequences to keep in `room`, as transformers' `longest_first` does."""
    short, long = sorted((first, second))
    if short + long > room:
        long = max(short, room - short) if short <= room else short
        if short + long > room:
            short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)
