"""The stages of a machine with a GPU: each is written as it comes, and done once."""

import json

import pytest

from kd.devtools.gpu import Bench, measure_gpu
from kd.devtools.several import seconds_by_stage
from kd.errors import UserError
from kd.runs.queue import gpu_count


def bench(tmp_path, seconds: float = 100.0, said: list[str] | None = None) -> Bench:
    return Bench(tmp_path / "out.jsonl", seconds, True, (said if said is not None else []).append, tmp_path)


def test_a_stage_is_written_at_once_and_not_done_again_whether_it_worked_or_not(tmp_path):
    def fail() -> None:
        raise RuntimeError("no such kernel")

    first = bench(tmp_path)
    first.stage("one", 1, lambda: {"ms": 2.5})
    first.stage("two", 1, fail)
    assert first.done() == {"one": {"ms": 2.5}, "two": {"failed": "RuntimeError: no such kernel"}}
    said: list[str] = []
    again = bench(tmp_path, said=said)
    for name in ("one", "two"):
        again.stage(name, 1, lambda: pytest.fail("it is done"))
    assert said == ["one: done before", "two: done before"]
    assert [json.loads(line)["stage"] for line in again.out.read_text().splitlines()] == ["one", "two"]


def test_a_stage_for_which_no_time_is_left_is_for_another_call(tmp_path):
    said: list[str] = []
    short = bench(tmp_path, 10, said)
    short.stage("long", 60, lambda: pytest.fail("there is no time for it"))
    assert short.done() == {} and "The same command goes on with it" in said[0]


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
    found = measure_gpu(tmp_path / "out.jsonl", 3600, True, print)
    assert not [name for name, one in found.items() if isinstance(one, dict) and "failed" in one]
    assert {"machine", "the default", "beans", "steps of 8", "cached, batch 16", "two processes"} <= found.keys()
