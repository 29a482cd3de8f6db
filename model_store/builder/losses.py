"""The losses that operators train with; every formula is in its docstring, averaged over the batch.

All are computed in float32, whatever precision the models computed their outputs in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from model_store.manifest import Problem


def task_loss(problem: Problem, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The task's own loss of logits `(batch, labels)`.

    - single-label, targets `(batch,)` of positions: `-mean_i log softmax(logits_i)[target_i]`
    - multi-label, targets `(batch, labels)` of 0 and 1: mean over both of `-t·log σ(z) - (1 - t)·log(1 - σ(z))`
    - regression, targets `(batch,)`: `mean_i (logits_i - target_i)²`
    """
    logits = logits.float()
    if problem == "single_label":
        return functional.cross_entropy(logits, targets)
    if problem == "multi_label":
        return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
    return functional.mse_loss(logits.squeeze(-1), targets.to(logits.dtype))


def distillation_loss(
    problem: Problem, student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    """What a student's logits s lose against its teacher's t, both `(batch, labels)`, at temperature T.

    - single-label: `T²·mean_i KL(softmax(t_i/T) ‖ softmax(s_i/T))`, a mean over the batch and a sum over the labels
    - multi-label: `T²·mean_i mean_l KL(σ(t_il/T) ‖ σ(s_il/T))`, of each label's two outcomes
    - regression: `mean_i (s_i - t_i)²`; T has no meaning there

    T² keeps the gradients' size independent of T. Source: Hinton et al., "Distilling the Knowledge" (2015), section 2.
    """
    student, teacher = student.float(), teacher.float()
    if problem == "regression":
        return functional.mse_loss(student, teacher)
    if problem == "multi_label":
        student, teacher = (torch.stack([z, torch.zeros_like(z)], dim=-1).flatten(0, 1) for z in (student, teacher))
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def patient_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """What hidden states at position 0 lose against the teacher's; each of both lists `(batch, tokens, hidden)`.

    `mean_ij ‖ s_ij/‖s_ij‖₂ - t_ij/‖t_ij‖₂ ‖²` over texts i and matched layers j.

    Source: Sun et al., "Patient Knowledge Distillation for BERT Model Compression" (EMNLP 2019), equation 7, as a mean
    where the paper sums, so that the weight does not depend on the number of layers or texts.
    """
    ours, theirs = (
        functional.normalize(torch.stack([states[:, 0].float() for states in side]), dim=-1)
        for side in (student, teacher)
    )
    return (ours - theirs).square().sum(dim=-1).mean()
