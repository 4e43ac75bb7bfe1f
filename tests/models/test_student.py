"""Loading a student: its seed, its pretrained weights and its new head."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from kd.errors import UserError
from kd.models.student import load_student
from kd.models.zoo import STUDENTS
from tests.support import toys


def test_students_of_one_seed_are_equal_and_of_two_are_not():
    weights = [next(load_student("mobilenet_v2_0.35", toys.CLASSES, 32, seed).model.parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("classes", "changed"),
    [
        (["sky", "leaf", "brick"], {"classifier.1.weight", "classifier.1.bias"}),
        (toys.CLASSES[::-1], {"classifier.1.weight", "classifier.1.bias"}),
        (["Blue_Sky", "green-leaf", "red brick"], set()),
    ],
)
def test_a_pretrained_student_of_as_many_classes_gets_a_new_head_unless_it_knows_these(teacher, classes, changed):
    old = AutoModelForImageClassification.from_pretrained(teacher).state_dict()
    new = load_student(str(teacher), classes, None, seed=0).model.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == changed


def test_pretrained_weights_stay_and_their_momentum_and_dropout_are_healed(tmp_path):
    raw = STUDENTS["mobilenet_v2_0.35"](32, {"num_labels": 5})
    raw.save_pretrained(tmp_path)
    toys.processor(32).save_pretrained(tmp_path)
    student = load_student(str(tmp_path), toys.CLASSES, None, seed=0)
    assert student.pretrained and student.model.config.num_labels == 3
    assert [said.split(" in ")[0] for said in student.repairs] == [
        "BatchNorm momentum 0.997 -> 0.1", "classifier dropout 0.8 -> 0.2"
    ]  # fmt: skip
    assert next(m for m in student.model.modules() if isinstance(m, nn.BatchNorm2d)).momentum == 0.1
    unhealed = load_student(str(tmp_path), toys.CLASSES, None, seed=0, repair=False)
    assert not unhealed.repairs and unhealed.model.config.classifier_dropout_prob == 0.8
    first = next(iter(raw.state_dict()))
    assert torch.equal(student.model.state_dict()[first], raw.state_dict()[first])


def test_an_unknown_student_names_those_there_are():
    with pytest.raises(UserError, match=r"no student 'mobilenet'.*mobilenet_v2_1\.0"):
        load_student("mobilenet", toys.CLASSES, None, seed=0)
