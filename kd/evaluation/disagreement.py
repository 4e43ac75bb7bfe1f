"""Compare teacher and student on the test split: images they disagree on, confusion by class, and calibration."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.images import open_row
from kd.evaluation.dark_knowledge import softened
from kd.system.files import write_whole

# Most likely classes listed for each image.
TOP = 3

# Longest side in pixels of the images kept for the gallery.
GALLERY_SIDE = 224

# Jensen-Shannon divergence in bits from which two models notably disagree: about 90% against 60% for one of two classes.
DISAGREEMENT = 0.1


def analyse(teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Compare two models by their logits ``[M, C]`` on the same images with ``labels`` ``[M]``.

    Returns:
        ``classes``; for ``teacher`` and ``student`` each ``confusion`` ``[C][C]`` (rows are the true classes), ``f1`` ``[C]``
        and ``calibration``; ``lost_most`` (class, points of F1 lost from teacher to student); ``disagreements``, the largest
        first: ``place`` in M, ``divergence`` (bits), ``truth`` and each model's top three (``label, confidence``).
    """
    models = {}
    for name, logits in (("teacher", teacher), ("student", student)):
        matrix = confusion(logits.argmax(-1), labels, len(classes))
        models[name] = {
            "confusion": matrix.tolist(),
            "f1": per_class_f1(matrix).round(4).tolist(),
            "calibration": calibration(logits, labels),
        }
    divergence = jensen_shannon(teacher, student)
    lost = lost_most(np.array(models["teacher"]["f1"]), np.array(models["student"]["f1"]), classes)
    return {
        "classes": classes,
        **models,
        "lost_most": [{"label": label, "points": round(points, 2)} for label, points in lost],
        "disagreements": [
            {
                "place": int(place),
                "divergence": round(float(divergence[place]), 3),
                "truth": classes[labels[place]],
                "teacher": _top(teacher[place], classes),
                "student": _top(student[place], classes),
            }
            for place in disagreements(teacher, student)
        ],
    }


def _top(logits: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Return the most likely classes of one image, the most likely first: ``label`` and ``confidence`` (a probability)."""
    probabilities = softened(logits, 1.0)
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    return [{"label": classes[index], "confidence": round(float(probabilities[index]), 5)} for index in best]


def save_analysis(found: dict[str, Any], test: Any, indices: np.ndarray, folder: Path) -> None:
    """Save an analysis as ``analysis.json``, with small copies of the images it lists as ``gallery/N.webp``.

    Each disagreement's ``picture`` names its copy, so that a run's folder can be read on a machine without the dataset.
    ``test`` is the test split's dataset, ``indices`` ``[M]`` are the rows that were scored.
    """
    gallery = folder / "gallery"
    gallery.mkdir(exist_ok=True)
    for nth, row in enumerate(found["disagreements"]):
        image = open_row(test[int(indices[row["place"]])])
        image.thumbnail((GALLERY_SIDE, GALLERY_SIDE))
        image.save(gallery / f"{nth}.webp", quality=85)
        row["picture"] = f"gallery/{nth}.webp"
    write_whole(folder / "analysis.json", json.dumps(found))


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """Measure whether a model's confidence matches its accuracy.

    Guo et al., *On Calibration of Modern Neural Networks* (2017, arXiv:1706.04599).

    Args:
        logits: ``[M, C]``.
        labels: ``[M]`` class indices.
        bins: number of bins of equal width: bin b holds the confidences in (b / bins, (b + 1) / bins].

    Returns:
        ``ece``, the expected calibration error (0 to 1, the mean gap between confidence and accuracy), and for each bin
        ``confidence`` and ``accuracy`` (means, None where the bin is empty) and ``count``.
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
    """Count how many images of each class (row) were predicted as each class (column): int ``[C, C]`` from indices ``[M]``.

    Raises ``ValueError`` where an index is not one of the classes, since it would be counted as another class.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    for name, indices in (("prediction", predictions), ("label", labels)):
        strange = indices[(indices < 0) | (indices >= classes)]
        if strange.size:
            raise ValueError(f"A {name} is class {strange[0]}, but there are {classes} classes, 0 to {classes - 1}.")
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


def per_class_f1(confusion: np.ndarray) -> np.ndarray:
    """Return each class's F1 ``[C]`` from a confusion matrix ``[C, C]``; 0 for a class with neither images nor predictions."""
    occurs = confusion.sum(0) + confusion.sum(1)
    return 2 * np.diag(confusion) / np.maximum(occurs, 1)


def lost_most(
    teacher_f1: np.ndarray, student_f1: np.ndarray, names: Sequence[str], most: int = 3
) -> list[tuple[str, float]]:
    """Return the classes whose F1 ``[C]`` fell most from teacher to student: name and points lost, the largest first."""
    lost = 100 * (np.asarray(teacher_f1) - np.asarray(student_f1))
    order = np.argsort(-lost, kind="stable")[:most]
    return [(names[index], float(lost[index])) for index in order if lost[index] > 0]


def jensen_shannon(teacher_logits: np.ndarray, student_logits: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence ``[M]``, 0 to 1 bit, of two models' probabilities, from logits ``[M, C]``.

    Lin, *Divergence measures based on the Shannon entropy* (1991, IEEE Transactions on Information Theory 37). It is
    finite for all finite logits. Raises ``ValueError`` where the shapes differ.
    """
    from scipy.special import rel_entr

    if np.shape(teacher_logits) != np.shape(student_logits):
        raise ValueError(
            f"The teacher's logits have the shape {list(np.shape(teacher_logits))}, the student's "
            f"{list(np.shape(student_logits))}. Both must be [pictures, classes] over the same pictures and classes."
        )
    teacher, student = softened(teacher_logits, 1.0), softened(student_logits, 1.0)
    middle = (teacher + student) / 2
    nats = (rel_entr(teacher, middle) + rel_entr(student, middle)).sum(-1) / 2
    # Rounding can leave the range, so scipy's `jensenshannon`, which takes a square root, is not used: it may give nan.
    return np.clip(nats / math.log(2), 0, 1)


def disagreements(teacher_logits: np.ndarray, student_logits: np.ndarray, most: int = 24) -> np.ndarray:
    """Return the indices of at most ``most`` images on which two models notably disagree, the largest divergence first.

    The measure is ``jensen_shannon`` of their logits ``[M, C]``.
    """
    divergence = jensen_shannon(teacher_logits, student_logits)
    order = np.argsort(-divergence, kind="stable")[:most]
    return order[divergence[order] >= DISAGREEMENT]
