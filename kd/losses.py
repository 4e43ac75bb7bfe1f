"""Losses: pure functions of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class DistillationLoss(NamedTuple):
    """``total = (1 - lambda) * hard + lambda * soft``, scalars in the dtype that they were computed in."""

    total: Tensor
    soft: Tensor
    hard: Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    lambda_: float,
    reduction: str = "mean",
) -> DistillationLoss:
    """Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network* (2015, arXiv:1503.02531).

    ``soft`` is T^2 KL(teacher || student), both softened by T, so that its gradient keeps the size that it has at
    T = 1 (section 2); ``hard`` is cross-entropy with the labels.

    Args:
        student_logits: ``[B, C]``, float64, float32 or a half type (which is computed in float32).
        teacher_logits: ``[B, C]``; no gradient flows into it.
        labels: ``[B]`` class indices.
        temperature: T > 0.
        lambda_: weight of the soft loss, 0 to 1.
        reduction: ``mean`` over the batch, or ``sum``.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"The student's logits have the shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}. Both must be [batch, classes] over the same classes."
        )
    dtype = torch.promote_types(student_logits.dtype, torch.float32)  # a half type has too few digits for logarithms
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    soft = divergence * temperature**2
    hard = F.cross_entropy(student, labels, reduction="sum")
    if reduction == "mean":
        soft, hard = soft / len(labels), hard / len(labels)
    return DistillationLoss((1 - lambda_) * hard + lambda_ * soft, soft, hard)
