"""Load a student, with random or pretrained weights, and check that it takes its input size."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ViTImageProcessorPil

from kd.errors import UserError
from kd.models.class_map import has_no_names, plain_name
from kd.models.depthwise import speed_up_depthwise
from kd.models.framing import WHOLE, Framing, framed_processor, framing_or_none
from kd.models.pretrained import load_checkpoint, renew_head
from kd.models.probe import probe_student, supported, takes_single_images
from kd.models.processor import Normalization, read_normalization, resized_processor
from kd.models.repair import repair_training_settings
from kd.models.zoo import DEFAULT_SIDE, STUDENTS, label_config


@dataclass(frozen=True)
class Student:
    """A student model with its processor; ``repairs`` are the changes made to its training settings, in words."""

    model: PreTrainedModel
    processor: Any
    normalization: Normalization
    pretrained: bool
    framing: Framing | None = WHOLE
    repairs: list[str] = field(default_factory=list)


def load_student(name: str, classes: list[str], side: int | None, seed: int, repair: bool = True) -> Student:
    """Load a student with random weights (a name in ``STUDENTS``) or with pretrained weights (a Hub id or a folder).

    Args:
        name: a name in ``STUDENTS``, a Hub id or a folder.
        classes: the classes of its outputs, in this order; pretrained weights of other classes get a new head.
        side: side of its input in pixels; ``None`` stands for 224, or for the size in a pretrained student's processor.
        seed: seed of the random weights.
        repair: whether to repair the settings that transformers carries over from TensorFlow (``kd.models.repair``).

    Raises ``UserError`` if the student does not exist, cannot be reached or does not take this input size.
    """
    torch.manual_seed(seed)
    if name in STUDENTS:
        side = side or DEFAULT_SIDE
        model = STUDENTS[name](side, label_config(classes))
        processor = ViTImageProcessorPil(
            size={"height": side, "width": side}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        repairs = repair_training_settings(model) if repair else []
        student = Student(model, processor, read_normalization(processor), pretrained=False, repairs=repairs)
    else:
        student = _pretrained_student(name, classes, side, repair)
    check_input_size(name, student, student.normalization.size)
    speed_up_depthwise(student.model)
    return student


def with_framing(student: Student, size: tuple[int, int], framing: Framing) -> Student:
    """Return a student whose processor shows it this part of an image at ``size``; mean and deviation stay its own."""
    processor = framed_processor(student.processor, size, framing)
    return replace(student, processor=processor, normalization=read_normalization(processor), framing=framing)


def _pretrained_student(name: str, classes: list[str], side: int | None, repair: bool) -> Student:
    """Load a student with pretrained weights and a new head unless it has these classes already."""
    if "/" not in name and not Path(os.path.expanduser(name)).is_dir():
        raise UserError(
            f"There is no student {name!r}. The students are {', '.join(STUDENTS)}; or give a Hub id or a folder."
        )
    loaded = load_checkpoint("student", name, name, classes)
    model, processor, repairs = loaded.model, loaded.processor, loaded.changes
    if not has_classes(loaded.classes, classes):
        renew_head(model, loaded.head)
    if repair:
        repairs = [*repairs, *repair_training_settings(model, random_weights=False)]
    with supported("student", name):
        if side is not None:
            processor = resized_processor(processor, side)
        normalization, framing = read_normalization(processor), framing_or_none(processor)
        return Student(model, processor, normalization, pretrained=True, framing=framing, repairs=repairs)


def has_classes(names: list[str], classes: list[str]) -> bool:
    """Return whether the ``names`` of a model's outputs are those of these classes, in this order."""
    return not has_no_names(names) and list(map(plain_name, names)) == list(map(plain_name, classes))


def check_input_size(name: str, student: Student, size: tuple[int, int]) -> None:
    """Raise ``UserError`` where the student cannot be trained on images of ``size`` (height, width), before a run starts."""
    probe_student(name, student.model, size)


def check_batch_size(name: str, student: Student, batch: int) -> None:
    """Raise ``UserError`` where batches of one image are asked for, and the student cannot be trained on them."""
    if batch == 1 and not takes_single_images(student.model, student.normalization.size):
        raise UserError(
            f"The student {name!r} cannot be trained with a batch size of 1: its BatchNorm layers need the variance of "
            "several values, and see a single one. Choose a batch size of 2 or more, or a larger picture size.",
            setting="batch_size",
        )
