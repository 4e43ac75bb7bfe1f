"""Decide what a run trains: its trials, epochs, views and input sizes. Pure functions, without torch."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd.config import DistillConfig
from kd.runs.run import Run

if TYPE_CHECKING:
    from kd.models.student import Student
    from kd.models.teacher import Teacher
    from kd.training.throughput import EpochCost

GROWTH = 16
"""An input that grows does so in steps of so many pixels."""

MANY_EPOCHS = 300
"""With more such an input is, on the average, as large."""


@dataclass(frozen=True)
class Trial:
    """One training of a run: a seed, with the teacher (``distilled``) or without (``baseline``), all else the same. It
    is the ``nth`` ``of`` so many."""

    seed: int
    name: str
    nth: int
    of: int

    def folder(self, run: Run) -> Path:
        """Where the arm's student, its test logits (``test.npy``) and its ``scores.json`` are kept."""
        return run.path / "arms" / f"{self.name}-{self.seed}"


def trials_of(config: DistillConfig) -> list[Trial]:
    """What a run trains, in order. The run's own student is the first arm's, until a later seed's is
    better on validation."""
    names = ("distilled", "baseline") if config.baseline == "yes" else ("distilled",)
    pairs = [(config.seed + trial, name) for trial in range(config.trials) for name in names]
    return [Trial(*pair, nth, len(pairs)) for nth, pair in enumerate(pairs, start=1)]


def pixel_side(teacher: "Teacher | None", student: "Student", longest: int) -> int:
    """The side in pixels at which pictures are kept: a little over the larger of the two inputs, so that crops of three
    quarters of a picture need not be enlarged, and never over the pictures' own."""
    sizes = [model.normalization.size for model in (teacher, student) if model]
    return min(longest, round(1.15 * max(map(max, sizes))))


def views_of(config: DistillConfig) -> int:
    """How many views of each picture are trained on, in turn. With no answers to keep each epoch has its own; one view is
    the whole picture in any case."""
    return config.epochs if config.targets == "online" and config.views > 1 else min(config.views, config.epochs)


def sizes_of(config: DistillConfig, full: tuple[int, int]) -> Callable[[int], tuple[int, int]]:
    """The epoch, from 0 on -> the student's input: it grows evenly from ``start_size`` in steps of ``GROWTH`` pixels over
    the first two thirds (progressive resizing; Tan and Le 2021, arXiv:2104.00298, section 4). The last is always full."""

    def size(epoch: int) -> tuple[int, int]:
        grown = 1.5 * epoch / config.epochs
        if config.start_size is None or grown >= 1 or epoch == config.epochs - 1:
            return full
        now = (config.start_size + (side - config.start_size) * grown for side in full)
        return tuple(min(side, round(pixels / GROWTH) * GROWTH) for side, pixels in zip(full, now, strict=True))

    return size


def mean_area(config: DistillConfig, full: tuple[int, int]) -> float:
    """The pixels of the student's input, on the average over the epochs, as a share of the ``full`` one's."""
    config = dataclasses.replace(config, epochs=min(config.epochs, MANY_EPOCHS))
    size = sizes_of(config, full)
    return sum(math.prod(size(epoch)) for epoch in range(config.epochs)) / config.epochs / math.prod(full)


def fitting_epochs(
    config: DistillConfig, full: tuple[int, int], cost: "EpochCost", pictures: int, validation: int, asking: float = 0.0
) -> int:
    """The epochs that fit into ``config.minutes``. ``asking``: the seconds a picture of a teacher that is asked in every
    step."""
    area = mean_area(dataclasses.replace(config, epochs=MANY_EPOCHS), full)
    return max(1, round(config.minutes * 60 / cost.seconds(pictures, validation, area, asking)))
