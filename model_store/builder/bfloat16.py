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
    torch.matmul,
    torch.bmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.bmm,
}


class ProductsInFloat32(TorchFunctionMode):
    """Inside the block, what autocast would multiply in bfloat16 is rounded to it and multiplied in float32.

    An instruction for bfloat16 adds up in float32 as well: outputs and gradients are the same but for the order of the
    sums. Without the instructions torch takes ten times as long.
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
        if func not in _PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            product = func(*map(_rounded, args), **{name: _rounded(value) for name, value in named.items()})
        return product.to(torch.bfloat16)


def mixed_precision() -> AbstractContextManager[object]:
    """What a training in bfloat16 runs inside of: nothing where the GPU or the processor computes in it."""
    if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001 - torch says it nowhere else
        return nullcontext()
    return ProductsInFloat32()


def _rounded(value: Any) -> Any:  # noqa: ANN401 - whatever a function of torch's takes
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.bfloat16).float()
    return value
