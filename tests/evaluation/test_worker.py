"""The process that asks models for the page: what it answers, raises and survives."""

import os
import signal
import subprocess
import sys
import time
from operator import truediv
from pathlib import Path

import pytest

from kd.errors import UserError
from kd.evaluation.worker import NICE, Inference
from kd.runs.store import find_run
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def ask():
    asked = Inference()
    yield asked
    asked.end()


def test_answers_come_from_one_other_process_of_lower_priority(ask):
    there = ask(os.getpid)
    os.kill(there, signal.SIGINT)  # as Ctrl-C does to all of a terminal's
    assert there != os.getpid() and ask(os.getpid) == there
    assert ask(os.getpriority, os.PRIO_PROCESS, 0) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)


def test_what_is_raised_there_is_raised_here(ask, tmp_path):
    with pytest.raises(UserError, match="There is no run 'nobody'"):
        ask(find_run, tmp_path, "nobody")
    with pytest.raises(UserError, match="invalid literal"):
        ask(int, "x")
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero") as error:
        ask(truediv, 1, 0)
    assert "Traceback" in error.value.__notes__[0]


def test_a_question_that_ends_the_process_is_told_and_the_next_is_answered(ask):
    before = ask(os.getpid)
    with pytest.raises(UserError, match=r"has ended.*smaller pictures"):
        ask(os._exit, 1)
    assert ask(os.getpid) != before
    ask.process.kill()  # for want of memory, say, while nobody asks
    ask.process.join()
    assert ask(int, "7") == 7


def test_where_memory_runs_out_the_process_makes_way_for_one_with_none_taken(ask):
    before = ask(os.getpid)
    with pytest.raises(UserError, match="want of memory"):
        ask(bytearray, 2**62)
    assert ask(os.getpid) != before


def test_a_question_that_takes_too_long_is_given_up(ask, monkeypatch):
    before = ask(os.getpid)
    monkeypatch.setattr(ask, "seconds", 0.2)
    with pytest.raises(UserError, match=r"No answer came in 0\.2 s"):
        ask(time.sleep, 60)
    monkeypatch.undo()
    assert ask(os.getpid) != before


def test_it_ends_with_its_page_however_that_ends():
    code = (
        "import os, time; from kd.evaluation.worker import ask; print(ask(os.getpid), flush=True); ask(time.sleep, 60)"
    )
    page = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    there = Path(f"/proc/{int(page.stdout.readline())}")
    assert there.exists()
    page.send_signal(signal.SIGKILL)
    page.wait()
    page.stdout.close()
    end = time.monotonic() + 20
    while there.exists() and there.joinpath("stat").read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < end, "it works on for nobody"
        time.sleep(0.05)
