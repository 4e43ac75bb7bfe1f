"""A run is a folder: events, owners, locks, slots."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from kd.cli import main
from kd.cli import main as cli
from kd.config import DistillConfig
from kd.errors import UserError
from kd.runs.process import finish_run, niceness
from kd.runs.queue import (
    QueuePlace,
    StopAsked,
    device_slot,
    expected_wait,
    line_before,
    queue_order,
    seconds_left,
    single_gpu_environment,
    slot_path,
)
from kd.runs.run import Run, RunDeleted
from kd.runs.store import create_run, delete_run, find_run, list_runs, local_owner
from kd.system.files import write_whole
from kd.system.ids import GONE
from kd.system.processes import start_kd
from kd.ui import compare
from kd.ui.runs import rows

HOLD = "import sys, time; from pathlib import Path; from kd.runs import Run\nwith Run(Path(sys.argv[1])).work():\n    print('held', flush=True); time.sleep(60)"


@pytest.fixture
def run(tmp_path) -> Run:
    return create_run(DistillConfig(), tmp_path, "token")


def hold(run: Run) -> subprocess.Popen:
    """A living process that works on a run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_deleted_run_is_gone_at_once_and_with_it_what_a_killed_deletion_has_left(run):
    half = run.path.with_name(f"{GONE}{run.id}-before")
    half.mkdir()
    delete_run(run)
    assert list(run.path.parent.glob("*")) == [] and list_runs(run.path.parent) == []


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


def test_ctrl_c_is_an_end_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli.limits, "markdown", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main.main(["limits"]) == 1 and capsys.readouterr().err == "kd: stopped\n"


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


def test_the_owner_is_kept_hashed_and_others_are_refused(run):
    assert "token" not in (run.path / "config.json").read_text()
    run.check_owner("token")
    with pytest.raises(PermissionError):
        run.check_owner("another")


def test_a_run_is_given_a_name_on_the_command_line_and_loses_it_again(run, capsys):
    run = create_run(DistillConfig(), run.path.parent, local_owner(run.path.parent))
    where = ["--runs-dir", str(run.path.parent)]
    assert main.main(["rename", run.id, "  Mäntel und\nHüte ", *where]) == 0
    main.main(["runs", *where])
    assert run.name() == "Mäntel und Hüte" and "Mäntel und Hüte" in capsys.readouterr().out
    assert main.main(["rename", run.id, "x" * 81, *where]) == 1
    assert "81 characters; the most is 80" in capsys.readouterr().err
    assert main.main(["rename", run.id, "", *where]) == 0 and run.name() == ""


def test_one_token_owns_all_local_runs(tmp_path):
    assert local_owner(tmp_path) == local_owner(tmp_path)
    assert len(local_owner(tmp_path)) == 32
    assert (tmp_path / ".owner").stat().st_mode & 0o077 == 0


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


def test_a_running_run_cannot_be_deleted(run):
    with run.work(), pytest.raises(UserError, match="Stop it first"):
        delete_run(run)


def test_runs_are_found_by_the_start_of_their_id_and_an_id_is_never_a_path(tmp_path, run):
    other = create_run(DistillConfig(), tmp_path, "token")
    assert find_run(tmp_path, run.id) == run and find_run(tmp_path, "last") == other
    assert list_runs(tmp_path) == [other, run]
    for bad in ("../" + tmp_path.name, "", "nope", str(run.path), ".slots"):
        with pytest.raises(UserError):
            find_run(tmp_path, bad)


def test_no_reader_sees_half_a_file(tmp_path):
    path = tmp_path / "report.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_device_goes_to_the_oldest_that_waits(tmp_path):
    first, second, third = (create_run(DistillConfig(), tmp_path, "t") for _ in range(3))
    with FileLock(slot_path(tmp_path, "cpu")):
        waiting = []
        for run in (third, second, first):  # the youngest comes first
            waiting.append(multiprocessing.get_context("fork").Process(target=wait_for_slot, args=(run,)))
            waiting[-1].start()
            until(lambda run=run: run.last("queued"))
        until(lambda: third.last("queued")["place"] == 3)
    for process in waiting:
        process.join(20)
    order = sorted((first, second, third), key=lambda run: run.last("started")["time"])
    assert order == [first, second, third]


def test_whose_turn_it_is():
    order = queue_order
    assert order([("3", "a"), ("1", "a"), ("2", "a")], {"a": 9.0}) == ["1", "2", "3"]  # one's own machine: by age
    assert order([("1", "a"), ("2", "a"), ("3", "b")], {}) == ["1", "3", "2"]  # a second goes behind another's first
    assert order([("1", "a"), ("2", "b")], {"a": 5.0}) == ["2", "1"]  # a has had the device, or has it now
    assert order([("1", "a"), ("2", "b")], {"a": 5.0, "b": 6.0}) == ["1", "2"]  # b has had it since
    crowd = [("1", "a"), ("2", "a"), ("3", "a"), ("4", "b"), ("5", "b"), ("6", "c")]
    assert order(crowd, {"b": 1.0}) == ["1", "6", "4", "2", "5", "3"]
    assert order([], {"a": 1.0}) == []


def test_nobody_waits_for_ever_however_many_runs_another_has():
    """Taken one by one, each visitor has had a turn before anybody has a second."""
    waiting = [(f"{nth:02}", "greedy") for nth in range(6)] + [("90", "late"), ("91", "later")]
    turns, served = {"greedy": 1.0}, []
    for now in range(2, 10):
        first = queue_order(waiting, turns)[0]
        owner = dict(waiting)[first]
        waiting.remove((first, owner))
        turns[owner] = now
        served.append(owner)
    assert served == ["late", "later", *["greedy"] * 6]


def test_how_long_a_run_keeps_the_device_is_said_from_its_progress_or_not_at_all():
    created = {"event": "created", "time": 100.0, "expected": 60.0}
    started = {"event": "started", "time": 110.0}
    training = {"event": "training", "time": 120.0, "steps": 100, "nth": 1, "of": 2}
    step = {"event": "step", "time": 130.0, "step": 50, "seconds": 10.0}
    left = seconds_left
    assert left([created], 500.0) == 60.0 and left([created, started], 130.0) == 40.0
    assert left([created, started, training, step], 135.0) == 25.0  # 150 steps of 0.2 s, 5 s of which are over
    assert left([created, started], 500.0) == 0.0
    assert left([{"event": "created", "time": 1.0}, started, training], 130.0) is None
    assert left([created, started, training], 130.0) is None


def test_the_wait_is_known_if_it_is_of_all_before_it(tmp_path):
    runs_ = [create_run(DistillConfig(), tmp_path, "t", expected=expected) for expected in (60, 90)]
    unknown = create_run(DistillConfig(), tmp_path, "t")
    runs_[0].append("started")
    now = runs_[0].last("started")["time"]
    assert expected_wait(runs_[:1], runs_[1:], now) == 150
    assert expected_wait(runs_[:1], [unknown], now) is None
    assert expected_wait([], runs_[1:], now) is None  # who holds the device is no run of this folder


def test_a_place_is_said_again_when_it_is_news():
    def place(time: float, nth: int, wait: int | None) -> QueuePlace:
        return QueuePlace(time, nth, wait)

    said = place(0, 2, 100)
    assert not place(50, 2, 50).differs(said) and not place(50, 2, 59).differs(said)
    assert place(50, 2, 70).differs(said) and place(0, 1, 100).differs(said) and place(0, 2, None).differs(said)
    assert not place(9, 2, None).differs(place(0, 2, None)) and place(9, 2, 5).differs(place(0, 2, None))


def test_anothers_first_run_has_the_device_before_ones_second(tmp_path):
    has_had, mine, theirs = (create_run(DistillConfig(), tmp_path, owner) for owner in ("me", "me", "other"))
    (has_had.path / "turn").touch()
    with mine.work(), theirs.work():
        for run in (mine, theirs):
            run.append("queued", place=1, device="cpu")
        assert line_before(mine, "cpu") == ([theirs], []) and line_before(theirs, "cpu") == ([], [])
        theirs.append("started")
        assert line_before(mine, "cpu") == ([], [theirs])


def test_a_run_of_another_version_does_not_hide_the_others(tmp_path, capsys):
    odd, fine = (create_run(DistillConfig(), tmp_path, "t") for _ in range(2))
    settings = odd.settings()
    settings["config"]["invented_later"] = 1
    (odd.path / "config.json").write_text(json.dumps(settings))
    assert main.main(["runs", "--runs-dir", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["status"]) for row in rows] == [(fine.id, "queued"), (odd.id, "unreadable")]


def test_a_folder_that_cannot_hold_runs_is_said_to_be_one(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main.main(["distill", "--runs-dir", str(tmp_path / "file")]) == 1
    assert "Runs cannot be kept in" in capsys.readouterr().err


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


def test_a_gpu_run_sees_its_own_gpu_only(monkeypatch):
    assert single_gpu_environment("cpu") == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert single_gpu_environment("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1", "KD_DEVICE": "cuda:0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert single_gpu_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_run_of_the_page_stands_behind_it_on_a_cpu_and_no_other(tmp_path, monkeypatch):
    on_cpu, on_gpu = (create_run(DistillConfig(device=device), tmp_path, "t") for device in ("cpu", "cuda"))
    assert niceness(on_cpu) == 10 and niceness(on_gpu) == 0
    program = tmp_path / "program"  # in the place of Python
    program.write_text("#!/bin/sh\nread line\nnice\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    for by in (0, niceness(on_cpu)):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        assert int(start_kd("run", nice=by, **pipes).communicate("go\n")[0]) == min(19, os.nice(0) + by)


def test_a_waiting_run_can_be_stopped(tmp_path):
    run = create_run(DistillConfig(), tmp_path, "t")
    run.ask_to_stop()
    with FileLock(slot_path(tmp_path, "cpu")), pytest.raises(StopAsked), device_slot(run, "cpu"):
        pass


def test_what_was_stopped_in_the_queue_is_gone_on_with_and_not_begun(run, monkeypatch):
    run.close("stopped", message="Stopped.")
    asked = []
    monkeypatch.setattr("kd.runs.process.start_run", lambda run, resume: asked.append(resume))
    monkeypatch.setattr("kd.runs.process.follow_run", lambda run, on_event, process, cursor: "done")
    assert finish_run(run, print) == "done" and asked == [True]


def test_a_slot_is_free_again_when_its_holder_is_killed(tmp_path):
    run = create_run(DistillConfig(), tmp_path, "t")
    code = "import sys, time; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    path = slot_path(tmp_path, "cpu")
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with device_slot(run, "cpu"):
        pass


def wait_for_slot(run: Run) -> None:
    with run.work(), device_slot(run, "cpu"):
        run.append("started")
        time.sleep(0.4)
        run.close("done")


def until(condition, seconds: float = 20) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_every_line_of_events_is_json_with_a_name_and_a_time(run):
    run.append("step", total=1.5)
    for line in (run.path / "events.jsonl").read_text().splitlines():
        assert {"event", "time"} <= json.loads(line).keys()
