"""The analysis of a run as HTML."""

import json

import pytest
from PIL import Image

from kd.config import DistillConfig
from kd.runs.store import create_run, local_owner
from kd.ui.disagreement import analysis, image_url
from tests.support.toys import EVIL


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    made = create_run(DistillConfig(), tmp_path, local_owner(tmp_path))
    made.append("done")
    return made


def found() -> dict:
    """An analysis of two classes, one picture."""
    side = {"confusion": [[1, 1], [0, 2]], "f1": [0.7, 0.8], "calibration": {"ece": 0.1, "confidence": [0.9], "accuracy": [0.75], "count": [4]}}  # fmt: skip
    top = [{"label": EVIL, "confidence": 0.9}, {"label": "sky", "confidence": 0.1}]
    row = {"place": 0, "divergence": 0.5, "truth": EVIL, "teacher": top, "student": top[::-1], "picture": "gallery/0.webp"}  # fmt: skip
    lost = [{"label": EVIL, "points": 12.0}]
    return {
        "classes": [EVIL, "sky"],
        "teacher": side,
        "student": side,
        "lost_most": lost,
        "disagreements": [row],
        "labels": "dataset",
    }


def test_class_names_are_text_in_an_analysis(run):
    (run.path / "analysis.json").write_text(json.dumps(found()))
    answer = analysis({"run": run.id})
    assert "<img src=x" not in json.dumps(answer) and "&lt;img" in answer["html"]
    assert "Only the teacher is right" in answer["html"] and "12.0" in answer["html"]
    assert "mostly too sure" in answer["html"]


def test_without_an_analysis_the_run_is_not_done_yet(run):
    assert "is not done yet" in analysis({"run": run.id})["problem"]


def test_a_gallery_shows_its_own_pictures_and_no_more_than_fit(run, monkeypatch):
    (run.path / "gallery").mkdir()
    Image.new("RGB", (8, 8)).save(run.path / "gallery" / "0.webp")
    row = found()["disagreements"][0]
    assert image_url(row, run, 10_000)[0].startswith("data:image/webp;base64,")
    assert image_url(row, run, 10) == ("", 0)
    for name in ("../config.json", "gallery/../../x.webp", "gallery/9.webp"):
        assert image_url({"picture": name}, run, 10_000) == ("", 0)
