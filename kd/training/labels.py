"""Handle images without labels, which the teacher labels, and images of classes that the teacher does not know."""

import dataclasses

import numpy as np

from kd.config import DistillConfig
from kd.data.pixels import Pixels
from kd.data.splits import Splits
from kd.errors import UserError
from kd.evaluation.scoring import quality
from kd.models.teacher import Teacher

# Share of the images from which one predicted class counts as that of nearly all images.
NEARLY_ALL = 0.95


def with_teacher_classes(splits: Splits, teacher: Teacher | None, config: DistillConfig) -> Splits:
    """Return the splits of a dataset without labels with the teacher's classes as their classes.

    Raises ``UserError`` where the run needs labels.
    """
    if teacher is None:
        raise UserError(
            "The pictures have no labels and there is no teacher, so there is nothing to learn. Put each class's pictures "
            "into a folder of their own, or choose a teacher."
        )
    if config.baseline == "yes" or config.lambda_ == 0:
        raise UserError(
            "The pictures have no labels, so nothing can be learned from them without the teacher: there can be no "
            "baseline, and lambda cannot be 0. Leave out the baseline and choose lambda 1, or put each class's pictures "
            "into a folder of their own."
        )
    if config.labels:
        raise UserError(
            "The pictures have no labels, so none can be kept. Leave out --labels, or put each class's pictures into a folder of "
            "their own.",
            setting="labels",
        )
    if config.label_map:
        raise UserError("The pictures have no labels, so there are no classes to map. Leave out the label map.")
    if len(teacher.classes) < 2:
        raise UserError(f"The teacher {config.teacher!r} knows one class only: there is nothing to learn from it.")
    warning = (
        f"The pictures have no labels: the student learns the teacher's {len(teacher.classes)} classes from the teacher "
        "alone, and agreement with the teacher on held-out pictures takes the place of accuracy. It says how well the "
        "student copies, not how often either is right."
    )
    if config.lambda_ < 1:
        warning += f" Lambda is 1, not {config.lambda_:g}."
    return dataclasses.replace(splits, classes=teacher.classes, warnings=[warning, *splits.warnings])


def check_known(splits: Splits, teacher: Teacher, compared: bool) -> None:
    """Raise ``UserError`` where a split has too few images of the classes that the teacher knows to measure agreement.

    Validation and test need one such image each; test needs two where distilled and baseline students are ``compared``.
    """
    for name in ("validation", "test"):
        known = known_rows(teacher, getattr(splits, name)["label"]).sum()
        if splits.labelled and known < (2 if compared and name == "test" else 1):
            raise UserError(
                f"The {name} split has {'only one' if known else 'no'} picture of a class that the teacher knows, so whether "
                "the student agrees with it cannot be measured. Add some, or match more classes with a label map (--label-map)."
            )


def known_rows(teacher: Teacher, labels: np.ndarray | list[int]) -> np.ndarray:
    """Return, bool ``[N]``, which images are of classes that the teacher knows, from their ``labels`` ``[N]``."""
    return np.ones(len(labels), bool) if teacher.known is None else teacher.known.cpu().numpy()[np.asarray(labels)]


def label_by_teacher(pixels: Pixels, logits: np.ndarray) -> Pixels:
    """Return the same images, each labelled with the most likely class of the teacher's ``logits`` ``[N, C]``."""
    return dataclasses.replace(pixels, labels=np.asarray(logits).argmax(-1))


def check_variety(logits: np.ndarray, classes: list[str]) -> list[str]:
    """Return a warning where the teacher's logits ``[N, C]`` put nearly all images without labels into one class."""
    counts = np.bincount(logits.argmax(-1), minlength=len(classes))
    if counts.max() < NEARLY_ALL * len(logits):
        return []
    return [
        f"The teacher says {classes[counts.argmax()]} of {counts.max() / len(logits):.0%} of the validation pictures: there "
        "is little to learn from it, and agreeing with it is easy. Was it trained on pictures like these?"
    ]


def accuracy_on_known_classes(
    splits: Splits, teacher: Teacher | None, logits: dict[str, np.ndarray], labels: np.ndarray
) -> list[str]:
    """Say how accurate both models are on the test images whose classes the teacher knows, if it does not know all.

    On images of other classes the teacher cannot be right.
    """
    if not splits.labelled or teacher is None or teacher.known is None:
        return []
    rows = known_rows(teacher, labels)
    right = {name: quality(answers[rows], labels[rows])["accuracy"] for name, answers in logits.items()}
    return [
        f"On the {rows.sum():,} of {len(rows):,} test pictures whose classes the teacher knows, it is right on "
        f"{right['teacher']:.1%} and the student on {right['student']:.1%}. The reported accuracies are over all test pictures."
    ]
