"""Where a run is: its events folded into one small record, which page, command line and API read."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.runs.run import CLOSED, LIFECYCLE, Run

# Event -> the stage that begins with it: queue, images, teacher, targets, training, test.
STAGE_OF = {"created": 0, "queued": 0, "started": 1, "resumed": 1, "data": 2, "teacher": 3, "targets": 4, "exported": 5}
TRAINING = STAGE_OF["targets"]
# Runs whose summaries are kept in memory.
MOST_KEPT = 1000


@dataclass(frozen=True)
class Summary:
    """What the events so far say of a run.

    Of trainings that go on at the same time, ``at_once``, it follows the first until that has ended.

    ``lifecycle`` is the name of its last lifecycle event, ``stage`` as in ``STAGE_OF``; ``phase`` is what is done at the
    moment, ``done`` of ``of``. ``message`` and ``reason`` are those of the event that closed it. ``place`` in the queue, ``ready`` the Unix time at which its turn is expected. Training
    number ``nth`` of ``trials`` is at ``epoch`` of ``epochs`` and ``step`` of ``steps``, after ``seconds``. ``accuracy``
    and ``agreement`` are the run's own student's on validation.
    """

    lifecycle: str = "created"
    stage: int = 0
    phase: str | None = None
    done: int = 0
    of: int = 0
    place: int | None = None
    ready: float | None = None
    device: str | None = None
    message: str | None = None
    reason: str | None = None
    oom_kills: int | None = None
    epochs: int | None = None
    epoch: float = 0.0
    steps: int = 0
    step: int = 0
    seconds: float = 0.0
    arm: str = "distilled"
    seed: int = 0
    nth: int = 1
    at_once: int = 1
    first_seed: int | None = None
    trials: int = 1
    images_per_second: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    labels: str = "dataset"
    warnings: tuple[str, ...] = ()

    def after(self, event: dict[str, Any]) -> "Summary":
        """Return the summary once ``event`` (``kd.runs.events``) has happened."""
        name, changes = event["event"], {}
        if name in LIFECYCLE:
            changes = {"lifecycle": name, **{key: event.get(key) for key in ("message", "reason", "place")}}
            changes["ready"] = event["time"] + event["wait"] if "wait" in event else None
        # While it waited for its next piece, its stage was that of the queue.
        if name == "paused" and self.step:
            changes["stage"] = TRAINING
        if name in ("started", "resumed"):
            changes["oom_kills"] = event.get("oom_kills")
        if name in STAGE_OF and not (name == "exported" and self.step < self.steps):  # stopped, or another still trains
            changes |= {"stage": STAGE_OF[name], "phase": None}
        if name == "progress":
            changes = {key: event[key] for key in ("phase", "done", "of")}
        if name == "data":
            changes["labels"] = event["labels"]
        if name == "hub":
            changes = {"phase": event["message"], "done": 0, "of": 0}
        if name in ("queued", "models"):
            changes["device"] = event["device"]
        if name in ("started", "resumed"):
            changes |= {"steps": 0, "step": 0}
        if name == "training" and event["nth"] == 1:
            changes["first_seed"] = event["seed"]
        if name == "training" and (self.step >= self.steps or event["nth"] <= self.nth):
            changes |= {key: event[key] for key in ("epochs", "steps", "step", "arm", "seed", "nth")}
            changes |= {"trials": event["of"], "at_once": event.get("at_once", 1), "stage": TRAINING, "phase": None}
            changes["epoch"] = event["step"] * event["epochs"] / max(event["steps"], 1)
        if name == "step" and (event["arm"], event["seed"]) == (self.arm, self.seed):
            changes = {key: event[key] for key in ("epoch", "step", "seconds", "images_per_second")}
        if name == "eval" and (event["arm"], event["seed"]) == ("distilled", self.first_seed):
            changes = {"agreement": event.get("agreement")}
            changes |= {"accuracy": event["accuracy"]} if self.labels == "dataset" else {}
        if name == "arm" and event["kept"] and self.labels == "dataset":  # a later student that is better
            changes = {"accuracy": event["validation"]}
        if event.get("warnings"):
            changes["warnings"] = tuple(dict.fromkeys([*self.warnings, *event["warnings"]]))
        return dataclasses.replace(self, **changes)

    def share(self) -> float:
        """Return how much of the present stage is done, from 0 to 1."""
        if self.lifecycle == "done":
            return 1.0
        if self.stage == TRAINING:
            return min(self.step / self.steps, 1.0) if self.steps else 0.0
        return min(self.done / self.of, 1.0) if self.phase and self.of else 0.0


# A run's cursor and summary so far: a shortcut past the events that have been read before.
_kept: dict[Path, tuple[int, Summary]] = {}


def summarize(run: Run) -> Summary:
    """Fold all events of a run. Raises ``RunDeleted``."""
    cursor, summary = _kept.get(run.path, (0, Summary()))
    events, cursor = run.read(cursor)
    for event in events:
        summary = summary.after(event)
    _kept[run.path] = cursor, summary
    if len(_kept) > MOST_KEPT:
        _kept.pop(next(iter(_kept)), None)
    return summary


def status_of(run: Run, summary: Summary) -> str:
    """Return ``run.status()``, which reads every event, asking for it only where the summary cannot tell."""
    status = LIFECYCLE[summary.lifecycle]
    return status if status in CLOSED or run.is_locked() else run.status()
