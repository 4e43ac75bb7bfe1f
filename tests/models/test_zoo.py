"""The students that are built in."""

import pytest
import torch
from torch import nn

from kd.models.student import load_student
from kd.models.zoo import STUDENTS, student_side
from tests.support import toys


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("size", [28, 32, 64])
def test_every_student_takes_small_pictures_and_has_a_sensible_last_map(name, size):
    student = load_student(name, toys.CLASSES, student_side(name, None, size), seed=0)
    side = student.normalization.size[0]
    assert side >= size
    maps = []

    def note(module, inputs, output):
        if isinstance(module, nn.Conv2d) and output.shape[-1] > 1:
            maps.append(output.shape[-1])

    for module in student.model.modules():
        module.register_forward_hook(note)
    with torch.inference_mode():
        logits = student.model(pixel_values=torch.zeros(2, 3, side, side)).logits
    assert logits.shape == (2, 3) and student.model.config.id2label == dict(enumerate(toys.CLASSES))
    assert maps[-1] >= 2
