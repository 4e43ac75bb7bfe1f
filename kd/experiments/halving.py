"""Successive halving, its time and its results: pure functions."""

import math
from dataclasses import dataclass
from typing import Any

from kd.config import DistillConfig
from kd.experiments.grid import Point
from kd.runs.run import Run

# The most epochs that a budget of minutes is turned into.
MOST_EPOCHS = 1000


def rungs(points: int, epochs: int) -> list[tuple[int, int]]:
    """Return the rungs of successive halving: (how many points, for how many epochs); the last is ``epochs`` long.

    Jamieson and Talwalkar (2016, arXiv:1502.07943); Li et al., *Hyperband* (2018, arXiv:1603.06560), with eta = 2 and a
    quarter of ``epochs`` to begin with. Unlike theirs, each training has a whole schedule of the learning rate: the first
    quarter of a cosine does not show where it ends. Three points or fewer, and few epochs, have fewer rungs.
    """
    halvings = min(2, points.bit_length() - 1)
    lengths = sorted({max(1, round(epochs / 2**halving)) for halving in range(halvings + 1)})
    return [(math.ceil(points / 2**nth), length) for nth, length in enumerate(lengths)]


# --- Time


@dataclass(frozen=True)
class RunCost:
    """The seconds of an ``epoch``, of a ``run`` without its epochs, and of the teacher for one ``view`` of all images."""

    epoch: float
    run: float
    view: float


def cost_of_run(run: Run) -> RunCost:
    """Return what a run that is done took; ``run`` is without what later runs find in the cache.

    These are the decoded images and the scores of the teacher.
    """
    at = {event["event"]: event for event in run.events()}
    data, targets, train = at["data"], at["targets"], run.report()["train"]
    teacher = (at["teacher"]["time"] - at["models"]["time"]) * (1 + data["test"] / data["validation"])
    spent = at["done"]["time"] - run.last("started", "resumed")["time"]
    rest = spent - data["seconds"] - targets["seconds"] - train["seconds"] - teacher
    return RunCost(train["seconds"] / train["epochs"], max(0.0, rest), targets["seconds"])


def cost_of_estimate(found: dict[str, Any], config: DistillConfig) -> RunCost:
    """Return the same from what ``kd.training.estimate`` found for ``config``.

    Images and targets may be in the cache in part, which makes a view cheaper.
    """
    stages, trainings = found["stages"], config.trials * (2 if config.baseline == "yes" else 1)
    views = min(config.views, found["epochs"])
    return RunCost(
        stages["training"] / (trainings * found["epochs"]),
        stages["start"] + stages["test"] / trainings,
        stages["targets"] / views,
    )


def sweep_seconds(points: int, epochs: int, config: DistillConfig, cost: RunCost, sides: int = 2) -> float:
    """Return how long a sweep takes whose longest trainings have ``epochs``, its last trials included.

    These are trained on ``sides``: with the teacher and, where there are labels, without.
    """
    steps = rungs(points, epochs)
    trained = sum(count * length for count, length in steps) + sides * config.trials * epochs
    started = sum(count for count, _ in steps) + 1
    return trained * cost.epoch + started * cost.run + (min(config.views, epochs) - 1) * cost.view


def epochs_within(seconds: float, points: int, config: DistillConfig, cost: RunCost, sides: int = 2) -> int:
    """Return the most epochs with which a sweep is done within ``seconds``; 0 if one epoch takes longer."""
    fits = (sweep_seconds(points, epochs, config, cost, sides) <= seconds for epochs in range(1, MOST_EPOCHS + 1))
    return next((epochs for epochs, fit in enumerate(fits) if not fit), MOST_EPOCHS)


# --- Results


def is_of(values: dict[str, Any], point: Point) -> bool:
    """Tell whether an event, or the changed settings of a run, belong to a point."""
    return point.to_dict().items() <= values.items()


def longest_training(point: Point, events: list[dict[str, Any]], plan: list[tuple[int, int]]) -> dict[str, Any]:
    """Return the longest training of a point, of those that the ``point`` events tell of, as in ``Sweep.points``."""
    names = ("epochs", "run", "accuracy", "agreement", "diverged")
    measured = [event for event in events if event["event"] == "point" and is_of(event, point)]
    if not measured:
        return {"rung": None, **dict.fromkeys(names), "diverged": False}
    longest = max(measured, key=lambda event: event["epochs"])
    rung = next(nth for nth, (_, epochs) in enumerate(plan, start=1) if epochs == longest["epochs"])
    return {"rung": rung, **{name: longest[name] for name in names}}


def ranking(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows of ``Sweep.points``, or ``point`` events, the best first, without those that diverged.

    First counts the length of the training, then accuracy on validation, then agreement with the teacher, then the order.
    """
    measured = [row for row in rows if row["accuracy"] is not None]
    return sorted(measured, key=lambda row: (-row["epochs"], -row["accuracy"], -row["agreement"]))
