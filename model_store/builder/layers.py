"""A model's stack of layers: find it, put another in its place, and the stack that Theseus trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from model_store.builder.errors import WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReplaceableLayers(nn.Module):
    """Stands where a model keeps its list of layers, and gives the model's own loop the layers of the moment.

    While training, module i is the successor's layer i where `gates[i]` is set, else the predecessor's layers
    `i·L/n … (i+1)·L/n - 1`. In evaluation it is the successor alone. `gates` is set by the operator before every step.

    Args:
        predecessor: the model's own stack.
        copied: which of its layers the successor's layers start as copies of, in their order.
    """

    def __init__(self, predecessor: nn.ModuleList, copied: Sequence[int]) -> None:
        super().__init__()
        self.predecessor = predecessor
        self.successor = nn.ModuleList(copy.deepcopy(predecessor[index]) for index in copied)
        self.successor.requires_grad_(requires_grad=True)
        self.gates = [True] * len(copied)

    def route(self) -> list[nn.Module]:
        """The layers to run now, in order."""
        if not self.training:
            return list(self.successor)
        span = len(self.predecessor) // len(self.successor)
        chosen: list[nn.Module] = []
        for index, (gate, layer) in enumerate(zip(self.gates, self.successor, strict=True)):
            chosen += [layer] if gate else self.predecessor[index * span : (index + 1) * span]
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
