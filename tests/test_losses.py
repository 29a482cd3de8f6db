from __future__ import annotations

import math

import pytest
import torch

from model_store.builder.losses import task_loss


def test_the_single_label_loss_is_the_mean_negative_log_probability() -> None:
    logits, targets = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([1, 0])
    assert task_loss("single_label", logits, targets).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_the_multi_label_loss_is_a_mean_over_rows_and_labels() -> None:
    logits, targets = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1, 0]])
    expected = (math.log(2) + math.log(4)) / 2
    assert task_loss("multi_label", logits, targets).item() == pytest.approx(expected)


def test_the_regression_loss_is_the_mean_square_and_never_broadcasts() -> None:
    logits, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])
    assert task_loss("regression", logits, targets).item() == pytest.approx((1 + 4) / 2)
