"""A run's process: its priority, and what is done with a run that was stopped."""

import os
import subprocess
import sys

from kd.config import DistillConfig
from kd.runs.process import finish_run, niceness
from kd.runs.store import create_run
from kd.system.processes import start_kd


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


def test_what_was_stopped_in_the_queue_is_gone_on_with_and_not_begun(run, monkeypatch):
    run.close("stopped", message="Stopped.")
    asked = []
    monkeypatch.setattr("kd.runs.process.start_run", lambda run, resume: asked.append(resume))
    monkeypatch.setattr("kd.runs.process.follow_run", lambda run, on_event, process, cursor: "done")
    assert finish_run(run, print) == "done" and asked == [True]
