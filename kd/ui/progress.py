"""Where a run is: its events folded into one small record, and that record in words."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.runs.run import CLOSED, LIFECYCLE, Run
from kd.system import memory
from kd.ui.settings import on_page

STAGES = ("Queue", "Pictures", "Teacher", "Targets", "Training", "Test")

STAGE_OF = {"created": 0, "queued": 0, "started": 1, "resumed": 1, "data": 2, "teacher": 3, "targets": 4, "exported": 5}
"""Event -> the stage that begins with it."""

DOING = {
    "looking for duplicates": "Looking for duplicates",
    "comparing pictures": "Comparing the pictures with each other",
    "throughput": "Measuring how many epochs fit into the minutes",
    "train pixels": "Reading the training pictures",
    "validation pixels": "Reading the validation pictures",
    "teacher check": "Checking the teacher on validation",
    "targets": "Asking the teacher, once for each view",
    "test: teacher": "Measuring the teacher on the test split",
    "test: student": "Measuring the student on the test split",
}

AT_STAGE = (
    "Starting",
    "Reading the pictures",
    "Checking the teacher",
    "Asking the teacher",
    "Training",
    "Measuring both",
)


@dataclass(frozen=True)
class Summary:
    """What the events so far say of a run."""

    lifecycle: str = "created"
    stage: int = 0
    phase: str | None = None
    done: int = 0
    of: int = 0
    place: int | None = None
    ready: float | None = None
    device: str | None = None
    message: str | None = None
    oom_kills: int | None = None
    epochs: int | None = None
    epoch: float = 0.0
    steps: int = 0
    step: int = 0
    seconds: float = 0.0
    arm: str = "distilled"
    nth: int = 1
    arms: int = 1
    images_per_second: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    labels: str = "dataset"
    warnings: tuple[str, ...] = ()

    def after(self, event: dict[str, Any]) -> "Summary":
        """The summary once ``event`` has happened."""
        name, changes = event["event"], {}
        if name in LIFECYCLE:
            changes = {"lifecycle": name, "message": event.get("message"), "place": event.get("place")}
            changes["ready"] = event["time"] + event["wait"] if "wait" in event else None
        if name in ("started", "resumed"):
            changes["oom_kills"] = event.get("oom_kills")
        if name in STAGE_OF:
            changes |= {"stage": STAGE_OF[name], "phase": None}
        if name == "progress":
            changes = {key: event[key] for key in ("phase", "done", "of")}
        if name == "data":
            changes["labels"] = event.get("labels", "dataset")
        if name == "hub":
            changes = {"phase": event["message"], "done": 0, "of": 0}
        if name in ("queued", "models"):
            changes["device"] = event["device"]
        if name == "training":
            changes = {key: event[key] for key in ("epochs", "steps", "step", "arm", "nth") if key in event}
            changes |= {"arms": event.get("of", 1), "stage": STAGE_OF["targets"], "phase": None}
            changes["epoch"] = event["step"] * event["epochs"] / max(event["steps"], 1)
        if name == "step":
            changes = {key: event[key] for key in ("epoch", "step", "seconds", "images_per_second")}
        if name == "eval" and self.nth == 1:  # of the first student
            changes = {"agreement": event.get("agreement")}
            changes |= {"accuracy": event["accuracy"]} if self.labels == "dataset" else {}
        if name == "arm" and event.get("kept") and self.labels == "dataset":  # a later student that is better
            changes = {"accuracy": event["validation"]}
        if event.get("warnings"):
            changes["warnings"] = tuple(dict.fromkeys([*self.warnings, *event["warnings"]]))
        return dataclasses.replace(self, **changes)

    def share(self) -> float:
        """How much of the present stage is done, from 0 to 1."""
        if self.lifecycle == "done":
            return 1.0
        if self.stage == STAGE_OF["targets"]:
            return min(self.step / self.steps, 1.0) if self.steps else 0.0
        return min(self.done / self.of, 1.0) if self.phase and self.of else 0.0

    def line(self, status: str) -> tuple[str, str]:
        """What is going on, and its figures: ("Training, epoch 3 of 8", "1,240 images/s on the CPU, 40 s left")."""
        if status in CLOSED:
            return self._closing(status), ""
        if status == "queued":
            return f"Waiting for the {self._where()}: {self.in_queue()}" if self.place else "Starting", ""
        if self.stage == STAGE_OF["targets"] and self.epochs:
            return f"{self._training()}, epoch {self._epoch()} of {self.epochs}", self._pace()
        if self.phase == "throughput":
            return DOING["throughput"], f"{self.share():.0%}"
        if self.phase:
            return DOING.get(self.phase, self.phase), f"{self.done:,} of {self.of:,}" if self.of else ""
        return AT_STAGE[self.stage], ""

    def in_queue(self) -> str:
        """The place in the queue, and the time that is left to wait where it is known."""
        left = self.ready - time.time() if self.ready else 0
        return f"place {self.place} in the queue" + (f", about {roughly(left)}" if left >= 1 else "")

    def _closing(self, status: str) -> str:
        where = f" in epoch {self._epoch()} of {self.epochs}" if self.epochs else ""
        return {
            "done": "Done",
            "failed": on_page(self.message or "Failed"),
            "stopped": f"Stopped{where}. Resume goes on from the last checkpoint.",
            "died": f"The run's process is gone: it ended{where} without a word. {memory.epitaph(self.oom_kills)} "
            "Resume goes on from the last checkpoint.",
        }[status]

    def _training(self) -> str:
        """What is trained, where that is not the run's own student: "Training 2 of 6, without the teacher"."""
        which = f" {self.nth} of {self.arms}" if self.arms > 1 else ""
        return f"Training{which}" + (", without the teacher" if self.arm == "baseline" else "")

    def _epoch(self) -> int:
        return min(int(self.epoch - 1e-6) + 1, self.epochs or 1) if self.epoch else 1

    def _pace(self) -> str:
        if not self.images_per_second or not self.step:
            return ""
        left = (self.steps * (self.arms - self.nth + 1) - self.step) * self.seconds / self.step
        return f"{self.images_per_second:,.0f} images/s on the {self._where()}, {duration(left)} left"

    def _where(self) -> str:
        return "GPU" if (self.device or "cpu") != "cpu" else "CPU"


_seen: dict[Path, tuple[int, Summary]] = {}
"""A run's cursor and summary so far: only a shortcut past the events that have been read before."""

MOST_SEEN = 1000


def summarize(run: Run) -> Summary:
    """The summary of all events of a run. Raises ``RunDeleted``."""
    cursor, summary = _seen.get(run.path, (0, Summary()))
    events, cursor = run.read(cursor)
    for event in events:
        summary = summary.after(event)
    _seen[run.path] = cursor, summary
    if len(_seen) > MOST_SEEN:
        _seen.pop(next(iter(_seen)), None)
    return summary


def status_of(run: Run, summary: Summary) -> str:
    """``run.status()``, which reads every event, asked for only where the summary cannot tell."""
    status = LIFECYCLE[summary.lifecycle]
    return status if status in CLOSED or run.is_locked() else run.status()


def duration(seconds: float) -> str:
    """ "40 s", "3 min 20 s", "2 h 5 min"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def roughly(seconds: float) -> str:
    """A time that is only guessed, without digits that claim more: "40 s", "1 min 20 s", "12 min", "2 h 5 min"."""
    step = next((step for below, step in ((10, 1), (60, 5), (600, 10), (3600, 60)) if seconds < below), 300)
    return duration(max(1, round(seconds / step) * step)).removesuffix(" 0 s").removesuffix(" 0 min")
