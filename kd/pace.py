"""How fast a student trains here: the trainer itself, for a few seconds, on noise."""

import copy
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from kd.config import DistillConfig
from kd.data import Pixels, Views
from kd.models import Student
from kd.trainer import ImageDistilTrainer, ViewBatches
from kd.training import arguments

LEAST, MOST = 4, 40
"""Steps that are timed, whatever the seconds."""
LOOKED_AT = 64
"""Pictures that are looked at as validation pictures are."""


@dataclasses.dataclass(frozen=True)
class EpochCost:
    """What an epoch is made of, in seconds."""

    picture: float
    """One to train on, of the student's full input: cropped, learned from, its share of the optimiser's step."""
    look: float
    """One to validate on."""
    save: float
    """The checkpoint."""

    def seconds(self, pictures: int, validation: int, area: float = 1.0, asking: float = 0.0) -> float:
        """Seconds of an epoch. ``area`` is the student's input as a share of the full one's; ``asking`` the seconds a picture
        of a teacher that is asked in every step."""
        return pictures * (area * self.picture + asking) + validation * self.look + self.save


def measure(
    student: Student, config: DistillConfig, side: int, device: torch.device, precision: str, seconds: float = 1.0
) -> EpochCost:
    """The cost of a copy of ``student``, with the batches, optimiser and checkpoint of a run of ``config`` on pictures of
    ``side`` pixels: the median of the steps of so many ``seconds``, without the first, in which kernels are chosen. Longer
    is surer, where others share the machine."""
    config = dataclasses.replace(config, epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        train = _noise(MOST * config.batch_size, side, student, config.crop_area, device)
        clock = _Clock(seconds)
        trainer = ImageDistilTrainer(
            student_model=copy.deepcopy(student.model).to(memory_format=torch.channels_last),
            lambda_param=0.0,
            args=arguments(config, len(train), Path(folder), config.seed, device, precision),
            train_dataset=train,
            eval_dataset=_noise(LOOKED_AT, side, student, 1.0, device),
            data_collator=ViewBatches.collate,
            compute_metrics=lambda answers: {"accuracy": 0.0},
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return EpochCost(float(np.median(np.diff(clock.steps))) / config.batch_size, clock.look / LOOKED_AT, clock.save)


def _noise(count: int, side: int, student: Student, crop_area: float, device: torch.device) -> ViewBatches:
    """Batches of crops of one noisy picture."""
    picture = np.random.default_rng(0).integers(0, 256, (3, side, side), np.uint8)
    labels = np.arange(count) % student.model.config.num_labels
    pixels = Pixels(np.broadcast_to(picture, (count, 3, side, side)), labels, "0", [], cached=True)
    batches = ViewBatches(pixels, Views("0", count, crop_area), student.pipeline, device)
    batches.show(1)
    return batches


class _Clock(TrainerCallback):
    """When each step ended; the seconds of validation and of the checkpoint after the last."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.steps: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.device.type != "cpu":
            torch.accelerator.synchronize(args.device)
        self.steps.append(time.perf_counter())
        if len(self.steps) > LEAST and self.steps[-1] - self.steps[0] >= self.seconds:
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.began = time.perf_counter()

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        now = time.perf_counter()
        self.look, self.began = now - self.began, now

    def on_save(self, args, state, control, **kwargs) -> None:
        self.save = time.perf_counter() - self.began
