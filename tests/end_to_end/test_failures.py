"""Whole runs on bad days: memory that runs out, a disk that is read-only. `python -m kd chaos` does it for real."""

import os
import sys

import pytest
import torch
from transformers import get_scheduler

from kd.config import DistillConfig
from kd.devtools import chaos
from kd.distill import execute
from kd.errors import UserError
from kd.runs.process import start_run
from kd.runs.store import create_run, list_runs
from kd.training.trainer import ImageDistilTrainer


def test_when_memory_runs_out_batches_are_cut_into_parts_and_the_steps_stay(small, tmp_path, monkeypatch):
    ours, seen = ImageDistilTrainer.compute_loss, []

    def small_memory(self, model, inputs, **options):
        if model.training:
            if self.state.epoch >= 1 and len(inputs["labels"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            seen.append((self.state.global_step, self.lr_scheduler.get_last_lr()[0]))
        return ours(self, model, inputs, **options)

    monkeypatch.setattr(ImageDistilTrainer, "compute_loss", small_memory)
    config = DistillConfig.from_dict(small)
    run = create_run(config, tmp_path, "t")
    execute(run)
    memory_events = [event for event in run.events() if event["event"] == "memory"]
    assert [event["parts"] for event in memory_events] == [2, 4]
    assert "The GPU is out of memory with 16 pictures at a time" in memory_events[0]["warnings"][0]
    trainings = [event for event in run.events() if event["event"] == "training"]
    assert [event["step"] for event in trainings] == [0, 6, 6]  # from the checkpoint, not from the beginning
    optimizer = torch.optim.SGD([torch.zeros(1)], config.learning_rate)
    schedule = get_scheduler(config.schedule, optimizer, round(config.warmup * 12), 12)
    rates = dict(seen)
    assert list(rates) == list(range(12)) and run.last("step")["step"] == 12
    for step in range(12):
        assert rates[step] == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root")
def test_a_run_on_a_read_only_disk_can_be_looked_at_and_says_why_it_cannot_go_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        with chaos.small_disk(disk):
            run = create_run(DistillConfig(), disk, "t")
            run.append("started")
            with run.work():
                pass
            assert chaos.mount("-o", "remount,ro", disk)
            assert list_runs(disk) == [run] and run.status() == "died"
            for work_on in (start_run, execute):
                with pytest.raises(UserError, match="nothing can be written to"):
                    work_on(run)
    except chaos.Skipped as why:
        pytest.skip(str(why))
