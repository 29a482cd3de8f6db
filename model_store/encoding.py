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
        self._contract = contract
        self._room = contract.max_length - self._tokenizer.num_special_tokens_to_add(contract.pair)

    def encode(self, item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
        """Encode one item, cut to the model's `max_length` from `side` (the manifest's unless given).

        Raises:
            InvalidTextError: empty, a pair where the model reads single texts or the reverse, or not encodable.
            TextTooLongError: more tokens than `max_length` and `truncate` is false.
        """
        self._check(item)
        try:
            texts = [item.text] if item.text_pair is None else [item.text, item.text_pair]
            # `fast` leaves out where in the text each token came from, which nobody asks for here.
            first, *rest = (self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0] for text in texts)
        except Exception as error:  # the Rust side raises a bare Exception, or TypeError for lone surrogates
            reason = " ".join(str(error).split())
            raise InvalidTextError(f"the text can't be tokenised: {reason}") from error
        second = rest[0] if rest else None
        lengths = (len(first), 0 if second is None else len(second))
        too_long = sum(lengths) > self._room
        if too_long and not truncate:
            tokens = sum(lengths) + self._contract.max_length - self._room
            raise TextTooLongError(
                f"the text has {tokens} tokens and the model reads {self._contract.max_length}:"
                " shorten it or allow truncation"
            )
        if too_long:
            keep = longest_first(*lengths, self._room)
            for encoding, count in zip((first, second), keep, strict=True):
                if encoding is not None:
                    encoding.truncate(count, direction=side or self._contract.truncation_side)
        whole = self._tokenizer.post_process(first, second)
        return EncodedText(whole.ids, whole.type_ids, truncated=too_long)

    def _check(self, item: TextItem) -> None:
        if (item.text_pair is not None) != self._contract.pair:
            wanted = "pairs of texts" if self._contract.pair else "single texts"
            raise InvalidTextError(f"this model reads {wanted}")
        if not item.text.strip() or (item.text_pair is not None and not item.text_pair.strip()):
            raise InvalidTextError("the text is empty")


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each of two sequences to keep in `room`, as transformers' `longest_first` does."""
    short, long = sorted((first, second))
    if short + long > room:
        long = max(short, room - short) if short <= room else short
        if short + long > room:
            short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)
