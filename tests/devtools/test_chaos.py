"""The faults that `python -m kd chaos` makes, and what it looks at afterwards."""

import subprocess
import sys
from random import Random

import numpy as np

from kd.config import DistillConfig
from kd.devtools import chaos
from kd.runs.store import create_run


def test_the_kills_go_round_all_stages_and_victims():
    programme = list(chaos.faults(45, Random(0)))
    kills = [fault for fault in programme if fault.name.startswith("kill")]
    assert {fault.stage for fault in kills[:9]} == set(chaos.STAGES) and len(kills) == 45
    assert len({fault.name for fault in kills}) == 3
    assert [f.stage for f in chaos.faults(45, Random(0))] == [f.stage for f in programme]


def test_half_a_file_that_passes_for_whole_is_seen(run, tmp_path):
    (run.path / "report.json").write_text('{"student"')
    (run.path / "student").mkdir()
    (run.path / "student" / "model.safetensors").write_bytes(b"\0" * 20)
    other = create_run(DistillConfig(), tmp_path / "other", "t")
    for name, value in (("runs", 1.0), ("other", 2.0)):
        folder = tmp_path / ("." if name == "runs" else name) / ".cache" / "targets"
        folder.mkdir(parents=True)
        np.save(folder / "view-0.npy", np.full(4, value))
    found = " ".join(chaos.half_written(run, other))
    assert "report.json is no JSON" in found and "student is not whole" in found and "view-0.npy" in found


def test_a_process_that_works_on_a_run_is_found(run):
    code = "import time; print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        assert chaos.workers(run) == [process.pid]
    finally:
        process.kill()
        process.communicate()
    assert not chaos.workers(run)
