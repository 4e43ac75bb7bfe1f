"""Load a student, with random or pretrained weights, and check that it takes its input size."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ViTImageProcessorPil

from kd.errors import UserError
from kd.models.class_map import nameless, plain_name
from kd.models.depthwise import speed_up_depthwise
from kd.models.pretrained import check_is_classifier, is_local, load_config, load_weights, model_classes
from kd.models.processor import Normalization, load_processor, read_normalization, resized_processor
from kd.models.repair import heal
from kd.models.zoo import BIG_SIDE, STUDENTS, label_config
from kd.system import memory
from kd.system.hub import from_hub


@dataclass(frozen=True)
class Student:
    """A model, its processor, and what was changed in it (``healed``)."""

    model: PreTrainedModel
    processor: Any
    normalization: Normalization
    pretrained: bool
    healed: list[str] = field(default_factory=list)


def load_student(name: str, classes: list[str], side: int | None, seed: int, healing: bool = True) -> Student:
    """Load a student with random weights (a name in ``STUDENTS``), or with pretrained ones (a Hub id or a folder).

    Args:
        name: what to load.
        classes: what it is to tell apart, in this order; pretrained weights get a new head unless they know these.
        side: side of its input in pixels; ``None`` for 224, or for what a pretrained student's processor says.
        seed: of the random weights.
        healing: whether to repair what transformers carries over from TensorFlow (``kd.models.repair``).

    Raises ``UserError`` if it is not there, cannot be reached or does not take this input size.
    """
    torch.manual_seed(seed)
    if name in STUDENTS:
        side = side or BIG_SIDE
        model = STUDENTS[name](side, label_config(classes))
        processor = ViTImageProcessorPil(
            size={"height": side, "width": side}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        student = Student(
            model, processor, read_normalization(processor), pretrained=False, healed=heal(model) if healing else []
        )
    else:
        student = _pretrained_student(name, classes, side, healing)
    check_input_size(name, student, student.normalization.size)
    speed_up_depthwise(student.model)
    return student


def _pretrained_student(name: str, classes: list[str], side: int | None, healing: bool) -> Student:
    if "/" not in name and not Path(os.path.expanduser(name)).is_dir():
        raise UserError(
            f"There is no student {name!r}. The students are {', '.join(STUDENTS)}; or give a Hub id or a folder."
        )

    def load() -> tuple[PreTrainedModel, Any]:
        config = load_config("student", name)
        check_is_classifier(config, name)
        model = load_weights("student", name, ignore_mismatched_sizes=True, **label_config(classes))
        return model if has_classes(config, classes) else renew_head(model), load_processor(name, "student", name)

    model, processor = from_hub("student", name, load, is_local(name))
    if side is not None:
        processor = resized_processor(processor, side)
    healed = heal(model, random=False) if healing else []
    return Student(model, processor, read_normalization(processor), pretrained=True, healed=healed)


def has_classes(config: Any, classes: list[str]) -> bool:
    """Whether a model's outputs are these classes, in this order: by their names, if it has any."""
    theirs = model_classes(config)
    return not nameless(theirs) and list(map(plain_name, theirs)) == list(map(plain_name, classes))


def renew_head(model: PreTrainedModel) -> PreTrainedModel:
    """Fresh weights for all that is not the backbone: a head that fits by its size knows other classes."""
    for name, child in model.named_children():
        if name != model.base_model_prefix:
            for module in child.modules():
                if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
                    module.reset_parameters()
    return model


@torch.inference_mode()
def check_input_size(name: str, student: Student, size: tuple[int, int]) -> None:
    """One picture of ``size`` (height, width) through the student: one that it cannot take is a ``UserError`` here, not in
    the middle of a run."""
    height, width = size
    try:
        student.model.eval()(pixel_values=torch.zeros(1, 3, height, width))
    except (RuntimeError, ValueError) as error:
        if memory.ran_out(error):
            raise
        raise UserError(f"The student {name!r} does not take pictures of {height} x {width} pixels: {error}") from error
