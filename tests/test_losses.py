from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from model_store.builder.losses import distillation_loss, patient_loss, task_loss


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


def test_distillation_is_the_batch_mean_of_the_divergence_times_the_squared_temperature() -> None:
    teacher, student = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    expected = 0.0
    for taught, own in zip(teacher / 2, student / 2, strict=True):
        p, q = functional.softmax(taught, dim=-1), functional.softmax(own, dim=-1)
        expected += float((p * (p / q).log()).sum()) * 4 / 2
    assert distillation_loss("single_label", student, teacher, 2.0).item() == pytest.approx(expected)


def test_distillation_of_several_labels_is_the_mean_over_each_labels_two_outcomes() -> None:
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
    # σ is 3/4 and 1/2 against 1/2 and 1/2
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation_loss("multi_label", student, teacher, 1.0).item() == pytest.approx(first / 2)


def test_distillation_of_a_regression_is_the_mean_square_at_any_temperature() -> None:
    teacher, student = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert distillation_loss("regression", student, teacher, 7.0).item() == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_a_student_that_agrees_with_its_teacher_loses_nothing(problem: str) -> None:
    logits = torch.randn(5, 1 if problem == "regression" else 3)
    assert distillation_loss(problem, logits, logits.clone(), 3.0).item() == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]


def test_the_temperature_leaves_the_size_of_small_gradients_alone() -> None:
    sizes = []
    for temperature in (1.0, 4.0):
        student = torch.zeros(1, 2, requires_grad=True)
        distillation_loss("single_label", student, torch.tensor([[0.01, 0.0]]), temperature).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_the_patient_loss_is_the_mean_squared_distance_of_unit_vectors_at_position_0() -> None:
    student = [torch.tensor([[[3.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 2.0], [9.0, 9.0]]])]
    teacher = [torch.tensor([[[0.0, 5.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [2.0, 1.0]]])]
    # right angle: 2; same direction: 0
    assert patient_loss(student, teacher).item() == pytest.approx(1.0)
