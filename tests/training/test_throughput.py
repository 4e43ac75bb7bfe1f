"""The throughput of training: what is measured, and that measuring changes nothing."""

import tempfile
import time

import torch
from accelerate import Accelerator

from kd.config import DistillConfig
from kd.models.device import Compute
from kd.models.student import load_student
from kd.training.batches import ViewBatches
from kd.training.throughput import Clock, measure_throughput
from kd.training.trainer import ImageDistilTrainer
from tests.support import toys


def test_the_throughput_counts_all_of_a_step_and_of_validation_and_leaves_the_student_alone(
    small, tmp_path, monkeypatch
):
    student = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 0)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    cut, looked = ViewBatches.__getitems__, ImageDistilTrainer.evaluation_loop
    clip = Accelerator.clip_grad_norm_

    def slowed(method, seconds):
        return lambda *arguments, **options: (time.sleep(seconds), method(*arguments, **options))[1]

    monkeypatch.setattr(ViewBatches, "__getitems__", slowed(cut, 0.2))
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", slowed(clip, 0.2))
    monkeypatch.setattr(ImageDistilTrainer, "evaluation_loop", slowed(looked, 0.4))
    config, told = DistillConfig.from_dict({**small, "epochs": 3, "batch_size": 8}), []
    files = sorted(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    clock = Clock(0.0, lambda *done: told.append(done))
    cost = measure_throughput(student, config, (36, 36), Compute(torch.device("cpu")), clock)
    assert 0.4 / 8 <= cost.image < 0.4 and 0.4 / 64 <= cost.evaluation < cost.image
    after = student.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(told) == 5 + 2 and sorted(tmp_path.iterdir()) == files


def test_the_throughput_believes_no_evaluation_that_takes_longer_than_a_training_step(small, monkeypatch):
    student = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 0)
    monkeypatch.setattr(ImageDistilTrainer, "evaluate", lambda self: {"eval_runtime": 1e9})  # others had the cores
    config = DistillConfig.from_dict({**small, "batch_size": 8})
    cost = measure_throughput(student, config, (36, 36), Compute(torch.device("cpu")), Clock(0.0))
    assert cost.evaluation == cost.image
