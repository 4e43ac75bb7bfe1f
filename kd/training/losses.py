"""Losses: pure functions of tensors, and ``Method``, which names one with its settings.

Every loss takes logits ``[B, C]`` (B pictures, C classes) in float64, float32 or a half type, which is computed in
float32, and gives a scalar, the mean over the pictures. No gradient flows into the teacher. All stay finite, value and
gradient, for logits as far apart as +-1e4, as no logarithm is ever taken of a probability.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.config import METHODS
from kd.errors import UserError


def hinton_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), both softened by T: Hinton, Vinyals and Dean (2015, arXiv:1503.02531).

    The factor T^2 keeps the gradient the size that it has at T = 1 (section 2).

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        temperature: T > 0.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return temperature**2 * _kl(student / temperature, teacher / temperature)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled distillation, T^2 (alpha TCKD + beta NCKD): Zhao et al. (CVPR 2022, arXiv:2203.08679).

    TCKD is the KL divergence of (the label, anything else), NCKD that of the classes other than the label among
    themselves. Hinton's loss is TCKD + (1 - p) NCKD, p being the teacher's probability of the label (equation 7): the
    surer the teacher, the less of NCKD is left. With two classes NCKD is 0 and TCKD is Hinton's loss.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        labels: ``[B]`` class indices.
        temperature: T > 0.
        alpha: weight of TCKD.
        beta: weight of NCKD.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student, teacher = (logits / temperature for logits in _pair(student_logits, teacher_logits))
    target = labels[:, None]
    others = torch.arange(student.shape[1] - 1, device=labels.device)
    others = others + (others >= target)  # [B, C - 1]: every class but the label

    def binary(logits: Tensor) -> Tensor:
        rest = logits.gather(1, others).logsumexp(1, keepdim=True)
        return torch.cat([logits.gather(1, target), rest], dim=1)

    tckd = _kl(binary(student), binary(teacher))
    nckd = _kl(student.gather(1, others), teacher.gather(1, others))
    return temperature**2 * (alpha * tckd + beta * nckd)


def dist(
    student_logits: Tensor, teacher_logits: Tensor, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0
) -> Tensor:
    """Distillation of relations, tau^2 (beta inter + gamma intra): Huang et al. (NeurIPS 2022, arXiv:2205.10536).

    ``inter`` is 1 - Pearson correlation of a picture's softened probabilities, student and teacher, mean over the
    pictures; ``intra`` is that of a class's probabilities over the batch, mean over the classes. Something constant
    correlates with nothing (0). What has no meaning is left out: ``inter`` with two classes, where two numbers always
    correlate by 1 or -1, and ``intra`` with a batch of one picture. Where both are left out the result is a plain 0.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        beta: weight of ``inter``.
        gamma: weight of ``intra``.
        tau: temperature > 0. The factor tau^2 is the official code's.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student, teacher = ((logits / tau).softmax(1) for logits in _pair(student_logits, teacher_logits))
    pictures, classes = student.shape
    loss = student.new_zeros(())
    if classes > 2:
        loss = loss + beta * (1 - _pearson(student, teacher, dim=1).mean())
    if pictures > 1:
        loss = loss + gamma * (1 - _pearson(student, teacher, dim=0).mean())
    return tau**2 * loss


def standardised(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """``[B, C]`` logits with mean 0 and standard deviation 1 in each picture: Sun et al. (CVPR 2024, arXiv:2403.01427).

    So the student need not match how sure its teacher is, only the order and the proportions of its logits. The
    deviation is the sample's (C - 1), as in the official code; logits that are all the same become 0.
    """
    logits = _wide(logits)
    deviation, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (eps + deviation)


@dataclass(frozen=True)
class Method:
    """What a student learns from its teacher: ``method(student_logits, teacher_logits, labels)`` is a scalar.

    Attributes:
        name: one of ``kd.config.METHODS``; ``+std`` standardises both logits first.
        temperature: T > 0; for ``dist`` it is tau.
        dkd_alpha: weight of the label against the rest.
        dkd_beta: weight of the rest among themselves.
        dist_beta: weight of the relations between classes.
        dist_gamma: weight of the relations between pictures.
        weight: multiplies the result.

    Raises:
        ValueError: for a name that is not among ``METHODS``; when called, for logits of different shapes.
    """

    name: str = "kd"
    temperature: float = 5.0
    dkd_alpha: float = 1.0
    dkd_beta: float = 8.0
    dist_beta: float = 1.0
    dist_gamma: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _known(self.name)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        logits = student_logits, teacher_logits
        if self.name.endswith("+std"):
            logits = standardised(student_logits), standardised(teacher_logits)
        match self.name.removesuffix("+std"):
            case "dkd":
                loss = dkd(*logits, labels, self.temperature, self.dkd_alpha, self.dkd_beta)
            case "dist":
                loss = dist(*logits, self.dist_beta, self.dist_gamma, self.temperature)
            case _:
                loss = hinton_kd(*logits, self.temperature)
        return self.weight * loss


def check_classes(name: str, classes: int, whose: str = "The data has") -> list[str]:
    """What is lost, in words, when a method meets so few classes; nothing above two. ``whose`` begins the words.

    Raises:
        UserError: where nothing of the method would be left.
        ValueError: for a name that is not among ``METHODS``.
    """
    if _known(name) == "kd" or classes > 2:
        return []
    found = f"{whose} two classes, and {name} is made for three or more"
    if name == "dkd":
        return [f"{found}: its second term is always 0, what is left is the first. Use kd for the same loss."]
    if name == "dist":
        return [f"{found}: its inter-class term is left out, the intra-class term stays. Use kd to lose nothing."]
    raise UserError(
        f"{found}: the standardised logits of two classes are always the same two numbers (+0.71 and -0.71), "
        "so nothing about the teacher is left but which class it prefers. Choose kd or dist instead."
    )


class DistillationLoss(NamedTuple):
    """Scalars in the dtype that they were computed in.

    ``total = (1 - lambda) * hard + lambda * soft_weight * soft``; without a teacher ``total = hard`` and ``soft`` is 0. The
    same holds picture by picture where the teacher does not know every class.
    """

    total: Tensor
    soft: Tensor
    hard: Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    temperature: float,
    lambda_: float,
    reduction: str = "mean",
    *,
    method: Method | None = None,
    soft_weight: float = 1.0,
    known: Tensor | None = None,
) -> DistillationLoss:
    """The labels and the teacher, weighed: ``hard`` is cross-entropy with the labels, ``soft`` is the method's loss.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``, or None where there is no teacher (a baseline): ``total`` is ``hard``, unweighted.
        labels: ``[B]`` class indices.
        temperature: T > 0 of ``hinton_kd``; a ``method`` brings its own.
        lambda_: weight of the soft loss, 0 to 1.
        reduction: ``mean`` over the batch, or ``sum``, which is the mean times B.
        method: the soft loss; None is ``hinton_kd`` at ``temperature``.
        soft_weight: multiplies the soft loss in ``total`` only, so that a warm-up (DKD's) does not show in ``soft``.
        known: bool ``[C]``, the classes that the teacher knows; None is all. Pictures of the others have no soft loss, and
            the whole of the hard one; the soft loss is that of the known classes' logits alone.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student = _wide(student_logits)
    if teacher_logits is not None and known is not None:
        soft, hard, total = _partly_taught(
            student, teacher_logits, labels, known, method or Method("kd", temperature), lambda_, soft_weight
        )
    elif teacher_logits is None:
        soft = student.new_zeros(())
        total = hard = F.cross_entropy(student, labels)
    else:
        soft = (method or Method("kd", temperature))(student, teacher_logits, labels)
        hard = F.cross_entropy(student, labels)
        total = (1 - lambda_) * hard + lambda_ * soft_weight * soft
    pictures = len(labels) if reduction == "sum" else 1
    return DistillationLoss(total * pictures, soft * pictures, hard * pictures)


def _partly_taught(
    student: Tensor, teacher: Tensor, labels: Tensor, known: Tensor, method: Method, lambda_: float, soft_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``soft``, ``hard`` and ``total``, means over all pictures of a batch, of which those of ``known`` classes are taught."""
    taught = known[labels]  # [B]
    hard_each = F.cross_entropy(student, labels, reduction="none")
    soft = student.new_zeros(())
    if taught.any():
        place = known.cumsum(0) - 1  # a known class's place among them
        of_known = (logits[taught][:, known] for logits in (student, teacher))
        soft = method(*of_known, place[labels[taught]]) * taught.float().mean()
    total = (hard_each * (1 - lambda_ * taught)).mean() + lambda_ * soft_weight * soft
    return soft, hard_each.mean(), total


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r}. Choose one of {', '.join(METHODS)}.")
    return name


def _wide(logits: Tensor) -> Tensor:
    """At least float32: a half type has too few digits for logarithms."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pair(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the student's (wide) dtype, the teacher detached. ValueError where their shapes differ."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"The student's logits have the shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}. Both must be [batch, classes] over the same classes."
        )
    student = _wide(student_logits)
    return student, teacher_logits.detach().to(student.dtype)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)), ``[B, C]`` to a scalar, the mean over the pictures."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson correlation along ``dim``.

    `cosine_similarity` bounds each norm from below, where the official code adds to their product: so what equals its
    teacher correlates by exactly 1 however small it is, and what is constant by 0.
    """
    return F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim=dim)
