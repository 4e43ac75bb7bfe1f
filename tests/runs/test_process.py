"""A run's process: its priority, and what is done with a run that was stopped."""

import os
import subprocess
import sys

from kd.config import DistillConfig
from kd.runs.process import finish_run, niceness
from kd.runs.store import create_run


def test_a_run_of_the_page_stands_behind_it_on_a_cpu_and_no_other(tmp_path):
    """The flag, and what the process that is given it does, before it finds that the run was begun already."""
    on_cpu, on_gpu = (create_run(DistillConfig(device=device), tmp_path, "t") for device in ("cpu", "cuda"))
    assert niceness(on_cpu, behind=True) == ["--nice=10"] and niceness(on_cpu, behind=False) == []
    assert niceness(on_gpu, behind=True) == []
    on_cpu.append("done")
    code = "import os, sys; from kd.cli.main import main; main(['run', *sys.argv[1:]]); print(os.nice(0))"
    for flags, by in (([], 0), (["--nice=10"], 10)):
        command = [sys.executable, "-c", code, str(on_cpu.path), *flags]
        assert int(subprocess.run(command, capture_output=True, text=True).stdout) == min(19, os.nice(0) + by)


def test_what_was_stopped_in_the_queue_is_gone_on_with_and_not_begun(run, monkeypatch):
    run.close("stopped", message="Stopped.")
    asked = []
    monkeypatch.setattr("kd.runs.process.start_run", lambda run, resume: asked.append(resume))
    monkeypatch.setattr("kd.runs.process.follow_run", lambda run, on_event, process, cursor: "done")
    assert finish_run(run, print) == "done" and asked == [True]
