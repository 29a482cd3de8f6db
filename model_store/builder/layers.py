"""A model's stack of layers: find it, put another in its place, and the stack that Theseus trains."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from model_store.builder.batches import Collator, encode_row
from model_store.builder.data import sample
from model_store.builder.errors import WeightsError
from model_store.encoding import TextEncoder
from model_store.manifest import TOKENIZER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from model_store.builder.step import StepContext


class ReplaceableLayers(nn.Module):
    """Stands where a model keeps its list of layers, and gives the model's own loop the layers of the moment.

    While training, module i is the successor's layer i where `gates[i]` is set, else the `spans[i]` consecutive layers
    of the predecessor that it stands for. In evaluation it is the successor alone. `gates` is set by the operator
    before every step.

    Args:
        predecessor: the model's own stack.
        copied: which of its layers the successor's layers start as copies of, in their order.
        spans: how many of its layers each module stands for; they add up to all of them.
    """

    def __init__(self, predecessor: nn.ModuleList, copied: Sequence[int], spans: Sequence[int]) -> None:
        super().__init__()
        self.predecessor = predecessor
        ends = list(itertools.accumulate(spans))
        self._replaced = [slice(end - span, end) for end, span in zip(ends, spans, strict=True)]
        self.successor = nn.ModuleList(copy.deepcopy(predecessor[index]) for index in copied)
        self.successor.requires_grad_(requires_grad=True)
        self.gates = [True] * len(copied)

    def route(self) -> list[nn.Module]:
        """The layers to run now, in order."""
        if not self.training:
            return list(self.successor)
        chosen: list[nn.Module] = []
        for gate, layer, replaced in zip(self.gates, self.successor, self._replaced, strict=True):
            chosen += [layer] if gate else self.predecessor[replaced]
        return chosen

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.route())

    def __len__(self) -> int:
        return len(self.route())

    def __getitem__(self, index: int | slice) -> nn.Module | list[nn.Module]:
        return self.route()[index]


def stack_of(model: PreTrainedModel) -> nn.ModuleList:
    """The list of the model's layers, whatever the architecture calls it.

    Raises:
        WeightsError: the architecture has no such list, or several.
    """
    return _place_of(model)[2]


def set_layers(model: PreTrainedModel, layers: nn.Module) -> None:
    """Put `layers` in the place of the model's stack, and their number into its configuration."""
    owner, name, _ = _place_of(model)
    setattr(owner, name, layers)
    if isinstance(layers, nn.ModuleList):
        model.config.num_hidden_layers = len(layers)


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Leave only some of the model's layers, in the order given."""
    stack = stack_of(model)
    set_layers(model, nn.ModuleList(stack[index] for index in kept))


def layer_similarities(model: PreTrainedModel, folder: Path, context: StepContext, rows: int) -> list[float]:
    """How alike each layer's input and output are: their mean cosine at position 0, over some training texts.

    Args:
        model: in evaluation mode.
        folder: holds its tokenizer.
        context: the task.
        rows: how many texts, evenly spaced.
    """
    encoder = TextEncoder(folder / TOKENIZER_FILE, context.inputs)
    collate = Collator(model, context.data.problem)
    totals = torch.zeros(len(stack_of(model)))
    texts = sample(context.data.splits["train"], rows)
    for row in texts:
        batch = collate([encode_row(encoder, row)])
        del batch["labels"]
        with torch.no_grad():
            states = torch.stack(model(**batch, output_hidden_states=True).hidden_states)[:, 0, 0]
        totals += functional.cosine_similarity(states[:-1], states[1:], dim=-1)
    return [float(total) / len(texts) for total in totals]


def _place_of(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    found = [
        (owner, name, child)
        for owner in model.base_model.modules()
        if not isinstance(owner, (nn.ModuleList, ReplaceableLayers))
        for name, child in owner.named_children()
        if isinstance(child, ReplaceableLayers)
        or (isinstance(child, nn.ModuleList) and len(child) == model.config.num_hidden_layers)
    ]
    if len(found) != 1:
        raise WeightsError(
            f"{type(model).__name__} has {len(found)} lists of {model.config.num_hidden_layers} layers, not one:"
            " its layers can't be replaced"
        )
    return found[0]  # type: ignore[return-value]  # a ReplaceableLayers is only ever replaced, never read as a list
