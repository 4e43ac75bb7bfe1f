"""Successive halving and its time: pure functions."""

import math
from dataclasses import dataclass
from typing import Any

from kd.config import DistillConfig
from kd.runs.run import Run

MOST_EPOCHS = 1000
"""A budget, however large, buys no more."""


def rungs(points: int, epochs: int) -> list[tuple[int, int]]:
    """Successive halving: (how many points, for how many epochs), rung by rung, the last ``epochs`` long.

    Jamieson and Talwalkar (2016, arXiv:1502.07943); Li et al., *Hyperband* (2018, arXiv:1603.06560), with eta = 2 and a
    quarter of ``epochs`` to begin with. Unlike theirs, each training is a whole schedule: where a cosine would end is not
    to be seen from its first quarter. Three points or fewer, and few epochs, have fewer rungs.
    """
    halvings = min(2, points.bit_length() - 1)
    lengths = sorted({max(1, round(epochs / 2**halving)) for halving in range(halvings + 1)})
    return [(math.ceil(points / 2**nth), length) for nth, length in enumerate(lengths)]


@dataclass(frozen=True)
class RunCost:
    """Seconds of an ``epoch``, of a ``run`` besides its epochs, and of the teacher for a ``view``."""

    epoch: float
    run: float
    view: float


def cost_of_run(run: Run) -> RunCost:
    """What a run that is done took. Decoding and the teacher's measurements are left out of ``run``: they are kept."""
    at = {event["event"]: event for event in run.events()}
    data, targets, train = at["data"], at["targets"], run.report()["train"]
    teacher = (at["teacher"]["time"] - at["models"]["time"]) * (1 + data["test"] / data["validation"])
    spent = at["done"]["time"] - run.last("started", "resumed")["time"]
    rest = spent - data["seconds"] - targets["seconds"] - train["seconds"] - teacher
    return RunCost(train["seconds"] / train["epochs"], max(0.0, rest), targets["seconds"])


def cost_of_estimate(found: dict[str, Any], config: DistillConfig) -> RunCost:
    """The same from what ``kd.training.estimate`` found for ``config``, whose pictures and targets may be kept in part."""
    stages, arms = found["stages"], config.trials * (2 if config.baseline == "yes" else 1)
    views = min(config.views, found["epochs"])
    return RunCost(
        stages["training"] / (arms * found["epochs"]),
        stages["start"] + stages["test"] / arms,
        stages["targets"] / views,
    )


def sweep_seconds(points: int, epochs: int, config: DistillConfig, pace: RunCost, sides: int = 2) -> float:
    """How long a sweep takes whose longest trainings are of ``epochs``, with its last trials, of each of ``sides``: with
    the teacher and, where there are labels, without."""
    steps = rungs(points, epochs)
    trained = sum(count * length for count, length in steps) + sides * config.trials * epochs
    begun = sum(count for count, _ in steps) + 1
    return trained * pace.epoch + begun * pace.run + (min(config.views, epochs) - 1) * pace.view


def epochs_within(seconds: float, points: int, config: DistillConfig, pace: RunCost, sides: int = 2) -> int:
    """The most epochs with which a sweep is done in ``seconds``; 0 if it cannot be."""
    fits = (sweep_seconds(points, epochs, config, pace, sides) <= seconds for epochs in range(1, MOST_EPOCHS + 1))
    return next((epochs for epochs, fit in enumerate(fits) if not fit), MOST_EPOCHS)


def ranking(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those rows of ``Sweep.points``, or ``point`` events, that were measured, the best first: by the length of their
    training, then accuracy on validation, then agreement with the teacher, then their order. What diverged is out."""
    found = [row for row in rows if row["accuracy"] is not None]
    return sorted(found, key=lambda row: (-row["epochs"], -row["accuracy"], -row["agreement"]))
