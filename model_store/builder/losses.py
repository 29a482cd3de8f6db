"""The losses that operators train with; every formula is in its docstring, averaged over the batch."""

from __future__ import annotations

import torch
from torch.nn import functional

from model_store.manifest import Problem


def task_loss(problem: Problem, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The task's own loss of logits `(batch, labels)`.

    - single-label, targets `(batch,)` of positions: `-mean_i log softmax(logits_i)[target_i]`
    - multi-label, targets `(batch, labels)` of 0 and 1: mean over both of `-t·log σ(z) - (1 - t)·log(1 - σ(z))`
    - regression, targets `(batch,)`: `mean_i (logits_i - target_i)²`
    """
    if problem == "single_label":
        return functional.cross_entropy(logits, targets)
    if problem == "multi_label":
        return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
    return functional.mse_loss(logits.squeeze(-1), targets.to(logits.dtype))
