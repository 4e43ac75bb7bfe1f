"""Where teacher and student differ: calibration, confusion and divergence against their formulas, and the analysis of four pictures."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from kd.config import DistillConfig
from kd.data.splits import load_splits
from kd.evaluation.disagreement import (
    analyse,
    calibration,
    confusion,
    disagreements,
    jensen_shannon,
    lost_most,
    per_class_f1,
    save_analysis,
)
from tests.support import toys


def test_the_calibration_error_is_the_mean_gap_of_its_bins():
    rng = np.random.default_rng(8)
    logits, labels = rng.normal(0, 2, (400, 5)), rng.integers(0, 5, 400)
    found = calibration(logits, labels, bins=10)
    sure = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    gap = 0.0
    for b in range(10):
        inside = (sure > b / 10) & (sure <= (b + 1) / 10)
        assert found["count"][b] == inside.sum()
        if not inside.any():
            assert found["confidence"][b] is None and found["accuracy"][b] is None
            continue
        confidence, accuracy = sure[inside].mean(), np.mean(logits[inside].argmax(1) == labels[inside])
        assert (found["confidence"][b], found["accuracy"][b]) == (pytest.approx(confidence), pytest.approx(accuracy))
        gap += inside.mean() * abs(confidence - accuracy)
    assert found["ece"] == pytest.approx(gap) and found["count"][0] == 0


def test_a_model_that_is_always_sure_and_half_right_is_off_by_a_half():
    found = calibration(np.array([[1e4, 0], [1e4, 0]]), np.array([0, 1]))
    assert found["ece"] == 0.5 and found["count"] == [0] * 14 + [2]


def test_confusion_and_f1_are_counts_class_by_class():
    rng = np.random.default_rng(9)
    predictions, labels = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    matrix = confusion(predictions, labels, classes=5)
    for truth, said in itertools.product(range(5), repeat=2):
        assert matrix[truth, said] == np.sum((labels == truth) & (predictions == said))
    precision, recall = (np.diag(matrix)[:4] / matrix.sum(axis)[:4] for axis in (0, 1))
    assert per_class_f1(matrix) == pytest.approx([*2 * precision * recall / (precision + recall), 0])


@pytest.mark.parametrize(("prediction", "label"), [(3, 0), (0, 3), (-1, 1)])
def test_a_class_that_does_not_exist_is_not_counted_as_another(prediction, label):
    with pytest.raises(ValueError, match="there are 3 classes"):
        confusion(np.array([0, prediction]), np.array([0, label]), classes=3)


def test_only_classes_that_lost_are_among_those_that_lost_most():
    teacher, student = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0.85, 0.5, 0.7, 0.7, 0.4])
    assert lost_most(teacher, student, "abcde", most=2) == [("b", pytest.approx(30)), ("e", pytest.approx(10))]
    assert [name for name, _ in lost_most(teacher, student, "abcde", most=9)] == ["b", "e", "a"]


def test_jensen_shannon_is_the_entropy_that_mixing_adds():
    rng = np.random.default_rng(10)
    teacher, student = rng.normal(0, 3, (2, 50, 6))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (teacher, student))
    entropy = [-np.sum(x * np.log2(x), axis=1) for x in ((p + q) / 2, p, q)]
    assert jensen_shannon(teacher, student) == pytest.approx(entropy[0] - (entropy[1] + entropy[2]) / 2)


def test_certain_answers_are_a_whole_bit_apart_or_none():
    certain = np.array([[1e5, -1e5, 0.0], [0.0, 1e5, -1e5]])
    assert jensen_shannon(certain, certain[::-1]) == pytest.approx([1, 1])
    assert jensen_shannon(certain, certain + 7) == pytest.approx([0, 0])


def test_disagreements_are_the_notable_ones_farthest_apart_first():
    teacher = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    student = np.log([[0.85, 0.15], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])
    assert disagreements(teacher, student).tolist() == [1, 4, 2]
    assert disagreements(teacher, student, most=1).tolist() == [1]
    with pytest.raises(ValueError, match="same pictures and classes"):
        disagreements(teacher, student[:1])


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
