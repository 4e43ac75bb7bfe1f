"""Decide what a run trains: its trials, epochs, views and input sizes. Pure functions, without torch."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd.config import DistillConfig
from kd.data.views import Frame
from kd.runs.run import Run

if TYPE_CHECKING:
    from kd.training.throughput import EpochCost

# What a training came to, in the trial's folder until its student is measured on the test split.
TRAINED = "trained.json"
# An input that grows does so in steps of so many pixels.
GROWTH = 16
# The mean area of an input that grows is worked out over at most so many epochs: with more it is the same.
MANY_EPOCHS = 300
# Decoded images are this much larger than the larger input, so that a crop of three quarters need not be enlarged.
PIXEL_MARGIN = 1.15


@dataclass(frozen=True)
class Trial:
    """One training of a run: a seed, with the teacher (``distilled``) or without (``baseline``), all else the same.

    It is number ``nth``, from 1, ``of`` the run's trainings.
    """

    seed: int
    name: str
    nth: int
    of: int

    @property
    def is_distilled(self) -> bool:
        return self.name == "distilled"

    def folder(self, run: Run) -> Path:
        """Return where the trial's student, its test logits (``test.npz``) and its ``scores.json`` are kept."""
        return run.path / "arms" / f"{self.name}-{self.seed}"

    def is_trained(self, run: Run) -> bool:
        """Tell whether it was trained, and perhaps measured too, before the run was resumed."""
        return (self.folder(run) / TRAINED).exists() or self.is_done(run)

    def is_done(self, run: Run) -> bool:
        """Tell whether it was trained and measured on the test split already, before the run was resumed."""
        return (self.folder(run) / "scores.json").exists()


def is_trained(run: Run, plan: "Plan") -> bool:
    """Tell whether all trainings of a run are over."""
    return all(trial.is_trained(run) for trial in plan.trials)


@dataclass(frozen=True)
class Plan:
    """What a run will do, decided before the first step.

    ``config`` is the effective configuration: its epochs fit the minutes, its lambda is 1 where images have no labels.
    ``precision`` is the arithmetic of the student, ``teacher_precision`` that of the teacher wherever it gives targets.
    ``input_size`` is the student's (height, width) in pixels, ``frame`` the part of each image that is kept decoded. ``warnings`` are what the user should know beforehand.
    ``at_once`` is how many trainings go on at the same time.
    """

    config: DistillConfig
    trials: tuple[Trial, ...]
    classes: list[str]
    input_size: tuple[int, int]
    frame: Frame
    precision: str
    teacher_precision: str
    warnings: list[str]
    at_once: int = 1

    @property
    def views(self) -> int:
        return views_of(self.config)

    def size_in(self, epoch: int) -> tuple[int, int]:
        """Return the student's input size in an epoch, counted from 0."""
        return sizes_of(self.config, self.input_size)(epoch)


def trials_of(config: DistillConfig) -> list[Trial]:
    """List what a run trains, in order. The first trial's student is the run's own, until a later seed's is better on
    validation."""
    names = ("distilled", "baseline") if config.baseline == "yes" else ("distilled",)
    pairs = [(config.seed + nth, name) for nth in range(config.trials) for name in names]
    return [Trial(*pair, nth, len(pairs)) for nth, pair in enumerate(pairs, start=1)]


def pixel_size(sizes: list[tuple[int, int]], longest: int) -> tuple[int, int]:
    """Return the height and width in pixels at which images are kept decoded: a little over the larger of the models'
    input ``sizes``, and never over the ``longest`` side of the images themselves."""
    height, width = (min(longest, round(PIXEL_MARGIN * max(sides))) for sides in zip(*sizes, strict=True))
    return height, width


def views_of(config: DistillConfig) -> int:
    """Return how many views of each image are trained on, in turn. Where the teacher is asked in every step, each epoch
    has a view of its own; one view is the whole image in any case."""
    return config.epochs if config.targets == "online" and config.views > 1 else min(config.views, config.epochs)


def sizes_of(config: DistillConfig, full: tuple[int, int]) -> Callable[[int], tuple[int, int]]:
    """Return a function from the epoch, counted from 0, to the student's input size.

    It grows evenly from ``start_size`` in steps of ``GROWTH`` pixels over the first two thirds of the epochs
    (progressive resizing; Tan and Le 2021, arXiv:2104.00298, section 4). The last epoch is always at ``full`` size.
    """

    def size(epoch: int) -> tuple[int, int]:
        grown = 1.5 * epoch / config.epochs
        if config.start_size is None or grown >= 1 or epoch == config.epochs - 1:
            return full
        now = (config.start_size + (side - config.start_size) * grown for side in full)
        return tuple(min(side, round(pixels / GROWTH) * GROWTH) for side, pixels in zip(full, now, strict=True))

    return size


def mean_area(config: DistillConfig, full: tuple[int, int]) -> float:
    """Return the pixels of the student's input, averaged over the epochs, as a share of those of the ``full`` input."""
    config = dataclasses.replace(config, epochs=min(config.epochs, MANY_EPOCHS))
    size = sizes_of(config, full)
    return sum(math.prod(size(epoch)) for epoch in range(config.epochs)) / config.epochs / math.prod(full)


def fitting_epochs(config: DistillConfig, full: tuple[int, int], cost: "EpochCost") -> int:
    """Return the epochs that fit into ``config.minutes``, at least one, for a student whose full input size is ``full``."""
    area = mean_area(dataclasses.replace(config, epochs=MANY_EPOCHS), full)
    return max(1, round(config.minutes * 60 / cost.seconds(area)))
