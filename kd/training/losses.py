"""Distillation losses as pure functions of tensors, and ``Method``, which selects one of them with its settings.

Every loss takes logits ``[B, C]`` (B images, C classes) and returns a scalar, the mean over the images. It computes in
float64 where the logits are float64, otherwise in float32, half types included. No gradient flows into the teacher's
logits. Values and gradients are finite for logits up to +-1e4, because no loss takes the logarithm of a probability.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.config import METHODS
from kd.errors import UserError


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student), both softened by T: Hinton, Vinyals and Dean (2015, arXiv:1503.02531).

    The factor T^2 keeps the gradient as large as it is at T = 1 (section 2 of the paper).

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        temperature: T > 0.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student, teacher = _checked_pair(student_logits, teacher_logits)
    return temperature**2 * _kl(student / temperature, teacher / temperature)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    weights: tuple[float, float] = (1.0, 8.0),
) -> Tensor:
    """Return the decoupled loss, T^2 (alpha TCKD + beta NCKD): Zhao et al. (CVPR 2022, arXiv:2203.08679).

    TCKD is the KL divergence between the two models' probabilities of (the label, any other class). NCKD is the KL
    divergence between their distributions over the classes other than the label. Hinton's loss equals
    TCKD + (1 - p) NCKD, where p is the teacher's probability of the label (equation 7), so a confident teacher
    suppresses NCKD there. With two classes NCKD is 0 and TCKD equals Hinton's loss.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        labels: ``[B]`` class indices.
        temperature: T > 0.
        weights: alpha, the weight of TCKD, and beta, the weight of NCKD.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student, teacher = (logits / temperature for logits in _checked_pair(student_logits, teacher_logits))
    others = _other_classes(labels, student.shape[1])
    tckd = _kl(_label_and_rest(student, labels, others), _label_and_rest(teacher, labels, others))
    nckd = _kl(student.gather(1, others), teacher.gather(1, others))
    return temperature**2 * (weights[0] * tckd + weights[1] * nckd)


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0
) -> Tensor:
    """Return DIST's loss of relations, tau^2 (beta inter + gamma intra): Huang et al. (NeurIPS 2022, arXiv:2205.10536).

    ``inter`` is 1 - the Pearson correlation between the student's and the teacher's softened probabilities of one image,
    averaged over the images. ``intra`` is the same for the probabilities of one class over the batch, averaged over the
    classes. The correlation of a constant is taken as 0. Terms without meaning are left out: ``inter`` with two classes,
    where two numbers always correlate by 1 or -1, and ``intra`` with a batch of one image. Where both are left out the
    loss is 0 and has no gradient.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        beta: weight of ``inter``.
        gamma: weight of ``intra``.
        tau: temperature > 0. The factor tau^2 is taken from the official code.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student, teacher = ((logits / tau).softmax(1) for logits in _checked_pair(student_logits, teacher_logits))
    images, classes = student.shape
    inter = beta * (1 - _pearson(student, teacher, dim=1).mean()) if classes > 2 else student.new_zeros(())
    intra = gamma * (1 - _pearson(student, teacher, dim=0).mean()) if images > 1 else student.new_zeros(())
    return tau**2 * (inter + intra)


def standardise(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Return ``[B, C]`` logits with mean 0 and standard deviation 1 in each image: Sun et al. (CVPR 2024, arXiv:2403.01427).

    A student of standardised logits need not match how confident its teacher is, only the order and the proportions of
    the teacher's logits. As in the official code the deviation is the sample's (C - 1). Logits that are all equal become 0.
    """
    logits = _at_least_float32(logits)
    deviation, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (eps + deviation)


@dataclass(frozen=True)
class Method:
    """A distillation loss with its settings: ``method(student_logits, teacher_logits, labels)`` returns a scalar.

    Attributes:
        name: one of ``kd.config.METHODS``; ``+std`` standardises the logits of both models first.
        temperature: T > 0; for ``dist`` it is tau.
        dkd_alpha: weight of TCKD, the label against all other classes.
        dkd_beta: weight of NCKD, the other classes among themselves.
        dist_beta: weight of the relations between classes.
        dist_gamma: weight of the relations between images.
        weight: factor of the whole loss.

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
        _checked_name(self.name)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        logits = student_logits, teacher_logits
        if self.name.endswith("+std"):
            logits = standardise(student_logits), standardise(teacher_logits)
        match self.name.removesuffix("+std"):
            case "dkd":
                loss = dkd_loss(*logits, labels, self.temperature, (self.dkd_alpha, self.dkd_beta))
            case "dist":
                loss = dist_loss(*logits, self.dist_beta, self.dist_gamma, self.temperature)
            case _:
                loss = kd_loss(*logits, self.temperature)
        return self.weight * loss


def check_classes(name: str, classes: int, subject: str = "The data has") -> list[str]:
    """Return warnings about what a method loses with two classes; none for three classes or more.

    ``subject`` begins each sentence, for example "The teacher knows".

    Raises:
        UserError: where nothing of the method would be left.
        ValueError: for a name that is not among ``METHODS``.
    """
    if _checked_name(name) == "kd" or classes > 2:
        return []
    found = f"{subject} two classes, and {name} is made for three or more"
    if name == "dkd":
        return [f"{found}: its second term is always 0, only the first is left. Use kd for the same loss."]
    if name == "dist":
        return [f"{found}: its inter-class term is left out, the intra-class term stays. Use kd to lose nothing."]
    raise UserError(
        f"{found}: the standardised logits of two classes are always the same two numbers (+0.71 and -0.71), which say "
        "only which class the teacher prefers. Choose kd or dist instead."
    )


class DistillationLoss(NamedTuple):
    """The parts of a distillation loss, as scalars.

    ``total = (1 - lambda) * hard + lambda * soft_weight * soft``; without a teacher ``total = hard`` and ``soft = 0``.
    Where the teacher does not know every class, this holds for each image by itself.
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
    """Combine ``hard``, the cross-entropy with the labels, and ``soft``, the method's loss against the teacher.

    An image without a label has no hard loss, and its soft loss takes the teacher's first choice for the label where the
    method needs one. ``hard`` is the mean over the images that have a label; in ``total`` they have the weight of their
    share of the batch.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``, or None for a baseline without a teacher: then ``total`` is ``hard``, unweighted.
        labels: ``[B]`` class indices, -1 for an image without a label.
        temperature: T > 0 of ``kd_loss``; a ``method`` has its own.
        lambda_: weight of the soft loss, 0 to 1.
        reduction: ``mean`` over the batch, or ``sum``, which is the mean times B.
        method: the soft loss; None is ``kd_loss`` at ``temperature``.
        soft_weight: factor of the soft loss in ``total`` only, so that DKD's warm-up does not show in ``soft``.
        known: bool ``[C]``, the classes that the teacher knows; None stands for all. Images of other classes have no soft
            loss and the full hard loss. The soft loss compares the logits of the known classes only.

    Raises:
        ValueError: where the two do not have the same shape.
    """
    student = _at_least_float32(student_logits)
    method = method or Method("kd", temperature)
    labelled = labels >= 0  # [B]
    hard_each = F.cross_entropy(student, labels, reduction="none", ignore_index=-1)  # [B], 0 without a label
    hard = hard_each.sum() / labelled.sum().clamp(min=1)
    if teacher_logits is None:
        soft, total = student.new_zeros(()), hard_each.mean()
    else:
        classes = torch.where(labelled, labels, teacher_logits.argmax(1))
        if known is None:
            soft, own_weight = method(student, teacher_logits, classes), lambda_
        else:
            soft, own_weight = _soft_of_known(method, student, teacher_logits, classes, known), lambda_ * known[classes]
        total = (hard_each * (1 - own_weight)).mean() + lambda_ * soft_weight * soft
    images = len(labels) if reduction == "sum" else 1
    return DistillationLoss(total * images, soft * images, hard * images)


def _soft_of_known(method: Method, student: Tensor, teacher: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Return the method's loss over the known classes, averaged over all images; an image of another class counts as 0."""
    of_known = known[labels]  # [B]
    if not of_known.any():
        return student.new_zeros(())
    new_index = known.cumsum(0) - 1  # [C]: a known class's index among the known ones
    logits = (values[of_known][:, known] for values in (student, teacher))
    return method(*logits, new_index[labels[of_known]]) * of_known.float().mean()


def _checked_name(name: str) -> str:
    """Return ``name``, or raise ``ValueError`` where there is no such method."""
    if name not in METHODS:
        raise ValueError(f"There is no method {name!r}. Choose one of {', '.join(METHODS)}.")
    return name


def _at_least_float32(logits: Tensor) -> Tensor:
    """Convert half types to float32: they have too few digits for logarithms."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _checked_pair(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in one type, float32 or wider, the teacher's detached; raise ``ValueError`` where their shapes differ."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"The student's logits have the shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}. Both must be [batch, classes] over the same classes."
        )
    student = _at_least_float32(student_logits)
    return student, teacher_logits.detach().to(student.dtype)


def _other_classes(labels: Tensor, classes: int) -> Tensor:
    """Return the indices ``[B, C - 1]`` of every class but the label."""
    others = torch.arange(classes - 1, device=labels.device)
    return others + (others >= labels[:, None])


def _label_and_rest(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Return logits ``[B, 2]`` of two outcomes: the label, and any of the ``others`` ``[B, C - 1]``."""
    return torch.cat([logits.gather(1, labels[:, None]), logits.gather(1, others).logsumexp(1, keepdim=True)], dim=1)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)) of logits ``[B, C]``, averaged over the images."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return the Pearson correlation along ``dim``.

    The official code adds an epsilon to the product of the norms; `cosine_similarity` bounds each norm from below instead.
    So a student equal to its teacher correlates by exactly 1, however small the values, and a constant by 0.
    """
    return F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim=dim)
