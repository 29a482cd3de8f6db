"""The last layer, computed at position 0 alone: lossless where the head reads nothing else of it.

Keys and values are still of every position; queries, output projection, normalisation and feed-forward are of the
first one only. The arithmetic at that position is the same, so logits are equal but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from model_store.builder.layers import set_layers, stack_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Combine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Transform = Callable[[torch.Tensor], torch.Tensor]


class FirstPositionLayer(nn.Module):
    """An encoder layer that gives the output of position 0 alone, `(batch, 1, hidden)`.

    Args:
        layer: the layer that it computes with.
        heads: of its attention.
        projections: the layer's projections to queries, keys and values.
        attended: from the attention's context and the layer's input to what the feed-forward reads.
        fed: from there to the layer's output.
    """

    def __init__(
        self, layer: nn.Module, heads: int, projections: Sequence[nn.Module], attended: Combine, fed: Transform
    ) -> None:
        super().__init__()
        self.layer = layer  # has all the parameters; what follows only refers to parts of it
        self._projections, self._heads = tuple(projections), heads
        self._attended, self._fed = attended, fed

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        head_mask: None = None,  # noqa: ARG002  # passed by position; never set without heads to prune
        position_bias: torch.Tensor | None = None,
        **_: object,
    ) -> tuple[torch.Tensor]:
        """The layer's output for `hidden` `(batch, tokens, hidden)`, as the model's own loop expects it."""
        first = hidden[:, :1]
        mask = attention_mask
        if mask is not None and mask.dim() == 4:
            mask = mask[:, :, :1]
        elif mask is not None:  # 1 and 0 for each token, instead of what is added to the scores
            mask = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        if isinstance(position_bias, torch.Tensor):
            bias = position_bias[:, :, :1]
            mask = bias if mask is None else bias + mask
        query, key, value = self._projections
        context = functional.scaled_dot_product_attention(
            self._split(query(first)), self._split(key(hidden)), self._split(value(hidden)), mask
        )
        return (self._fed(self._attended(context.transpose(1, 2).flatten(2), first)),)

    def _split(self, projected: torch.Tensor) -> torch.Tensor:
        """`(batch, tokens, hidden)` to `(batch, heads, tokens, hidden / heads)`."""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, self._heads, -1).transpose(1, 2)


def trim_last_layer(model: PreTrainedModel) -> bool:
    """Put a `FirstPositionLayer` in the place of the model's last layer; whether its architecture allows that."""
    build = _BUILDERS.get(model.config.model_type)
    if build is None or getattr(model.config, "position_embedding_type", "absolute") != "absolute":
        return False
    layers = stack_of(model)
    trimmed = nn.ModuleList([*layers[:-1], build(layers[-1], model.config.num_attention_heads)])
    set_layers(model, trimmed)
    return True


def _bert(layer: Any, heads: int) -> FirstPositionLayer:  # noqa: ANN401  # transformers' layers share no type
    own = layer.attention.self
    return FirstPositionLayer(
        layer,
        heads,
        (own.query, own.key, own.value),
        lambda context, residual: layer.attention.output(context, residual),  # noqa: PLW0108  # a module given itself would be registered a second time
        lambda x: layer.output(layer.intermediate(x), x),
    )


def _mpnet(layer: Any, heads: int) -> FirstPositionLayer:  # noqa: ANN401
    own, norm = layer.attention.attn, layer.attention.LayerNorm
    return FirstPositionLayer(
        layer,
        heads,
        (own.q, own.k, own.v),
        lambda context, residual: norm(own.o(context) + residual),
        lambda x: layer.output(layer.intermediate(x), x),
    )


def _distilbert(layer: Any, heads: int) -> FirstPositionLayer:  # noqa: ANN401
    own = layer.attention
    return FirstPositionLayer(
        layer,
        heads,
        (own.q_lin, own.k_lin, own.v_lin),
        lambda context, residual: layer.sa_layer_norm(own.out_lin(context) + residual),
        lambda x: layer.output_layer_norm(layer.ffn(x) + x),
    )


# Architectures whose sequence classifiers read position 0 and whose attention is the plain one. DeBERTa's isn't.
_BUILDERS: dict[str, Callable[[Any, int], FirstPositionLayer]] = {
    "bert": _bert,
    "camembert": _bert,
    "distilbert": _distilbert,
    "electra": _bert,
    "mpnet": _mpnet,
    "roberta": _bert,
    "xlm-roberta": _bert,
}
