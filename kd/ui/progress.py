"""Say in words where a run is."""

import math
import time

from kd.runs.run import CLOSED
from kd.runs.summary import TRAINING, Summary
from kd.system import memory
from kd.ui.settings import on_page

# The names of the stages, as in ``kd.runs.summary.STAGE_OF``.
STAGES = ("Queue", "Pictures", "Teacher", "Targets", "Training", "Test")
# Phase of a ``progress`` event -> what is being done.
PHASES = {
    "looking for duplicates": "Looking for duplicates",
    "comparing pictures": "Comparing the pictures with each other",
    "throughput": "Measuring how many epochs fit into the minutes",
    "train pixels": "Reading the training pictures",
    "validation pixels": "Reading the validation pictures",
    "teacher check": "Checking the teacher on validation",
    "targets": "Asking the teacher, once for each view",
    "test: teacher": "Measuring the teacher on the test split",
    "test: student": "Measuring the student on the test split",
    "export": "Exporting the student, and measuring it in ONNX Runtime",
}
# What is being done at a stage as long as no phase of it is known.
AT_STAGE = (
    "Starting",
    "Reading the pictures",
    "Checking the teacher",
    "Asking the teacher",
    "Training",
    "Measuring both",
)


def progress_line(summary: Summary, status: str) -> tuple[str, str]:
    """Return what is going on, and its figures: ("Training, epoch 3 of 8", "1,240 images/s on the CPU, 40 s left")."""
    if status in CLOSED:
        return _closing(summary, status), ""
    if status == "queued":
        waiting = f"Waiting for the {_device(summary)}: {queue_place(summary)}" if summary.place else "Starting"
        return waiting, ""
    if summary.stage == TRAINING and summary.epochs:
        return f"{_training(summary)}, epoch {_epoch(summary)} of {summary.epochs}", _throughput(summary)
    if summary.phase == "throughput":
        return PHASES["throughput"], f"{summary.share():.0%}"
    if summary.phase:
        counted = f"{summary.done:,} of {summary.of:,}" if summary.of else ""
        return PHASES.get(summary.phase, summary.phase), counted
    return AT_STAGE[summary.stage], ""


def queue_place(summary: Summary) -> str:
    """Say the place in the queue, and the time that is left to wait where it is known."""
    left = summary.ready - time.time() if summary.ready else 0
    return f"place {summary.place} in the queue" + (f", about {roughly(left)}" if left >= 1 else "")


def _closing(summary: Summary, status: str) -> str:
    where = f" in epoch {_epoch(summary)} of {summary.epochs}" if summary.epochs else ""
    return {
        "done": "Done",
        "failed": on_page(summary.message or "Failed"),
        "stopped": f"Stopped{where}. Resume goes on from the last checkpoint.",
        "paused": f"Paused{where}. {summary.message or ''}",
        "died": f"The run's process is gone: it ended{where} without a word. {memory.explain_death(summary.oom_kills)} "
        "Resume goes on from the last checkpoint.",
    }[status]


def _training(summary: Summary) -> str:
    """Say which of several trainings it is: "Training 2 of 6, without the teacher", "Training 3 and 4 of 6"."""
    if summary.trials == 1:
        return "Training"
    last = min(summary.nth + summary.at_once - 1, summary.trials)
    if (summary.nth, last) == (1, summary.trials):
        return "Training with and without the teacher" if last == 2 else f"Training all {last} side by side"
    if last > summary.nth:
        return f"Training {summary.nth} {'and' if last == summary.nth + 1 else 'to'} {last} of {summary.trials}"
    return f"Training {last} of {summary.trials}" + (", without the teacher" if summary.arm == "baseline" else "")


def _epoch(summary: Summary) -> int:
    return min(int(summary.epoch - 1e-6) + 1, summary.epochs or 1) if summary.epoch else 1


def seconds_left(summary: Summary) -> float | None:
    """Return how long the trainings will go on; ``None`` where that is not known."""
    if summary.stage != TRAINING or not summary.images_per_second or not summary.step:
        return None
    rounds = math.ceil((summary.trials - summary.nth + 1) / summary.at_once)
    return (summary.steps * rounds - summary.step) * summary.seconds / summary.step


def _throughput(summary: Summary) -> str:
    left = seconds_left(summary)
    if left is None:
        return ""
    return f"{summary.images_per_second:,.0f} images/s on the {_device(summary)}, {duration(left)} left"


def _device(summary: Summary) -> str:
    return "GPU" if (summary.device or "cpu") != "cpu" else "CPU"


def duration(seconds: float) -> str:
    """Write a time: "40 s", "3 min 20 s", "2 h 5 min"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def roughly(seconds: float) -> str:
    """Write a time that is only guessed, without digits that claim more: "40 s", "1 min 20 s", "12 min", "2 h 5 min"."""
    step = next((step for below, step in ((10, 1), (60, 5), (600, 10), (3600, 60)) if seconds < below), 300)
    return duration(max(1, round(seconds / step) * step)).removesuffix(" 0 s").removesuffix(" 0 min")
