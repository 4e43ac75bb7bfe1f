"""A run is a folder: events, owners, locks, slots."""

import json
import multiprocessing
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from kd import cli, launch, runs
from kd.config import DistillConfig
from kd.runs import Run, RunDeleted, RunError

HOLD = "import sys, time; from pathlib import Path; from kd.runs import Run\nwith Run(Path(sys.argv[1])).work():\n    print('held', flush=True); time.sleep(60)"


@pytest.fixture
def run(tmp_path) -> Run:
    return runs.create(DistillConfig(), tmp_path, "token")


def hold(run: Run) -> subprocess.Popen:
    """A living process that works on a run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_events_are_read_from_a_cursor_on(run):
    first, cursor = run.read()
    run.append("started")
    second, cursor = run.read(cursor)
    assert [e["event"] for e in first] == ["created"] and [e["event"] for e in second] == ["started"]
    assert run.read(cursor) == ([], cursor)


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
    run = runs.create(DistillConfig(), run.path.parent, runs.local_owner(run.path.parent))
    where = ["--runs-dir", str(run.path.parent)]
    assert cli.main(["rename", run.id, "  Mäntel und\nHüte ", *where]) == 0
    cli.main(["runs", *where])
    assert run.name() == "Mäntel und Hüte" and "Mäntel und Hüte" in capsys.readouterr().out
    assert cli.main(["rename", run.id, "x" * 81, *where]) == 1
    assert "81 characters; the most is 80" in capsys.readouterr().err
    assert cli.main(["rename", run.id, "", *where]) == 0 and run.name() == ""


def test_one_token_owns_all_local_runs(tmp_path):
    assert runs.local_owner(tmp_path) == runs.local_owner(tmp_path)
    assert len(runs.local_owner(tmp_path)) == 32
    assert (tmp_path / ".owner").stat().st_mode & 0o077 == 0


def test_a_run_whose_process_was_killed_has_died(run):
    process = hold(run)
    run.append("started")
    assert run.status() == "running"
    process.kill()
    process.wait()
    assert run.status() == "died"


def test_two_processes_cannot_work_on_one_run(run):
    process = hold(run)
    try:
        with pytest.raises(RunError, match="being worked on"), run.work():
            pass
    finally:
        process.kill()
        process.wait()


def test_a_closed_run_reopens_when_it_is_resumed(run):
    with run.work():
        run.append("started")
        run.close("stopped")
        assert run.status() == "stopped"
        run.append("resumed")
        assert run.status() == "running"


def test_a_deleted_folder_is_not_made_again(run):
    run.delete()
    with pytest.raises(RunDeleted):
        run.append("step")
    with pytest.raises(RunDeleted):
        run.read()
    assert not run.path.exists()


def test_a_running_run_cannot_be_deleted(run):
    with run.work(), pytest.raises(RunError, match="Stop it first"):
        run.delete()


def test_runs_are_found_by_the_start_of_their_id_and_an_id_is_never_a_path(tmp_path, run):
    other = runs.create(DistillConfig(), tmp_path, "token")
    assert runs.find(tmp_path, run.id) == run and runs.find(tmp_path, "last") == other
    assert runs.list_runs(tmp_path) == [other, run]
    for bad in ("../" + tmp_path.name, "", "nope", str(run.path), ".slots"):
        with pytest.raises(RunError):
            runs.find(tmp_path, bad)


def test_no_reader_sees_half_a_file(tmp_path):
    path = tmp_path / "report.json"
    runs.write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        runs.write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_device_goes_to_the_oldest_that_waits(tmp_path):
    first, second, third = (runs.create(DistillConfig(), tmp_path, "t") for _ in range(3))
    with FileLock(launch.slot_path(tmp_path, "cpu")):
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


def test_a_run_of_another_version_does_not_hide_the_others(tmp_path, capsys):
    odd, fine = (runs.create(DistillConfig(), tmp_path, "t") for _ in range(2))
    settings = odd.settings()
    settings["config"]["invented_later"] = 1
    (odd.path / "config.json").write_text(json.dumps(settings))
    assert cli.main(["runs", "--runs-dir", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["status"]) for row in rows] == [(fine.id, "queued"), (odd.id, "unreadable")]


def test_a_folder_that_cannot_hold_runs_is_said_to_be_one(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["distill", "--runs-dir", str(tmp_path / "file")]) == 1
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
    assert launch.gpu_of_its_own("cpu") == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.gpu_of_its_own("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1", "KD_DEVICE": "cuda:0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert launch.gpu_of_its_own("cuda:1")["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_waiting_run_can_be_stopped(tmp_path):
    run = runs.create(DistillConfig(), tmp_path, "t")
    run.ask_to_stop()
    with FileLock(launch.slot_path(tmp_path, "cpu")), pytest.raises(launch.StopAsked), launch.slot(run, "cpu"):
        pass


def test_a_slot_is_free_again_when_its_holder_is_killed(tmp_path):
    run = runs.create(DistillConfig(), tmp_path, "t")
    code = "import sys, time; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    path = launch.slot_path(tmp_path, "cpu")
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with launch.slot(run, "cpu"):
        pass


def wait_for_slot(run: Run) -> None:
    with run.work(), launch.slot(run, "cpu"):
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
