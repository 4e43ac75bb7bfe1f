"""Who has the device, who waits for it, and for how long."""

import multiprocessing
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from kd.config import DistillConfig
from kd.runs.queue import (
    QueuePlace,
    StopAsked,
    device_slot,
    devices_of,
    expected_wait,
    line_before,
    queue_order,
    seconds_left,
    single_gpu_environment,
    slot_path,
)
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.system.files import try_acquire


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
    both = {**training, "nth": 2, "at_once": 2}  # with and without the teacher at the same time
    assert left([created, started, training, both, step], 135.0) == 5.0
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


def test_a_gpu_run_sees_its_own_gpu_only(monkeypatch):
    assert single_gpu_environment("cpu") == {}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert single_gpu_environment("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1", "KD_DEVICE": "cuda:0"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert single_gpu_environment("cuda:1")["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_waiting_run_can_be_stopped(tmp_path):
    run = create_run(DistillConfig(), tmp_path, "t")
    run.ask_to_stop()
    with FileLock(slot_path(tmp_path, "cpu")), pytest.raises(StopAsked), device_slot(run, "cpu"):
        pass


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


def test_a_run_of_several_gpus_sees_those_alone_and_waits_until_all_are_free(tmp_path, monkeypatch):
    assert devices_of("cuda:1", 2) == ["cuda:1", "cuda:2"] and devices_of("cpu", 4) == ["cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    assert single_gpu_environment("cuda:1", "cuda:2") == {"CUDA_VISIBLE_DEVICES": "7,9", "KD_DEVICE": "cuda:0"}
    one = create_run(DistillConfig(device="cuda:1"), tmp_path, "t")
    several = create_run(DistillConfig(device="cuda:0", processes=2), tmp_path, "t")
    other = create_run(DistillConfig(device="cuda:2"), tmp_path, "t")
    with one.work(), several.work():
        for run in (one, several):
            run.append("started")
        assert line_before(several, "cuda:0", "cuda:1") == ([], [one]) and line_before(other, "cuda:2") == ([], [])
        assert line_before(one, "cuda:1") == ([], [several])
        several.ask_to_stop()
        with (
            FileLock(slot_path(tmp_path, "cuda:1")),
            pytest.raises(StopAsked),
            device_slot(several, "cuda:0", "cuda:1"),
        ):
            pass
        several.forget_stop()
    with device_slot(several, "cuda:0", "cuda:1"):
        assert not any(try_acquire(FileLock(slot_path(tmp_path, name))) for name in ("cuda:0", "cuda:1"))
    assert all(try_acquire(FileLock(slot_path(tmp_path, name))) for name in ("cuda:0", "cuda:1"))
