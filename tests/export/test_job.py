"""An export as a process of its own: it waits for the device, is found again, can be cancelled, and says how it ended."""

import shutil
import time

import pytest
from filelock import FileLock

from kd.distill import execute
from kd.errors import UserError
from kd.export.bundle import find_export, zip_size, zipped
from kd.export.job import check_not_exporting, is_exporting, job_of, start_export
from kd.runs.queue import slot_path
from kd.runs.run import CLOSED
from kd.runs.store import create_run
from kd.ui import runs as runs_tab
from kd.ui import take_away
from tests.support.runs import make_run


@pytest.fixture(scope="module")
def done(tmp_path_factory, colours, teacher):
    """A run that is done and has exported nothing."""
    settings = {
        "teacher": str(teacher), "dataset": str(colours), "student": "resnet_8", "image_size": 32, "epochs": 1,
        "batch_size": 16, "views": 1, "precision": "fp32", "export": "no",
    }  # fmt: skip
    run = make_run(settings, tmp_path_factory.mktemp("runs"))
    execute(run)
    return run


@pytest.fixture
def page(done, monkeypatch):
    """What the page is asked with."""
    monkeypatch.setenv("KD_RUNS_DIR", str(done.path.parent))
    shutil.rmtree(done.path / "exporting", ignore_errors=True)
    shutil.rmtree(done.path / "export", ignore_errors=True)
    return {"run": done.id, "owner": ""}


def until_closed(run, seconds: float = 300) -> str:
    end = time.monotonic() + seconds
    while (status := job_of(run).status()) not in CLOSED:
        assert time.monotonic() < end, (job_of(run).path / "stderr.txt").read_text()
        time.sleep(0.1)
    return status


def test_an_export_waits_for_the_device_is_found_by_a_second_click_and_can_be_downloaded(done, page):
    assert take_away.export_state(page) == {"status": "none", "line": "", "share": 0, "missing": True}
    with FileLock(slot_path(done.path.parent, "cpu")):  # as a run that trains
        assert take_away.export_it(page) == {}
        end = time.monotonic() + 200
        while take_away.export_state(page)["line"] != "Waiting for a run to end":
            assert time.monotonic() < end and is_exporting(done)
            time.sleep(0.1)
        began = job_of(done).events()[0]
        assert take_away.export_it(page) == {} and job_of(done).events()[0] == began
        assert "is being exported" in runs_tab.act({**page, "do": "delete"})["problem"]
    assert until_closed(done) == "done", (job_of(done).path / "stderr.txt").read_text()
    state = take_away.export_state(page)
    assert (state["status"], state["missing"]) == ("done", False)
    assert "student_int8.onnx" in state["html"] and "onnx/model.onnx" in state["html"]
    part = take_away.zip_part({**page, "start": 0})
    assert part["bytes"] == state["bytes"] == zip_size(done) == zipped(done).stat().st_size
    assert part["name"] == f"student-{done.id}.zip"


def test_an_export_that_is_cancelled_leaves_nothing_and_can_be_begun_again(done, page):
    with FileLock(slot_path(done.path.parent, "cpu")):
        start_export(done)
        with pytest.raises(UserError, match="wait until it is done, then resume the run"):
            check_not_exporting(done, "resume the run")
        assert take_away.cancel_it(page) == {}
        assert until_closed(done) == "stopped"
    assert find_export(done) is None and "Cancelled" in take_away.export_state(page)["line"]
    assert "is not being exported" in take_away.cancel_it(page)["problem"]


def test_an_export_that_fails_says_why_in_words(done, page, monkeypatch):
    moved = done.path / "elsewhere"
    weights = done.path / "student" / "model.safetensors"
    weights.rename(moved)
    try:
        start_export(done)
        assert until_closed(done) == "failed"
        state = take_away.export_state(page)
        assert state["status"] == "failed" and "model" in state["line"] and "Traceback" not in state["line"]
    finally:
        moved.rename(weights)


def test_a_run_without_a_student_and_one_at_work_are_refused(done, page, small):
    empty = make_run(small, done.path.parent)
    with pytest.raises(UserError, match="has no student"):
        start_export(empty)
    assert take_away.export_state({"run": empty.id, "owner": ""}) == {}
    with done.work(), pytest.raises(UserError, match="is at work"):
        start_export(done)


def test_another_visitors_run_can_be_neither_exported_nor_downloaded(done, page, monkeypatch, small):
    monkeypatch.setenv("KD_SHARED", "1")
    owner, other = "a" * 32, "b" * 32
    theirs = create_run(done.config(), done.path.parent, owner)
    shutil.copytree(done.path / "student", theirs.path / "student")
    theirs.append("started")
    with theirs.work():
        theirs.close("stopped")
    asked = {"run": theirs.id, "owner": other}
    for call in (take_away.export_it, take_away.cancel_it, take_away.zip_part):
        assert "There is no run" in call({**asked, "start": 0})["problem"]
    assert "There is no run" in take_away.export_state(asked)["problem"]
    assert take_away.export_state({**asked, "owner": owner})["status"] == "none"
