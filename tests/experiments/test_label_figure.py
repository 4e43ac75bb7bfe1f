"""What a label is worth: the figure of a study, and the sentence above it."""

import base64
import json

import numpy as np
import pytest

from kd.cli import main
from kd.errors import UserError
from kd.experiments.label_figure import label_figure, label_rows, sentence
from kd.experiments.study import add_result, compared_settings, load_study

VARY = {
    "teacher": {"labels": 50},
    "50": {"labels": 50, "lambda": 0},
    "500": {"labels": 500, "lambda": 0},
    "all": {"lambda": 0},
}


@pytest.fixture
def made(tmp_path):
    """A function that makes a study of three seeds, in which each label is right on so many of 1,000 test pictures."""

    def make(**right: int):
        path = tmp_path / "study.json"
        path.write_text(json.dumps({"preset": "sample", "settings": {"baseline": "no"}, "vary": VARY}))
        study, rng = load_study(path), np.random.default_rng(0)
        for label, count in right.items():
            for seed in study.seeds:
                bits = np.zeros(1000, bool)
                bits[rng.choice(1000, count + seed, replace=False)] = True
                add_result(study, {
                    "label": label, "seed": seed, "accuracy": bits.mean(), "validation": 1, "epochs": 1, "seconds": 1,
                    "pictures": 1000, "right": base64.b64encode(np.packbits(bits)).decode(), "test": "0",
                    "settings": compared_settings(study.asked(label, seed)),
                })  # fmt: skip
        return study

    return make


@pytest.mark.parametrize(
    ("of_500", "of_all", "said"),
    [
        (700, 901, "With the teacher, 50 labels do as well as all labels without it."),
        (902, 901, "With the teacher, 50 labels do as well as 500 labels without it."),
        (600, 700, "With the teacher, 50 labels do better than all labels without it."),
    ],
)
def test_the_sentence_names_the_first_number_of_labels_that_is_not_worse(made, of_500, of_all, said):
    study = made(teacher=900, **{"50": 500, "500": of_500, "all": of_all})
    assert sentence(label_rows(study)) == said
    taught, alone = label_figure(study).data
    assert list(alone.x) == ["50", "500", "all"] and alone.y[0] == pytest.approx(0.501)
    assert list(taught.y) == pytest.approx([0.901] * 3)  # lambda is 1: no label is used


def test_a_study_without_both_sides_has_no_figure_and_one_with_them_has_it_from_the_command_line(
    made, tmp_path, capsys
):
    with pytest.raises(UserError, match="nothing to draw"):
        label_figure(made(teacher=900))
    study = made(**{"50": 500})
    assert main.main(["study", str(study.path), "--show", "--figure", str(tmp_path / "out.html")]) == 0
    assert "50 labels do better than 50 labels" in (tmp_path / "out.html").read_text()
