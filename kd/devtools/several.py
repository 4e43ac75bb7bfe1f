"""What several processes give and cost: the same run with one process and with more, each whole and timed by stage."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from kd.devtools.workload import Plan, prepare
from kd.errors import UserError
from kd.runs.process import follow_run, start_run
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.system.memory import private_megabytes

# Epochs of each run: the first is slower.
EPOCHS = 2

HEAD = ("processes", "images/s", "targets s", "training s", "other s", "whole s", "memory MB", "accuracy")


def measure_processes(plan: Plan, counts: list[int], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Make the same run with each number of processes, and return its figures, in the order of ``counts``.

    Raises ``UserError`` where one of them cannot be done.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="kd-bench-") as name:
        tell("making the teacher and the pictures")
        prepare(plan, Path(name))
        for figures in compare_counts(plan, Path(name), counts):
            found.append(figures)
            tell(", ".join(f"{name} {value}" for name, value in figures.items()))
    return found


def compare_counts(plan: Plan, folder: Path, counts: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the figures of a run with each number of processes, on what ``prepare`` has written to ``folder``.

    Raises ``UserError`` where one of them cannot be done.
    """
    for count in counts:
        config = plan.config(folder, processes=count, epochs=EPOCHS, export="no")
        # A cache of its own, so that each asks its teacher.
        yield {"processes": count, **followed(create_run(config, folder / f"runs-{count}", "bench"))}


def followed(run: Run) -> dict[str, Any]:
    """Work on a run and return its ``seconds_by_stage``, throughput, accuracy on validation and peak memory in MB."""
    process, peak = start_run(run), 0.0

    def watch() -> None:
        nonlocal peak
        with suppress(psutil.Error):  # until it is gone
            parent = psutil.Process(process.pid)
            while parent.is_running():
                every = [parent.pid, *(child.pid for child in parent.children(recursive=True))]
                peak = max(peak, sum(private_megabytes(pid) or 0.0 for pid in every))
                time.sleep(0.2)

    Thread(target=watch, daemon=True).start()
    if follow_run(run, lambda event: None, process) != "done":
        failed = run.last("failed")
        raise UserError(failed["message"] if failed else f"The run {run.status()}. {run.explain_death()}")
    arm = run.last("arm")
    return {
        "images_per_second": arm["images_per_second"],
        **seconds_by_stage(run.events()),
        "memory_mb": round(peak),
        "accuracy": arm["validation"],
    }


def seconds_by_stage(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return how long the stages of a run that is done took: ``pictures`` (with imports and the models), ``targets``,
    ``training``, ``test`` (with export and latency), and the ``whole``."""
    at = {event["event"]: event["time"] for event in events}
    begun = next(event["time"] for event in events if event["event"] in ("started", "resumed"))
    arms = [event for event in events if event["event"] == "arm"]
    first = next(event["time"] for event in events if event["event"] == "training")
    # Trainings that go on side by side take the time of one.
    at_once = next(event for event in events if event["event"] == "training").get("at_once", 1)
    training = sum(arm["seconds"] for arm in arms) / at_once
    return {
        "pictures": round(at["models"] - begun, 2),
        "targets": round(first - at["models"], 2),
        "training": round(training, 2),
        "test": round(at["done"] - first - training, 2),
        "whole": round(at["done"] - begun, 2),
    }


def rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """Format what ``measure_processes`` returned as a table: the head, then a line for each number of processes."""
    lines = [list(HEAD)]
    for one in found:
        lines.append([
            str(one["processes"]), f"{one['images_per_second']:,.1f}", f"{one['targets']:.1f}", f"{one['training']:.1f}",
            f"{one['pictures'] + one['test']:.1f}", f"{one['whole']:.1f}", f"{one['memory_mb']:,}", f"{one['accuracy']:.1%}",
        ])  # fmt: skip
    return lines
