"""Products of mixed precision in float32: what the instructions for bfloat16 give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from model_store.builder.bfloat16 import ProductsInFloat32, mixed_precision

# A product's last rounding to bfloat16, which has eight bits of a number, twice.
ROUNDINGS = 2 * 2.0**-8


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what types torch really multiplies, backward too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it gives
        if any(name in str(func) for name in ("mm.", "attention")):
            self.types |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return func(*args, **(kwargs or {}))


class Attention(torch.nn.Module):
    """Every kind of product that an encoder has, and a mask."""

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
        mixed = torch.baddbmm(mixed, shares.to(mixed.dtype), mixed)
        logits: torch.Tensor = self.last(torch.matmul(shares, mixed.float()))
        return logits


def trained(
    products: AbstractContextManager[object], *, autocast: bool = True
) -> tuple[list[torch.Tensor], set[torch.dtype]]:
    """Logits, gradients of inputs and weights; the types that were multiplied."""
    model = Attention()
    tokens = torch.randn(3, 5, 16, requires_grad=True)
    mask = torch.zeros(3, 5, 5).masked_fill(torch.rand(3, 5, 5) < 0.2, -1e4)
    with Products() as seen:
        with products, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(tokens, mask)
        logits.float().square().sum().backward()
    gradients = [tokens.grad, *(parameter.grad for parameter in model.parameters())]
    return [logits.detach(), *(gradient for gradient in gradients if gradient is not None)], seen.types


def test_nothing_is_multiplied_in_bfloat16_and_the_results_are_those_of_bfloat16() -> None:
    (ours, our_types), (theirs, their_types) = trained(ProductsInFloat32()), trained(nullcontext())
    assert torch.bfloat16 not in our_types
    assert torch.bfloat16 in their_types
    assert len(ours) == len(theirs) == 5
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= 4 * ROUNDINGS * other.abs().max()


def test_operands_and_products_are_rounded() -> None:
    below, above = 1 + 2.0**-10, 1 + 2.0**-6  # the first is 1 in bfloat16, the second is itself
    numbers = torch.tensor([[below, above]])
    with ProductsInFloat32(), torch.autocast("cpu", dtype=torch.bfloat16):
        product = numbers @ torch.tensor([[1024.0, 0.0], [0.0, 1024.0]])
        weighed = functional.linear(input=torch.eye(2) * 1024, weight=numbers.expand(2, 2))
    assert product.dtype == weighed.dtype == torch.bfloat16
    assert product.tolist() == [[1024.0, 1040.0]]
    assert weighed.tolist() == [[1024.0, 1024.0], [1040.0, 1040.0]]


def test_without_mixed_precision_nothing_changes() -> None:
    (ours, _), (theirs, _) = (trained(mode, autocast=False) for mode in (ProductsInFloat32(), nullcontext()))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_what_autocast_leaves_alone_is_left_alone(kind: torch.dtype) -> None:
    ones = torch.ones(2, 2).to(kind)
    with ProductsInFloat32(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert (ones @ ones).dtype == kind


@pytest.mark.parametrize(
    ("gpu", "library", "instructions", "ours"),
    [
        (True, True, False, False),
        (False, True, True, False),
        (False, True, False, True),
        (False, False, True, True),
    ],
)
def test_it_is_done_where_nothing_computes_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, library: bool, instructions: bool, ours: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: library)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: instructions)
    assert isinstance(mixed_precision(), ProductsInFloat32) == ours
