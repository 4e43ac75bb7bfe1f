"""Measure how fast a student trains here: the trainer itself, for a few seconds, on noise."""

import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from kd.config import DistillConfig
from kd.data.pixels import Pixels
from kd.data.views import Views
from kd.models.device import Compute
from kd.models.student import Student
from kd.system import memory
from kd.training.batches import ViewBatches
from kd.training.trainer import ImageDistilTrainer, training_arguments

# Steps that are timed: at least LEAST, at most MOST, however few seconds they take.
LEAST, MOST = 4, 200
# So many images are evaluated as validation images are.
EVALUATED = 64
# Evaluating them is repeated for this share of the time that the training steps take.
EVALUATION_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class EpochCost:
    """What an epoch takes, in seconds. The checkpoint at its end and the reading of images are not counted.

    ``image``: to train on one image at the student's full input size (crop, forward, backward, its share of the
    optimiser's step). ``evaluation``: to validate on one. ``teacher``: to ask a teacher about one image in every step,
    0 where its logits are kept. An epoch has ``images`` training and ``validation`` images.
    """

    image: float
    evaluation: float
    images: int = 0
    validation: int = 0
    teacher: float = 0.0

    def seconds(self, area: float = 1.0) -> float:
        """Return the seconds of an epoch. ``area`` is the student's input as a share of the full one."""
        return self.images * (area * self.image + self.teacher) + self.validation * self.evaluation

    def images_per_second(self, area: float = 1.0) -> float:
        """Return the throughput of training, evaluation not counted."""
        return 1 / (area * self.image + self.teacher)


def measure_throughput(
    student: Student, config: DistillConfig, size: tuple[int, int], compute: Compute, clock: "Clock | None" = None
) -> EpochCost:
    """Measure what an image costs a copy of ``student``, with the crops, optimiser and batches of a run of ``config``.

    Args:
        student: what would be trained; it stays as it is.
        config: the settings of the run.
        size: height and width in pixels at which images are kept decoded.
        compute: device and precision.
        clock: for how many seconds steps are timed, of which the median counts, without the first, in which kernels are
            chosen. More seconds are surer where others share the machine. Default: one second.
    """
    clock = clock or Clock()
    if config.processes > 1 and compute.device.type == "cuda":
        # Each trains on its part of a batch, all at the same time. On a CPU they share the cores of one.
        count, own = config.processes, config.batch_size // config.processes
        config = dataclasses.replace(config, batch_size=own, processes=1)
        alone = measure_throughput(student, config, size, compute, clock)
        return dataclasses.replace(alone, image=alone.image / count, evaluation=alone.evaluation / count)
    once = dataclasses.replace(config, epochs=MOST)
    parts = 1
    while True:
        # `Trainer` wants a folder, and writes nothing to it.
        settings = training_arguments(once, config.batch_size, compute, Path(tempfile.gettempdir()), parts)
        settings.set_evaluate("no").set_save("no")
        settings.load_best_model_at_end = False
        clock.ends.clear()
        try:
            return _measured(student, config, size, settings, clock)
        except RuntimeError as error:
            if not memory.ran_out_on_gpu(error) or parts == config.batch_size:
                raise
        finally:
            memory.free()
        parts = memory.more_parts(parts, config.batch_size)


def _measured(
    student: Student, config: DistillConfig, size: tuple[int, int], settings: TrainingArguments, clock: "Clock"
) -> EpochCost:
    """Measure with these ``settings``. Each epoch is one step: the noise of a batch is enough."""
    trainer = ImageDistilTrainer(
        student_model=copy.deepcopy(student.model).to(memory_format=torch.channels_last),
        lambda_param=0.0,
        ema=config.ema,
        args=settings,
        train_dataset=_noise(config.batch_size, size, student, config.crop_area, settings.device),
        eval_dataset=_noise(EVALUATED, size, student, 1.0, settings.device),
        data_collator=ViewBatches.collate,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    image = float(np.median(np.diff(clock.ends))) / config.batch_size
    evaluations, end = [], time.perf_counter() + EVALUATION_SHARE * clock.seconds
    while len(evaluations) < 2 or time.perf_counter() < end:  # kernels are chosen in the first
        evaluations.append(trainer.evaluate()["eval_runtime"] / EVALUATED)
        clock.progress(100, 100)
    # An evaluation is a forward pass. Where it seems to take longer than a step, another process had the cores meanwhile.
    return EpochCost(image, min(*evaluations, image))


def _noise(count: int, size: tuple[int, int], student: Student, crop_area: float, device: torch.device) -> ViewBatches:
    """Make batches of crops of so many noisy images."""
    values = np.random.default_rng(0).integers(0, 256, (count, 3, *size), np.uint8)
    labels = np.arange(count) % student.model.config.num_labels
    batches = ViewBatches(
        Pixels(values, labels, "0", [], cached=True), Views("0", count, crop_area), student.normalization, device
    )
    batches.show(1)
    return batches


class Clock(TrainerCallback):
    """Notes when each step ended, and ends training after so many seconds.

    ``progress`` is called after each step and each evaluation with (hundredths of the time, 100); what it raises ends
    the measurement.
    """

    def __init__(self, seconds: float = 1.0, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        self.seconds, self.progress = seconds, progress
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.device.type != "cpu":
            torch.accelerator.synchronize(args.device)
        self.ends.append(time.perf_counter())
        spent = self.ends[-1] - self.ends[0]
        if len(self.ends) > LEAST and spent >= self.seconds:
            control.should_training_stop = True
        self.progress(min(100, round(100 * spent / self.seconds)) if self.seconds else 100, 100)
