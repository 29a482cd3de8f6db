"""Rows into batches: their order, and how a batch is padded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from model_store.builder.data import Row, Target
from model_store.encoding import EncodedText, TextEncoder
from model_store.manifest import Problem

Batch = dict[str, torch.Tensor]
Example = tuple[EncodedText, Target]


def encode_row(encoder: TextEncoder, row: Row) -> Example:
    """A row as the trainer holds it."""
    return encoder.encode(row.item), row.target


class LengthGroupedOrder(torch.utils.data.Sampler[int]):
    """Every row once an epoch, in batches of like lengths, as a function of (seed, epoch)."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0  # set by the data loader before every epoch, a resumed one included

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to iterate next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self._seed}:{self._epoch}")  # noqa: S311  # a shuffle, no secret
        order = list(range(len(self._lengths)))
        draw.shuffle(order)
        window = self._batch_size * 20  # sorting within windows keeps batches alike but not always the same
        for start in range(0, len(order), window):
            order[start : start + window] = sorted(order[start : start + window], key=self._lengths.__getitem__)
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        short = [batches.pop()] if len(batches[-1]) < self._batch_size else []
        draw.shuffle(batches)
        return (index for batch in batches + short for index in batch)


class Collator:
    """Pads a list of encoded rows to its longest, as the model's forward pass wants it."""

    def __init__(self, student: PreTrainedModel, problem: Problem) -> None:
        self._pad = student.config.pad_token_id or 0
        self._target_type = torch.long if problem == "single_label" else torch.float32
        self._type_ids = getattr(student.config, "type_vocab_size", 0) > 1

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """`input_ids`, `attention_mask` and `token_type_ids` `(batch, tokens)`, and `labels`."""
        shape = (len(examples), max(len(text) for text, _ in examples))
        ids = torch.full(shape, self._pad, dtype=torch.long)
        mask, types = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for row, (text, _) in enumerate(examples):
            ids[row, : len(text)] = torch.tensor(text.input_ids)
            mask[row, : len(text)] = 1
            types[row, : len(text)] = torch.tensor(text.token_type_ids)
        labels = torch.tensor([target for _, target in examples], dtype=self._target_type)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return batch | ({"token_type_ids": types} if self._type_ids else {})
