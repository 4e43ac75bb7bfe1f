"""How fast a student trains here: the trainer itself, for a few seconds, on noise."""

import copy
import dataclasses
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
from kd.models.student import Student
from kd.system import memory
from kd.training.batches import ViewBatches
from kd.training.trainer import ImageDistilTrainer, training_arguments

LEAST, MOST = 4, 200
"""Steps that are timed: at least so many, and no more than that, however few seconds they take."""

LOOKED_AT = 64
"""Pictures that are looked at as validation pictures are."""

LOOKS_SHARE = 0.2
"""They are looked at again and again for this share of the seconds of the steps."""


@dataclasses.dataclass(frozen=True)
class EpochCost:
    """What an epoch is made of, in seconds. The checkpoint at its end is not counted, nor reading the pictures."""

    picture: float
    """One to train on, of the student's full input: cropped, learned from, its share of the optimiser's step."""
    look: float
    """One to validate on."""

    def seconds(self, pictures: int, validation: int, area: float = 1.0, asking: float = 0.0) -> float:
        """Seconds of an epoch. ``area`` is the student's input as a share of the full one's; ``asking`` the seconds a picture
        of a teacher that is asked in every step."""
        return pictures * (area * self.picture + asking) + validation * self.look


def measure_throughput(
    student: Student,
    config: DistillConfig,
    side: int,
    device: torch.device,
    precision: str,
    folder: Path,
    seconds: float = 1.0,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> EpochCost:
    """The cost of a copy of ``student``, with the crops, optimiser and batches of a run of ``config`` on pictures of ``side``
    pixels: the median of the steps of about so many ``seconds``, without the first, in which kernels are chosen. More are
    surer where others share the machine. `Trainer` wants a ``folder``, and writes nothing to it.

    ``tell`` is called after each step, and each look at validation, with (hundredths of the time, 100); what it raises ends
    the measurement.
    """
    once = dataclasses.replace(config, epochs=MOST)
    parts = 1
    while True:
        settings = training_arguments(once, config.batch_size, folder, config.seed, device, precision, parts)
        settings.set_evaluate("no").set_save("no")
        settings.load_best_model_at_end = False
        try:
            return _measured(student, config, side, settings, _Clock(seconds, tell))
        except RuntimeError as error:
            if not memory.ran_out_on_gpu(error) or parts == config.batch_size:
                raise
        finally:
            memory.free()
        parts = memory.more_parts(parts, config.batch_size)


def _measured(
    student: Student, config: DistillConfig, side: int, settings: TrainingArguments, clock: "_Clock"
) -> EpochCost:
    """The same with these ``settings``. Each epoch is one step: the noise of a batch is enough."""
    trainer = ImageDistilTrainer(
        student_model=copy.deepcopy(student.model).to(memory_format=torch.channels_last),
        lambda_param=0.0,
        ema=config.ema,
        args=settings,
        train_dataset=_noise(config.batch_size, side, student, config.crop_area, settings.device),
        eval_dataset=_noise(LOOKED_AT, side, student, 1.0, settings.device),
        data_collator=ViewBatches.collate,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    picture = float(np.median(np.diff(clock.ends))) / config.batch_size
    looks, end = [], time.perf_counter() + LOOKS_SHARE * clock.seconds
    while len(looks) < 2 or time.perf_counter() < end:  # kernels are chosen in the first
        looks.append(trainer.evaluate()["eval_runtime"] / LOOKED_AT)
        clock.tell(100, 100)
    # Who looks only answers. Where it seems to take longer than learning, another had the cores meanwhile.
    return EpochCost(picture, min(*looks, picture))


def _noise(count: int, side: int, student: Student, crop_area: float, device: torch.device) -> ViewBatches:
    """Batches of crops of so many noisy pictures."""
    values = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)
    labels = np.arange(count) % student.model.config.num_labels
    batches = ViewBatches(
        Pixels(values, labels, "0", [], cached=True), Views("0", count, crop_area), student.normalization, device
    )
    batches.show(1)
    return batches


class _Clock(TrainerCallback):
    """When each step ended; ends training after so many seconds."""

    def __init__(self, seconds: float, tell: Callable[[int, int], None]) -> None:
        self.seconds, self.tell = seconds, tell
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.device.type != "cpu":
            torch.accelerator.synchronize(args.device)
        self.ends.append(time.perf_counter())
        spent = self.ends[-1] - self.ends[0]
        if len(self.ends) > LEAST and spent >= self.seconds:
            control.should_training_stop = True
        self.tell(min(100, round(100 * spent / self.seconds)) if self.seconds else 100, 100)
