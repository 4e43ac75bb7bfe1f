"""The stages of a machine with a GPU: each is written as it comes, and done once."""

import json
import shutil

import pytest

from kd.devtools.gpu import ROWS, Bench, measure_gpu
from kd.devtools.several import seconds_by_stage
from kd.devtools.speed import ROWS as ROW_NAMES
from kd.errors import UserError
from kd.runs.queue import gpu_count


def bench(tmp_path, seconds: float = 100.0, said: list[str] | None = None) -> Bench:
    return Bench(tmp_path / "out.jsonl", seconds, True, (said if said is not None else []).append, tmp_path)


def test_a_stage_is_written_at_once_and_not_done_again_whether_it_worked_or_not(tmp_path):
    def fail(note) -> None:
        note(ms=1.5)
        raise RuntimeError("no such kernel")

    said: list[str] = []
    first = bench(tmp_path, said=said)
    first.stage("one", 1, lambda note: note(ms=2.5))
    assert "one: ms 2.5" in said
    first.stage("two", 1, fail)
    assert first.done() == {"one": {"ms": 2.5}, "two": {"ms": 1.5, "failed": "RuntimeError: no such kernel"}}
    again = bench(tmp_path, said=said)
    said.clear()
    for name in ("one", "two"):
        again.stage(name, 1, lambda note: pytest.fail("it is done"))
    assert said == ["one: done before", "two: done before"]
    assert [json.loads(line)["stage"] for line in again.out.read_text().splitlines()] == ["one", "two"]


def test_a_stage_for_which_no_time_is_left_is_for_another_call(tmp_path):
    said: list[str] = []
    short = bench(tmp_path, 10, said)
    short.stage("long", 60, lambda note: pytest.fail("there is no time for it"))
    assert short.done() == {} and "The same command goes on with it" in said[0]


def test_all_stages_are_expected_to_fit_into_eight_minutes(tmp_path, monkeypatch):
    expected: dict[str, float] = {}
    monkeypatch.setattr(Bench, "stage", lambda self, name, seconds, work: expected.update({name: seconds}))
    monkeypatch.setattr("kd.devtools.gpu.gpu_count", lambda: 1)
    measure_gpu(tmp_path / "out.jsonl", 480, False, print)
    assert len(expected) == 21 and sum(expected.values()) <= 480


def test_the_stages_of_a_run_are_its_whole_time():
    names = {"started": 10, "plan": 14, "models": 20, "targets": 28, "training": 30, "done": 60}
    events = [{"event": name, "time": float(at)} for name, at in names.items()]
    events.insert(-1, {"event": "arm", "time": 55.0, "seconds": 21.0})
    found = seconds_by_stage(events)
    assert found == {"pictures": 10, "targets": 10, "training": 21, "test": 9, "whole": 50}


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_try_it(tmp_path):
    with pytest.raises(UserError, match=r"no GPU here\. Add --small"):
        measure_gpu(tmp_path / "out.jsonl", 100, False, print)


@pytest.mark.slow
def test_all_stages_work_on_a_cpu_at_a_small_size(tmp_path):
    said: list[str] = []
    found = measure_gpu(tmp_path / "out.jsonl", 36000, True, said.append)
    failed = {name: one["failed"] for name, one in found.items() if "failed" in one}
    if shutil.which("g++") is None:  # `torch.compile` needs it on a CPU
        assert failed.pop("compiled steps of 8")
    assert failed == {}
    rows = [f"{row}, batch {batch}" for batch in (8, 16) for row in ROWS]
    assert {"machine", "the default", "beans", "steps of 8", "compiled steps of 8", *rows} <= found.keys()
    assert all(found[row]["images_per_second"] > 0 for row in rows)
    assert found["too little memory"]["parts"] == [2, 4]
    assert found["two processes"].keys() == {"1 processes", "2 processes"}
    assert {*ROW_NAMES} == {*ROWS}
    lines = [json.loads(line)["stage"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == list(found)
    assert sum(text == "making the teacher and the pictures" for text in said) == 1
