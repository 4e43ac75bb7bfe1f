"""The check of a dataset before anything is trained on it, and its report."""

import json
from dataclasses import replace
from importlib import import_module

import pytest

from kd.config import DistillConfig
from kd.evaluation import dataset_report
from kd.evaluation.dataset_check import check_dataset as check
from kd.ui import settings
from tests.support.toys import EVIL


@pytest.fixture(scope="module")
def found(bad_dataset, tmp_path_factory) -> dict:
    return check(DistillConfig(dataset=str(bad_dataset), image_size=96), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "words",
    [
        f"No validation picture of {EVIL}",
        f"Fewer than 10 training pictures of {EVIL} (2)",
        f"cat has 32 training pictures, {EVIL} 2: 16 times as many",
        "12 test pictures.",
        "1 of 12 test pictures is in train or validation too",
        "2 pictures have a duplicate with another label",
        "1 of 65 training pictures repeats another one of train",
        "1 file cannot be read",
        "88 pictures are smaller than the student's input of 96 px",
        "1 of 88 pictures are grey, unlike the others",
    ],
)
def test_each_problem_is_found(found, words):
    assert any(words in problem["what"] for problem in found["problems"]), [one["what"] for one in found["problems"]]


def test_problems_are_ranked_by_what_they_do_to_the_result(found):
    points = [problem["points"] for problem in found["problems"]]
    assert points == sorted(points, reverse=True)
    doubled = next(problem for problem in found["problems"] if "of 12 test pictures" in problem["what"])
    assert "up to 8.3 points too good" in doubled["why"] and doubled["points"] == 8.3
    assert all(problem["why"] and problem["do"] for problem in found["problems"])


def test_what_is_found_is_counted_and_named(found):
    assert found["counts"]["validation"] == [6, 6, 0] and found["pictures_in_all"]["train"] == 65
    assert found["sizes"]["smallest"] == found["sizes"]["largest"] == [80, 80] and found["sizes"]["grey"] == 1
    (broken,) = found["unreadable"]
    assert broken["label"] == "cat" and "is not a picture that can be read" in broken["reason"]
    kinds = [(pair["kind"], pair["conflict"]) for pair in found["duplicates"]]
    assert kinds == [("near", True), ("exact", False)]


def test_a_check_is_one_page_without_scripts_and_names_are_text_in_it(found):
    page = dataset_report.page(found)
    assert "<img src=x" not in page and "&lt;img src=x" in page and "<script" not in page and "http" not in page
    assert page.count("data:image/jpeg;base64,") == 3 + 2
    text = "\n".join(dataset_report.lines(found))
    assert "two labels" in text and "unreadable  train: 63" in text
    json.dumps(dataset_report.as_json(found), allow_nan=False)


def test_flags_become_labels_in_advice_and_never_in_names(found):
    advice = {"notes": ["Say it with --label-map."], "pictures": {"sheet": {"--label-map": ""}, "pairs": []}}
    text = dataset_report.body(found | advice, settings.on_page)
    assert "Say it with “Label map”." in text and "<figcaption>--label-map</figcaption>" in text


def test_a_teacher_is_asked_once_and_one_of_other_classes_is_a_problem(colours, teacher, tmp_path, monkeypatch):
    config = DistillConfig(dataset=str(colours), teacher=str(teacher))
    first = check(config, tmp_path, ask_teacher=True)
    assert first["teacher"]["accuracy"] > 0.8 and "right on" in dataset_report.body(first)
    monkeypatch.setattr(import_module("kd.evaluation.scoring"), "score", lambda *_: pytest.fail("asked again"))
    assert check(config, tmp_path, ask_teacher=True)["teacher"] == first["teacher"]
    other = check(DistillConfig(dataset=str(colours)), tmp_path, ask_teacher=True)
    assert other["problems"][0]["what"] == "The teacher cannot be asked." and "10" in other["problems"][0]["why"]
    monkeypatch.undo()
    # what is which is shown where the names differ, also where the teacher cannot be asked
    assert "Which class is which" not in dataset_report.body(first) and "<td>none</td>" in dataset_report.body(other)
    told = check(replace(config, label_map="blue sky=green leaf, green leaf=blue sky"), tmp_path, ask_teacher=True)
    assert [(row["class"], row["teacher"], row["found"]) for row in told["teacher"]["labels"]] == [
        ("blue sky", "green leaf", "label map"), ("green leaf", "blue sky", "label map"), ("red brick", "red brick", "the same name"),
    ]  # fmt: skip
    assert "<td>green leaf</td><td>label map</td>" in dataset_report.body(told) and told["teacher"]["accuracy"] < 0.5
