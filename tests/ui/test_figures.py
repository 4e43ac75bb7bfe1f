"""Still figures of where teacher and student differ, from answers made by hand; a live curve of a run with a baseline."""

import json

import numpy as np
import pytest

from kd.evaluation.disagreement import analyse
from kd.ui.figures import MOST_CLASSES, analysis_figures, labels, new_points, training_figures

CLASSES = ["blue sky", "green leaf", "<a href='x'>red & brick</a>"]

LABELS = np.array([0, 1, 2, 2])

TEACHER = np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 9]])

STUDENT = np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 9, 0]])
"""The student takes the last brick for a leaf."""


@pytest.fixture(scope="module")
def figures():
    return analysis_figures(analyse(TEACHER, STUDENT, LABELS, CLASSES) | {"labels": "dataset"})


def test_a_confusion_matrix_shows_right_answers_and_wrong_ones_apart(figures):
    right, wrong, text = figures["confusion_student"].data
    assert [list(row) for row in right.z] == [[1, None, None], [None, 1, None], [None, None, 0.5]]
    assert [list(row) for row in wrong.z] == [[None, 0, 0], [0, None, 0], [0, 0.5, None]]
    assert list(text.text) == ["1", "", "", "", "1", "", "", "1", "1"]


def test_both_matrices_have_one_scale_of_colours(figures):
    assert figures["confusion_teacher"].data[1].zmax == figures["confusion_student"].data[1].zmax == 0.5


def test_the_class_that_lost_most_is_on_top_of_the_bars(figures):
    _, student = figures["f1"].data
    assert student.name == "student" and [round(x, 2) for x in student.x] == [0.67, 0.67, 1.0]
    assert figures["f1"].layout.yaxis.autorange == "reversed"


def test_reliability_names_both_errors(figures):
    _, teacher, student = figures["reliability"].data
    assert teacher.name.startswith("teacher, ECE 0.0%") and student.name.startswith("student, ECE 25.0%")
    assert list(student.y) == [0.75]


def test_a_class_name_is_text_and_never_html(figures):
    for figure in figures.values():
        assert "<a" not in json.dumps(figure.to_plotly_json()), figure
    assert labels(["a<b", "x" * 30, "x" * 31]) == ["a&lt;b", "x" * 19 + "…", "x" * 19 + "… (2)"]


def test_of_many_classes_only_those_that_lost_most_are_drawn():
    rng, classes = np.random.default_rng(0), [f"class {i}" for i in range(100)]
    labels = np.repeat(np.arange(100), 5)
    teacher = 9 * np.eye(100)[labels]
    student = teacher + 5 * rng.normal(size=teacher.shape)
    student[:5] = -teacher[:5]  # class 0 is lost
    figures = analysis_figures(analyse(teacher, student, labels, classes) | {"labels": "dataset"})
    assert len(figures["f1"].data[0].y) == MOST_CLASSES and figures["f1"].data[0].y[0] == "class 0"
    right, _ = figures["confusion_student"].data  # too many for figures in the cells
    assert len(right.z) == len(right.z[0]) == MOST_CLASSES
    assert sum(len(json.dumps(figure.to_plotly_json())) for figure in figures.values()) < 200_000


def test_the_curves_of_both_arms_are_side_by_side():
    def training(arm: str) -> list[dict]:
        step = {"epoch": 1.0, "step": 10, "total": 1.0, "soft": 2.0, "hard": 3.0}
        return [
            {"event": "training", "arm": arm, "seed": 0, "step": 0, "nth": 1 + (arm == "baseline")},
            {"event": "step", "arm": arm, "seed": 0, **step},
            {"event": "eval", "arm": arm, "seed": 0, "epoch": 1.0, "step": 10, "accuracy": 0.8, "agreement": 0.9},
        ]

    events = [*training("distilled"), *training("baseline")]
    live, closed = (training_figures(events, epochs)["accuracy"] for epochs in (2, None))
    for figure in (live, closed):
        assert [trace.name for trace in figure.data] == ["student", "agreement", "no teacher"]


def test_two_trainings_that_go_on_at_once_grow_in_one_figure_each_in_its_own_traces():
    begun = [
        {"event": "training", "arm": arm, "seed": 3, "step": 0, "nth": nth}
        for nth, arm in ((2, "baseline"), (1, "distilled"))
    ]
    figure = training_figures(begun, 4)["losses"]
    assert [trace.name for trace in figure.data] == ["total", "soft", "hard", "hard, no teacher"]
    later = [
        {
            "event": "step",
            "arm": arm,
            "seed": 3,
            "step": nth,
            "epoch": float(nth),
            "total": 1.0,
            "soft": 2.0,
            "hard": hard,
        }
        for nth in (1, 2)
        for arm, hard in (("distilled", 3.0), ("baseline", 4.0))
    ]
    trials = new_points(later)
    grown = {trace.name: trials[trace.meta["trial"]]["losses"][trace.meta["field"]] for trace in figure.data}
    assert grown == {"total": [1, 1], "soft": [2, 2], "hard": [3, 3], "hard, no teacher": [4, 4]}
    assert all("accuracy" not in figures and figures["losses"]["x"] == [1, 2] for figures in trials.values())


def test_the_students_curve_is_that_of_the_seed_that_was_kept():
    def training(seed: int, kept: bool) -> list[dict]:
        whose = {"arm": "distilled", "seed": seed}
        return [
            {"event": "training", **whose, "step": 0, "nth": seed + 1},
            {"event": "eval", **whose, "epoch": 1.0, "step": 10, "accuracy": 0.7 + seed / 100, "agreement": 0.9},
            {"event": "arm", **whose, "kept": kept},
        ]

    for kept, first in ((True, 0.71), (False, 0.7)):
        events = [*training(0, True), *training(1, kept), *training(2, False)]
        student = training_figures(events)["accuracy"].data[0]
        assert (student.name, list(student.y)) == ("student", [first])
