"""The loss against formulas written another way, in NumPy and float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kd import distillation_loss


def logits(seed: int, shape=(6, 5), scale: float = 3.0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(scale).to(dtype)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def softmax(values: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(values / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_the_loss_is_the_sum_that_the_paper_writes(temperature, lambda_):
    student, teacher = logits(0), logits(1)
    p, q = softmax(teacher.numpy(), temperature), softmax(student.numpy(), temperature)
    soft = temperature**2 * np.mean(np.sum(p * np.log(p / q), -1))
    hard = -np.mean(np.log(softmax(student.numpy(), 1.0)[np.arange(6), LABELS]))
    loss = distillation_loss(student, teacher, LABELS, temperature, lambda_)
    assert loss.soft.item() == pytest.approx(soft, rel=1e-12)
    assert loss.hard.item() == pytest.approx(hard, rel=1e-12)
    assert loss.total.item() == pytest.approx((1 - lambda_) * hard + lambda_ * soft, rel=1e-12)


def test_a_student_equal_to_its_teacher_has_no_soft_loss_and_no_gradient_from_it():
    student = logits(0).requires_grad_()
    loss = distillation_loss(student, student.detach().clone(), LABELS, 5.0, 1.0)
    loss.total.backward()
    assert abs(loss.soft.item()) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_lambda_0_is_cross_entropy():
    student = logits(0)
    loss = distillation_loss(student, logits(1), LABELS, 5.0, 0.0)
    torch.testing.assert_close(loss.total, F.cross_entropy(student, LABELS))


def test_the_soft_gradient_is_that_of_the_paper():
    # d/dz [T^2 KL] = T (softmax(z / T) - softmax(v / T)), section 2.1 of the paper
    student = logits(0).requires_grad_()
    distillation_loss(student, logits(1), LABELS, 4.0, 1.0, reduction="sum").total.backward()
    expected = 4.0 * (softmax(student.detach().numpy(), 4.0) - softmax(logits(1).numpy(), 4.0))
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_at_a_high_temperature_it_matches_logits():
    # section 2.1: for large T the gradient is (z - v) / N for logits of mean zero
    student = logits(0, scale=0.1)
    student = (student - student.mean(-1, keepdim=True)).requires_grad_()
    teacher = logits(1, scale=0.1)
    teacher = teacher - teacher.mean(-1, keepdim=True)
    distillation_loss(student, teacher, LABELS, 1000.0, 1.0, reduction="sum").total.backward()
    np.testing.assert_allclose(student.grad.numpy(), (student.detach() - teacher).numpy() / 5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_lose_nothing_but_the_digits_of_their_input(dtype):
    student, teacher = logits(0, scale=30, dtype=dtype), logits(1, scale=30, dtype=dtype)
    loss = distillation_loss(student, teacher, LABELS, 5.0, 0.5)
    exact = distillation_loss(student.double(), teacher.double(), LABELS, 5.0, 0.5)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total.double(), exact.total, rtol=1e-6, atol=1e-6)


def test_extreme_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]]).requires_grad_()
    loss = distillation_loss(student, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([1]), 1.0, 0.5)
    loss.total.backward()
    assert torch.isfinite(loss.total) and torch.isfinite(student.grad).all()


def test_sum_is_mean_times_the_batch():
    mean = distillation_loss(logits(0), logits(1), LABELS, 2.0, 0.5)
    total = distillation_loss(logits(0), logits(1), LABELS, 2.0, 0.5, reduction="sum")
    torch.testing.assert_close(total.total, mean.total * 6)


def test_different_numbers_of_classes_are_refused_in_words():
    with pytest.raises(ValueError, match="same classes"):
        distillation_loss(logits(0), logits(1, (6, 4)), LABELS, 5.0, 0.5)
