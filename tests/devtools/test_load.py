"""The load test: what it counts, what it calls busy, and that it stays on this machine."""

import json
import os
import socket
import subprocess
import sys

import httpx
import pytest

from kd.cli import main
from kd.devtools import load
from kd.devtools.load import Refused, Tally
from kd.evaluation.worker import Inference
from kd.system.memory import private_megabytes
from tests.support.loops import run_apart


@pytest.mark.parametrize(
    "url", ["http://example.org:80", "https://127.0.0.1:7860", "http://10.0.0.1:7860", "http://127.0.0.1", "x", ""]
)
def test_only_a_page_of_this_machine_is_loaded(url, capsys):
    assert main.main(["load", "--url", url or "http://"]) == 2
    assert "expected a page of this machine" in capsys.readouterr().err


def test_an_address_is_taken_without_what_follows_the_port():
    assert load.check_here("http://127.0.0.1:7860/?run=1") == "http://127.0.0.1:7860"


def test_an_event_stream_is_an_answer_or_the_servers_words():
    assert load.outcome(["event: heartbeat", "data: null", "", "event: complete", 'data: [{"run": "1"}]']) == {
        "run": "1"
    }
    for data in ('{"error": "The queue is full"}', '"The queue is full"'):
        with pytest.raises(Refused, match="The queue is full"):
            load.outcome(["event: error", f"data: {data}"])
    with pytest.raises(Refused, match="ended its answer early"):
        load.outcome(["event: heartbeat"])


def test_a_clear_busy_is_counted_apart_from_errors():
    async def answer(error: Exception | None = None) -> int:
        if error:
            raise error
        return 7

    async def visit() -> Tally:
        tally = Tally()
        assert await tally.of("poll", answer()) == 7
        for error in (
            Refused("You have 3 runs waiting or running. Stop one, or wait until it is done."),
            Refused("The queue is full: 20 runs wait or run. Try again in a while."),
            Refused("500 Internal Server Error"),
            httpx.ReadTimeout("late"),
        ):
            assert await tally.of("start", answer(error)) is None
        return tally

    tally = run_apart(visit())
    found = load.summary(tally, seconds=2)
    assert found["poll"] | {"p50": 0, "p95": 0, "p99": 0} == {
        "n": 1, "rate": 0.5, "p50": 0, "p95": 0, "p99": 0, "busy": 0, "errors": {},
    }  # fmt: skip
    assert found["start"]["busy"] == 2 and found["start"]["p95"] is None
    assert found["start"]["errors"] == {"500 Internal Server Error": 1, "ReadTimeout": 1}


def found(p95: float, rate: float, after: float, errors: dict) -> dict:
    def kind(rate: float, errors: dict) -> dict:
        return {"n": 9, "rate": rate, "p50": 1.0, "p95": p95, "p99": p95, "busy": 0, "errors": errors}

    together = {"poll": kind(9.0, errors), "compare": kind(rate, {})}
    return {"alone": {"compare": kind(1.0, {})}, "together": together, "share": rate, "memory": [300.0, 350.0, after]}


def test_the_goals_are_met_or_not_or_could_not_be_measured():
    assert [met for _, met in load.goals(found(100, 0.9, 360, {}))] == [True] * 4
    bad = load.goals(found(300, 0.7, 400, {"500 oh": 2}))
    assert [met for _, met in bad] == [False] * 4 and "2 x 500 oh" in bad[0][0]
    unknown = found(100, 0.9, 360, {}) | {"memory": [None, None, None], "share": None}
    assert [met for _, met in load.goals(unknown)] == [True, True, None, None]
    head, *lines = load.rows(found(100, 0.9, 360, {}))
    assert all(len(line) == len(head) for line in lines) and lines[-1][0] == "compare, all"


def test_who_listens_is_found_with_its_memory():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert load.listener(server.getsockname()[1]) == os.getpid()
    alone = private_megabytes(os.getpid())
    assert alone > 10 and load.page_memory(None) is None
    asked = Inference()
    asked(int, "1")
    assert load.page_memory(os.getpid()) > alone + 5
    asked.end()


def test_the_page_is_told_by_the_place_that_shows_a_run():
    assert load.live_component({"components": [{"id": 3, "props": {"elem_id": "live"}}]}) == 3
    with pytest.raises(load.UserError, match="is not this page"):
        load.live_component({"components": []})


def test_neither_gradio_nor_torch_is_imported():
    code = "import sys, json; import kd.devtools.load; print(json.dumps([m for m in ('gradio', 'torch') if m in sys.modules]))"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) == []


def test_the_long_run_trains_as_long_as_the_test_lasts_and_is_stopped_then():
    done = []

    class Visitor:
        async def start(self, settings: dict) -> str:
            done.append("start")
            return "1"

        async def stop(self, run: str) -> None:
            done.append(f"stop {run}")

    async def visit() -> None:
        one = load.Visit(Visitor(), "0")
        async with load._training(one.first, one):
            done.append(f"training {one.training}")

    run_apart(visit())
    assert done == ["start", "training 1", "stop 1"]
