"""Where teacher and student differ on the test split: pictures, classes, and how sure each is."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.images import open_row
from kd.evaluation.dark_knowledge import log_softmax, softened
from kd.system.files import write_whole

TOP = 3

SIDE = 224
"""The gallery's pictures have this side in pixels at most."""


def analyse(teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Two models' logits ``[M, C]`` on the same pictures with ``labels`` ``[M]``, compared.

    Returns:
        ``classes``; for ``teacher`` and ``student`` each: ``confusion`` ``[C][C]`` (rows are the truth), ``f1`` ``[C]``
        and ``calibration``; ``lost_most`` (class, points of F1 that the student has less); ``disagreements``, the largest
        first: ``place`` in M, ``divergence`` (bits), ``truth`` and both models' top three (``label, confidence``).
    """
    sides = {}
    for name, logits in (("teacher", teacher), ("student", student)):
        matrix = confusion(logits.argmax(-1), labels, len(classes))
        sides[name] = {
            "confusion": matrix.tolist(),
            "f1": per_class_f1(matrix).round(4).tolist(),
            "calibration": calibration(logits, labels),
        }
    apart = jensen_shannon(teacher, student)
    lost = lost_most(np.array(sides["teacher"]["f1"]), np.array(sides["student"]["f1"]), classes)
    return {
        "classes": classes,
        **sides,
        "lost_most": [{"label": label, "points": round(points, 2)} for label, points in lost],
        "disagreements": [
            {
                "place": int(place),
                "divergence": round(float(apart[place]), 3),
                "truth": classes[labels[place]],
                "teacher": _top(teacher[place], classes),
                "student": _top(student[place], classes),
            }
            for place in disagreements(teacher, student)
        ],
    }


def _top(logits: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """The most likely classes, best first: ``label`` and ``confidence`` (a probability)."""
    chances = softened(logits, 1.0)
    best = np.argsort(-chances, kind="stable")[:TOP]
    return [{"label": classes[index], "confidence": round(float(chances[index]), 5)} for index in best]


def save_analysis(found: dict[str, Any], test: Any, indices: np.ndarray, folder: Path) -> None:
    """Keep an analysis as ``analysis.json``, and small copies of the pictures that it shows as ``gallery/N.webp``, their
    names in ``picture``: a run's folder can be read where the dataset is not.

    ``test`` is the split's dataset, ``indices`` ``[M]`` the rows that were measured.
    """
    gallery = folder / "gallery"
    gallery.mkdir(exist_ok=True)
    for nth, row in enumerate(found["disagreements"]):
        picture = open_row(test[int(indices[row["place"]])])
        picture.thumbnail((SIDE, SIDE))
        picture.save(gallery / f"{nth}.webp", quality=85)
        row["picture"] = f"gallery/{nth}.webp"
    write_whole(folder / "analysis.json", json.dumps(found))


DISAGREEMENT = 0.1  # bits from which two answers differ notably: about 90% against 60% of two classes


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """Whether a model is right as often as it says: Guo et al., *On Calibration of Modern Neural Networks* (2017,
    arXiv:1706.04599).

    Args:
        logits: ``[M, C]``.
        labels: ``[M]`` class indices.
        bins: how many, of equal width: bin b holds the confidences in (b / bins, (b + 1) / bins].

    Returns:
        ``ece``, the expected calibration error (0 to 1: the mean gap between confidence and accuracy), and for each bin
        ``confidence`` and ``accuracy`` (means, None where it is empty) and ``count``.
    """
    probabilities = softened(logits, 1.0)
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count, sure, hits = (np.bincount(place, weights, minlength=bins) for weights in (None, confidence, right))
    return {
        "ece": float(np.sum(np.abs(hits - sure)) / len(confidence)),
        "confidence": [float(total / n) if n else None for total, n in zip(sure, count, strict=True)],
        "accuracy": [float(total / n) if n else None for total, n in zip(hits, count, strict=True)],
        "count": count.tolist(),
    }


def confusion(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """How many pictures of each class (row) were taken for each class (column): int ``[C, C]`` from indices ``[M]``.

    Raises ``ValueError`` where an index is not one of the classes: it would be counted as another.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    for name, indices in (("prediction", predictions), ("label", labels)):
        strange = indices[(indices < 0) | (indices >= classes)]
        if strange.size:
            raise ValueError(f"A {name} is class {strange[0]}, but there are {classes} classes, 0 to {classes - 1}.")
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def per_class_f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class ``[C]`` from a confusion matrix ``[C, C]``; 0 where a class has neither pictures nor predictions."""
    occurs = confusion.sum(0) + confusion.sum(1)
    return 2 * np.diag(confusion) / np.maximum(occurs, 1)


def lost_most(
    teacher_f1: np.ndarray, student_f1: np.ndarray, names: Sequence[str], most: int = 3
) -> list[tuple[str, float]]:
    """The classes whose F1 ``[C]`` fell most from teacher to student: name and points lost, the largest first."""
    lost = 100 * (np.asarray(teacher_f1) - np.asarray(student_f1))
    order = np.argsort(-lost, kind="stable")[:most]
    return [(names[index], float(lost[index])) for index in order if lost[index] > 0]


def jensen_shannon(teacher_logits: np.ndarray, student_logits: np.ndarray) -> np.ndarray:
    """How far apart two models' answers to each picture are: from logits ``[M, C]`` to bits ``[M]``, 0 to 1.

    Lin, *Divergence measures based on the Shannon entropy* (1991, IEEE Transactions on Information Theory 37). In
    logarithms, so that it is finite for any logits that are. Raises ``ValueError`` where the shapes differ.
    """
    if np.shape(teacher_logits) != np.shape(student_logits):
        raise ValueError(
            f"The teacher's logits have the shape {list(np.shape(teacher_logits))}, the student's "
            f"{list(np.shape(student_logits))}. Both must be [pictures, classes] over the same pictures and classes."
        )
    teacher, student = log_softmax(teacher_logits), log_softmax(student_logits)
    middle = np.logaddexp(teacher, student) - math.log(2)
    nats = sum(np.sum(np.exp(log) * (log - middle), axis=-1) / 2 for log in (teacher, student))
    return np.clip(nats / math.log(2), 0, 1)  # rounding alone leaves the range


def disagreements(teacher_logits: np.ndarray, student_logits: np.ndarray, most: int = 24) -> np.ndarray:
    """Indices of the pictures on which the two differ notably, the farthest apart first, at most ``most`` of them, by
    ``jensen_shannon`` of their logits ``[M, C]``."""
    apart = jensen_shannon(teacher_logits, student_logits)
    order = np.argsort(-apart, kind="stable")[:most]
    return order[apart[order] >= DISAGREEMENT]
