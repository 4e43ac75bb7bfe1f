"""Child processes: what a parent and a child say to each other, and how a child ends."""

import io
import json
import sys

import psutil
import pytest

from kd.errors import UserError
from kd.system.processes import Child, ChildEnded, answer_parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the child is a shell's script")


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Start a shell's script in the place of ``python -m kd``."""

    def start(script: str, job: object = None) -> Child:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return Child(job=job)

    return start


def test_a_child_gets_its_job_reports_progress_and_answers(child):
    script = (
        """echo noise; echo '{"phase": "a", "done": 1, "of": 2}'; read job; echo "{\\"answer\\": $job}"; sleep 60 &"""
    )
    reports = []
    assert child(f"{script}", [1, "two"]).answer(reports.append) == [1, "two"]
    assert reports == [{"phase": "a", "done": 1, "of": 2}]


def test_a_problem_keeps_its_kind_and_its_setting(child):
    with pytest.raises(UserError, match="No such teacher") as error:
        child("""echo '{"problem": "No such teacher.", "kind": "refused", "setting": "teacher"}'""").answer()
    assert (error.value.kind, error.value.setting) == ("refused", "teacher")


def test_a_child_that_ends_without_an_answer_is_told_with_its_last_words(child):
    for script, reason, was_killed in (
        ("echo one >&2; echo MemoryError >&2", "MemoryError", False),
        ("exit 3", "code 3", False),
        ("kill -9 $$", "code -9", True),
    ):
        with pytest.raises(ChildEnded) as error:
            child(script).answer()
        assert (error.value.reason, error.value.was_killed) == (reason, was_killed)


def test_who_has_heard_enough_ends_the_child_and_all_that_it_has_started(child, tmp_path):
    def stop(report: object) -> None:
        if report is None:  # it was silent for a while
            raise TimeoutError

    one = child(f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(TimeoutError):
        one.answer(stop)
    helper = int((tmp_path / "pid").read_text())
    assert one.process.poll() is not None
    assert not psutil.pid_exists(helper) or psutil.Process(helper).wait(5) is None


def test_the_childs_side_answers_in_lines_of_json_and_keeps_other_output_out(monkeypatch, capsys):
    def work(job: dict, tell) -> dict:
        print("a library's remark")
        tell("reading", 1, 1)
        if job["fail"]:
            raise UserError("No.", kind="refused", setting="dataset")
        return {"found": 7}

    for fail, code, last in (
        (False, 0, {"answer": {"found": 7}}),
        (True, 1, {"problem": "No.", "kind": "refused", "setting": "dataset"}),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"fail": fail})))
        assert answer_parent(work) == code
        said = capsys.readouterr()
        assert [json.loads(line) for line in said.out.splitlines()] == [{"phase": "reading", "done": 1, "of": 1}, last]
        assert "a library's remark" in said.err
