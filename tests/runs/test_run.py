"""A run is a folder: events, settings, its owner, its lock and its status."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd.cli import main
from kd.config import DistillConfig
from kd.devtools import chaos
from kd.errors import UserError
from kd.runs.run import Run, RunDeleted, RunTaken
from kd.runs.store import create_run, delete_run, local_owner
from kd.ui import compare
from kd.ui.runs import rows

HOLD = "import sys, time; from pathlib import Path; from kd.runs.run import Run\nwith Run(Path(sys.argv[1])).work():\n    print('held', flush=True); time.sleep(60)"


def hold(run: Run) -> subprocess.Popen:
    """A living process that works on a run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_settings_of_another_version_are_told_in_words_and_hide_no_other_run(run, monkeypatch, capsys):
    monkeypatch.setenv("KD_RUNS_DIR", str(run.path.parent))
    other = create_run(DistillConfig(), run.path.parent, local_owner(run.path.parent))
    for one in (run, other):
        one.close("done")
    kept = json.loads((other.path / "config.json").read_text())
    (other.path / "config.json").write_text(json.dumps({**kept, "config": {"cooling": 3}}))
    with pytest.raises(UserError, match=r"settings that this version does not take.*cooling"):
        other.config()
    assert [id for _, id in compare.choices(None)] == [run.id]
    assert run.id in rows({})["html"]
    assert main.main(["compare", other.id, "x.png", "--runs-dir", str(run.path.parent)]) == 1
    assert "does not take" in capsys.readouterr().err


def test_events_are_read_from_a_cursor_on(run):
    first, cursor = run.read()
    run.append("started")
    second, cursor = run.read(cursor)
    assert [e["event"] for e in first] == ["created"] and [e["event"] for e in second] == ["started"]
    assert run.read(cursor) == ([], cursor)


def test_a_cursor_that_is_in_the_middle_of_a_line_or_past_the_end_counts_as_0(run):
    run.append("started")
    events, end = run.read()
    assert run.read(5) == run.read(end - 1) == run.read(10**9) == (events, end)


def test_a_line_that_is_not_ended_is_left_for_later(run):
    _, cursor = run.read()
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert run.read(cursor) == ([], cursor)


def test_half_a_line_of_a_killed_process_is_cut_by_the_next_one(run):
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"event": "st')
    with run.work():
        run.append("started")
    assert [e["event"] for e in run.events()] == ["created", "started"]


def test_every_line_of_events_is_json_with_a_name_and_a_time(run):
    run.append("step", total=1.5)
    for line in (run.path / "events.jsonl").read_text().splitlines():
        assert {"event", "time"} <= json.loads(line).keys()


def test_the_owner_is_kept_hashed_and_others_are_refused(run):
    assert "token" not in (run.path / "config.json").read_text()
    run.check_owner("token")
    with pytest.raises(PermissionError):
        run.check_owner("another")


def test_a_run_whose_process_was_killed_has_died(run):
    process = hold(run)
    run.append("started")
    assert run.status() == "running"
    process.kill()
    process.wait()
    assert run.status() == "died"


def test_a_closed_run_reopens_when_it_is_resumed(run):
    with run.work():
        run.append("started")
        run.close("stopped")
        assert run.status() == "stopped"
        run.append("resumed")
        assert run.status() == "running"


def test_a_deleted_folder_is_not_made_again(run):
    delete_run(run)
    with pytest.raises(RunDeleted):
        run.append("step")
    with pytest.raises(RunDeleted):
        run.read()
    assert not run.path.exists()


def test_a_resume_forgets_the_stop_that_was_obeyed_but_not_a_new_one(run):
    run.ask_to_stop()
    time.sleep(0.02)
    run.append("stopped")
    run.forget_old_stop()
    assert not run.stop_asked()
    time.sleep(0.02)
    run.ask_to_stop()
    run.forget_old_stop()
    assert run.stop_asked()


def test_of_a_dead_run_only_what_is_known_is_said(run, monkeypatch):
    run.append("started", pid=1, oom_kills=3)
    for now, words in ((3, "killed nothing for want of memory"), (4, "perhaps this one"), (None, "as the system does")):
        monkeypatch.setattr("kd.system.memory.kills", lambda now=now: now)
        assert words in run.explain_death()


def hold_and_die(path: str, channel) -> None:
    """Work on a run with a helper, and be killed: the helper lives on."""
    with Run(Path(path)).work():
        helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        helper.start()
        channel.send(helper.pid)
        os.kill(os.getpid(), 9)


def test_helpers_that_outlive_a_killed_run_do_not_keep_its_lock(run):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold_and_die, args=(str(run.path), theirs))
    process.start()
    helper = ours.recv()
    process.join()
    try:
        assert chaos.until(lambda: not run.is_locked(), 5)  # a moment: it lets go once it has begun
        assert chaos.is_alive(helper)
    finally:
        os.kill(helper, 9)


def test_who_has_lost_the_lock_leaves_the_run_to_others(run):
    with run.work():
        before = run.events()
        (run.path / "lock").unlink()
        for another in (lambda: None, (run.path / "lock").touch):
            another()
            with pytest.raises(RunTaken):
                run.append("step")
    assert run.events() == before
