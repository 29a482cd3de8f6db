"""Mixed precision on processors that do not compute in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_PRODUCTS = {
    functional.linear,
    functional.scaled_dot_product_attention,
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm),
    *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm),
    *(torch.Tensor.addmm, torch.Tensor.baddbmm),
}


class ProductsInFloat32(TorchFunctionMode):
    """Inside the block, the products that autocast would compute in bfloat16 are of rounded operands, in float32.

    An instruction for bfloat16 adds up in float32 as well: a product and its gradients are the same but for the order
    of the sums. Attention as one function is rounded at its ends only. Without the instructions torch takes ten times
    as long. What encoders hardly use (convolutions, einsum) is left to it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it gives
        """Call a function of torch's."""
        named = kwargs or {}
        if func not in _PRODUCTS or not torch.is_autocast_enabled("cpu") or not _is_autocast([*args, *named.values()]):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            product = func(*map(_rounded, args), **{name: _rounded(value) for name, value in named.items()})
        return product.to(torch.bfloat16)


def mixed_precision() -> AbstractContextManager[object]:
    """What a training in bfloat16 runs inside of: nothing where the GPU, or oneDNN on the processor, takes it."""
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    mkldnn = mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - torch says it nowhere else
    return nullcontext() if torch.cuda.is_available() or mkldnn else ProductsInFloat32()


def _is_autocast(values: Sequence[Any]) -> bool:
    """Whether autocast would make bfloat16 of all tensors; a mask of attention may be of truth values."""
    kinds = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    return kinds <= {torch.float32, torch.bfloat16, torch.bool}


def _rounded(value: Any) -> Any:  # noqa: ANN401 - whatever a function of torch's takes
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.bfloat16).float()
    return value
