"""Products of mixed precision in float32: what the instructions for bfloat16 give."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch.nn import functional

from model_store.builder.bfloat16 import ProductsInFloat32, mixed_precision

# bfloat16 has eight bits of a number: two roundings of nearly the same sum.
ROUNDINGS = 2 * 2.0**-8


class Attention(torch.nn.Module):
    """Every kind of product that a classifier has, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(16, 16)
        self.last = torch.nn.Linear(16, 2, bias=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.first(tokens)
        attended = functional.scaled_dot_product_attention(hidden, hidden, hidden, attn_mask=mask)
        shares = torch.softmax(attended @ attended.transpose(1, 2), dim=-1)
        mixed = torch.bmm(shares.to(attended.dtype), attended)
        logits: torch.Tensor = self.last(torch.matmul(shares, mixed.float()))
        return logits


def trained(products: AbstractContextManager[object], *, autocast: bool = True) -> tuple[torch.Tensor, ...]:
    """Logits, and the gradients of inputs and weights."""
    model = Attention()
    tokens = torch.randn(3, 5, 16, requires_grad=True)
    mask = torch.zeros(3, 5, 5).masked_fill(torch.rand(3, 5, 5) < 0.2, -1e4)
    with products, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(tokens, mask)
    logits.float().square().sum().backward()
    assert tokens.grad is not None
    return logits.detach(), tokens.grad, *(parameter.grad for parameter in model.parameters())


def test_products_and_gradients_are_those_of_bfloat16() -> None:
    for ours, theirs in zip(trained(ProductsInFloat32()), trained(nullcontext()), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).abs().max() <= 4 * ROUNDINGS * theirs.abs().max()


def test_they_are_rounded_to_bfloat16() -> None:
    ours, exact = trained(ProductsInFloat32()), trained(nullcontext(), autocast=False)
    assert ours[0].dtype == torch.bfloat16
    assert (ours[0] - exact[0]).abs().max() > ROUNDINGS / 8 * exact[0].abs().max()


def test_without_mixed_precision_nothing_changes() -> None:
    for ours, theirs in zip(
        trained(ProductsInFloat32(), autocast=False), trained(nullcontext(), autocast=False), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("gpu", "instructions", "ours"), [(True, False, False), (False, True, False), (False, False, True)]
)
def test_it_is_done_where_nothing_computes_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, instructions: bool, ours: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: instructions)
    assert isinstance(mixed_precision(), ProductsInFloat32) == ours
