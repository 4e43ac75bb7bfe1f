"""The example run: it is as the page reads runs, marked, small, and nobody's."""

import hashlib

import pytest

from kd.config import DistillConfig
from kd.devtools.sample import MOST_EXAMPLE_BYTES
from kd.errors import UserError
from kd.runs.store import list_runs
from kd.system.files import ASSETS, folder_size
from kd.ui import compare, dark_knowledge, disagreement, distill, example, runs, theme
from kd.ui.access import own
from kd.ui.result import percent

ASKED = {"run": "example", "owner": ""}


@pytest.fixture(autouse=True)
def empty(monkeypatch, tmp_path):
    """A page on which nothing has been made yet."""
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    return tmp_path


def test_the_example_is_a_finished_run_of_the_sample_as_it_is_now_with_its_machine_and_day():
    config = example.EXAMPLE.config()
    assert config == DistillConfig.preset("sample"), "the preset has changed: record it again with `kd sample example`"
    update = distill.poll(ASKED)
    assert update["status"] == "done" and not update["mine"] and "view" not in update
    assert example.recorded()["machine"]["cpu"].split("(")[0] in update["example"] and " core" in update["example"]
    names = [trace["name"] for trace in update["figures"]["accuracy"]["data"]]
    assert names == ["student", "agreement", "no teacher", "teacher"]
    report = example.EXAMPLE.report()
    assert (
        f"The student has {percent(report['student']['accuracy'])}" in update["result"]
        and "Prove it" in update["result"]
    )


def test_the_example_has_its_gallery_with_every_picture():
    answer = disagreement.analysis(ASKED)
    found = disagreement.load_analysis(example.EXAMPLE)
    assert answer["html"].count("data:image/webp") == len(found["disagreements"]) > 0 and answer["figures"]


def test_the_example_is_small():
    assert folder_size(ASSETS / "example") <= MOST_EXAMPLE_BYTES


@pytest.mark.parametrize("shared", [False, True])
def test_the_example_is_listed_last_and_nobody_can_change_it(monkeypatch, shared):
    if shared:
        monkeypatch.setenv("KD_SHARED", "1")
    html = runs.rows(ASKED)["html"]
    assert html.count("<tr") == 1 and 'data-run="example"' in html and "Delete" not in html and "Open Example" in html
    for what in ("rename", "stop", "delete"):
        assert "problem" in runs.act({**ASKED, "do": what, "name": "mine"})
    for act in (distill.stop_it, distill.resume_it):
        assert "problem" in act(ASKED)
    with pytest.raises(UserError):
        own("example", "")
    assert not compare.choices(ASKED)
    assert runs.curves({"runs": ["example"], "owner": ""}).keys() == {"losses", "accuracy"}
    assert (example.EXAMPLE.path / "report.json").exists()


def test_the_recorded_answers_are_of_this_teacher_and_these_pictures_and_need_no_torch(monkeypatch):
    monkeypatch.setattr("kd.ui.dark_knowledge.ask", lambda *asked: pytest.fail("the teacher was asked again"))
    for nth, path in enumerate(theme.EXAMPLES):
        answer = dark_knowledge.teacher_says({"teacher": "sample", "example": nth})
        known = example.recorded_answers()[hashlib.sha256(path.read_bytes()).hexdigest()]
        assert answer["logits"] == known and answer["labelled"]
    assert len(example.recorded_answers()) == len(theme.EXAMPLES)


def test_answers_of_another_teacher_are_not_taken(monkeypatch):
    example.recorded_answers.cache_clear()
    monkeypatch.setattr("kd.ui.example.recorded", lambda: {"teacher": "0" * 64, "logits": {"a": [1.0]}})
    assert example.recorded_answers() == {}
    example.recorded_answers.cache_clear()


def test_prove_it_starts_the_same_settings_with_three_seeds_and_a_baseline(monkeypatch, empty):
    monkeypatch.setattr("kd.ui.distill.start_run", lambda run, **options: None)
    run = distill.prove("example", "")
    assert run in list_runs(empty)
    wanted = DistillConfig.preset("sample", trials=3, baseline="yes")
    assert run.config() == wanted
    with pytest.raises(UserError):
        distill.prove("another", "")
