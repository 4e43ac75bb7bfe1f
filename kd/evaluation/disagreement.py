"""Where teacher and student differ on the test split: pictures, classes, and how sure each is."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.splits import open_row
from kd.evaluation.significance import (
    calibration,
    confusion,
    disagreements,
    jensen_shannon,
    lost_most,
    per_class_f1,
    softened,
)
from kd.runs.run import write_whole

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
