"""Where teacher and student differ, on four pictures made by hand."""

import json

import numpy as np
from PIL import Image

from kd.config import DistillConfig
from kd.data.splits import load_splits
from kd.evaluation.disagreement import analyse, save_analysis
from tests.support import toys

CLASSES = ["blue sky", "green leaf", "red brick"]

LABELS = np.array([0, 1, 2, 2])

TEACHER = np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 9]])

STUDENT = np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 9, 0]])
"""The student takes the last brick for a leaf."""


def test_a_picture_that_only_the_student_gets_wrong_is_what_they_disagree_on():
    found = analyse(TEACHER, STUDENT, LABELS, CLASSES)
    (only,) = found["disagreements"]
    assert (only["place"], only["truth"]) == (3, "red brick")
    assert only["teacher"][0]["label"] == "red brick" and only["student"][0]["label"] == "green leaf"
    assert only["student"][0]["confidence"] == round(float(np.exp(9) / (np.exp(9) + 2)), 5)
    assert only["divergence"] > 0.9


def test_the_confusion_has_the_truth_in_rows_and_the_classes_that_lost_come_first():
    found = analyse(TEACHER, STUDENT, LABELS, CLASSES)
    assert found["student"]["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert found["teacher"]["f1"] == [1, 1, 1]
    assert found["student"]["f1"] == [1, round(2 / 3, 4), round(2 / 3, 4)]
    assert {row["label"] for row in found["lost_most"]} == {"green leaf", "red brick"}
    assert found["lost_most"][0]["points"] == 33.33


def test_who_is_sure_and_wrong_is_badly_calibrated():
    found = analyse(TEACHER, STUDENT, LABELS, CLASSES)
    assert found["teacher"]["calibration"]["ece"] < 0.01
    assert abs(found["student"]["calibration"]["ece"] - 0.25) < 0.01


def test_what_is_kept_can_be_shown_where_the_dataset_is_not(tmp_path):
    for split in ("train", "validation", "test"):
        toys.class_folders(tmp_path / "data" / split, 4, size=300)
    test = load_splits(DistillConfig(dataset=str(tmp_path / "data"))).test
    found = analyse(TEACHER, STUDENT, LABELS, CLASSES)
    save_analysis(found, test, np.array([0, 4, 8, 9]), tmp_path)
    kept = json.loads((tmp_path / "analysis.json").read_text())
    with Image.open(tmp_path / kept["disagreements"][0]["picture"]) as picture:
        assert picture.size == (224, 224)
        red, _, blue = np.asarray(picture.convert("RGB")).mean((0, 1))
        assert red > blue + 50  # row 9 is a brick
