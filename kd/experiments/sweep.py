"""A sweep over temperatures, lambdas and methods.

All points are trained for a short time, the best ones for longer. The winner is then trained again with fresh seeds,
with and without the teacher, before anything is claimed.

The folder of a sweep, in ``.sweeps`` in the folder of the runs, is like that of a run: ``config.json`` (the settings
that all points share, and the hash of the owner), ``sweep.json`` (the grid), ``events.jsonl`` (``created started plan
run point | done failed stopped``), ``lock``, ``STOP``, ``report.json``. What a sweep trains are ordinary runs: an
event ``run`` tells which run was made with which settings, an event ``point`` what it scored. So a sweep that was
killed at any moment goes on from there.
"""

import json
import math
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd.config import DistillConfig
from kd.errors import UserError
from kd.experiments.grid import Grid, Point, check_labels, check_sweep, settings_of
from kd.experiments.halving import (
    cost_of_run,
    epochs_within,
    is_of,
    longest_training,
    ranking,
    rungs,
    sweep_seconds,
)
from kd.runs.process import closed_by_an_event, finish_run, niceness, open_log
from kd.runs.queue import StopAsked
from kd.runs.run import CLOSED, LIFECYCLE, Run, events_by_trial
from kd.runs.store import create_run, list_runs
from kd.system.files import SWEEPS, write_whole
from kd.system.ids import one_of
from kd.system.processes import start_kd
from kd.text import count_of

# Is called with each line of progress.
Tell = Callable[[str], None]


# --- The folder of a sweep


@dataclass(frozen=True)
class Sweep(Run):
    """The folder of a sweep; events, lock, status, owner and ``report`` are those of a run. It holds only the path."""

    @property
    def resume_command(self) -> str:
        return f"`python -m kd sweep --resume {self.id}`"

    @property
    def goes_on(self) -> str:
        return f"{self.resume_command} goes on with the sweep."

    @property
    def runs_folder(self) -> Path:
        return self.path.parent.parent

    def grid(self) -> Grid:
        return Grid(**json.loads((self.path / "sweep.json").read_text()))

    def plan(self) -> list[tuple[int, int]] | None:
        """Return its ``rungs``, once they are decided."""
        plan = self.last("plan")
        return plan and [tuple(rung) for rung in plan["rungs"]]

    def labels(self) -> str:
        """Return whose labels are learned: ``dataset``, or ``teacher``, and then accuracy is agreement with it."""
        return (self.last("plan") or {}).get("labels", "dataset")

    def points(self) -> list[dict[str, Any]]:
        """Return a row for each point: its ``temperature``, ``lambda`` and ``method``, and what is known of it.

        That is ``rung`` (from 1) and ``epochs`` of its longest training, the ``run``, ``accuracy`` and ``agreement`` on
        validation, and ``diverged``; ``now`` is the id of the run in which it is trained at the moment.
        """
        events, plan = self.events(), self.plan() or []
        last = next((event for event in reversed(events) if event["event"] in ("run", "point", "done")), {})
        return [
            {
                **point.to_dict(),
                **longest_training(point, events, plan),
                "now": last["run"] if last.get("event") == "run" and is_of(last["changes"], point) else None,
            }
            for point in self.grid().points()
        ]

    def run_of(self, changes: dict[str, Any]) -> Run | None:
        """Find the run that was made with these changes of the settings, if it is still there."""
        made = (event["run"] for event in self.events() if event["event"] == "run" and event["changes"] == changes)
        found = [run for run in (Run(self.runs_folder / id) for id in made) if (run.path / "config.json").exists()]
        return found[-1] if found else None

    def make_run(self, changes: dict[str, Any]) -> Run:
        """Make a run with these changes of the settings and without an export, of the owner of the sweep, which it names."""
        config = DistillConfig.from_dict({**self.config().to_dict(), **changes, "export": "no"})
        run = create_run(config, self.runs_folder, secrets.token_hex(16))
        settings = {**run.settings(), "owner": self.settings()["owner"], "sweep": self.id}
        write_whole(run.path / "config.json", json.dumps(settings, indent=2))
        self.append("run", run=run.id, changes=changes)
        return run

    def ask_to_stop(self) -> None:
        """Leave the file that the working process checks for, and stop the run in progress."""
        super().ask_to_stop()
        self.stop_run()

    def stop_run(self) -> None:
        """Ask the run in progress, if there is one, to stop. Only once: a resumed run would obey a second request."""
        last = self.last("run")
        run = last and Run(self.runs_folder / last["run"])
        if run and run.path.exists() and not run.stop_asked() and run.last(*LIFECYCLE)["event"] not in CLOSED:
            run.ask_to_stop()


def create_sweep(config: DistillConfig, grid: Grid, folder: Path, owner: str) -> Sweep:
    """Make the folder of a new sweep in the ``folder`` of the runs; ``start_sweep`` works on it.

    ``config`` has the settings that all points share; its ``trials`` are those of the winner, whose seeds follow
    ``seed``. Raises ``ValueError`` as ``check_sweep`` does.
    """
    check_sweep(config, grid)
    sweep = Sweep(create_run(config, Path(folder) / SWEEPS, owner).path)
    try:
        write_whole(sweep.path / "sweep.json", json.dumps(asdict(grid), indent=2))
    except OSError as error:
        shutil.rmtree(sweep.path, ignore_errors=True)
        raise UserError(sweep.not_writable(error)) from error
    return sweep


def list_sweeps(folder: Path) -> list[Sweep]:
    """List the sweeps in a folder of runs, newest first."""
    found = [Sweep(run.path) for run in list_runs(Path(folder) / SWEEPS)]
    return [sweep for sweep in found if (sweep.path / "sweep.json").exists()]


def find_sweep(folder: Path, id: str) -> Sweep:
    """Find the sweep with this id, the start of one, or ``last``. Raises ``UserError`` if there is none, or several."""
    return one_of(list_sweeps(folder), id, "sweep", folder, "`python -m kd sweep` makes one.")


def start_sweep(sweep: Sweep) -> subprocess.Popen:
    """Work on a sweep, new or interrupted, in a detached process, which outlives this one and has a low priority."""
    sweep.forget_stop()
    with open_log(sweep) as log:
        return start_kd("run", str(sweep.path), nice=niceness(sweep), stdout=log, stderr=log)


# --- The work


def work_on_sweep(sweep: Sweep, tell: Tell = lambda text: None) -> None:
    """Work on a sweep until it is done or asked to stop; every ending is an event. One that is done is left alone.

    Raises ``UserError`` if another process works on it, and if it cannot go on, after a ``failed`` event. The next call
    tries again.
    """
    if sweep.last("done"):
        return
    with sweep.work():
        sweep.forget_old_stop()
        with closed_by_an_event(sweep):
            sweep.begin(resume=sweep.last("started") is not None)
            try:
                recipe(sweep, tell)
            except (StopAsked, KeyboardInterrupt):
                sweep.stop_run()  # after a second Ctrl-C it may be at work still
                raise


def recipe(sweep: Sweep, tell: Tell) -> None:
    """Do all that a sweep does between its events ``started`` and ``done``."""
    # --- Halving: each rung trains the best points of the one before for longer
    left = sweep.grid().points()
    steps = plan(sweep, len(left), tell)
    for count, epochs in steps:
        measured = [measure_point(sweep, point, epochs, tell) for point in left[:count]]
        left = [Point.of(row) for row in ranking(measured)]
    # --- The winner, by validation alone
    rows = [{name: value for name, value in row.items() if name != "now"} for row in sweep.points()]
    best = ranking(rows)
    if not best:
        raise UserError("Every point diverged. Try another sweep with a learning rate ten times lower.")
    # If labels alone have won, the best point with the teacher is compared with them.
    with_teacher = next((row for row in best if row["lambda"]), best[0])
    # --- Fresh seeds, with the teacher and without; report
    run = train_fresh_seeds(sweep, with_teacher, steps[-1][1], tell)
    report = {"sweep": sweep.id, "points": rows, **conclusion(sweep, best[0], with_teacher, run)}
    write_whole(sweep.path / "report.json", json.dumps(report, indent=2))
    sweep.close("done", winner=best[0], final=run.id, sentence=report["sentence"])


def plan(sweep: Sweep, points: int, tell: Tell) -> list[tuple[int, int]]:
    """Decide the rungs of the sweep, and write them down: a resumed sweep keeps to them."""
    config, minutes = sweep.config(), sweep.grid().budget_minutes
    steps = sweep.plan()
    if steps is None:
        labels, epochs = check_labels(config, sweep.grid()), config.epochs
        if minutes is not None:
            epochs = affordable(sweep, minutes * 60, points, 2 if labels == "dataset" else 1, tell)
        steps = rungs(points, epochs)
        sweep.append("plan", epochs=epochs, rungs=steps, labels=labels)
    words = ", then ".join(f"{count} of {count_of(epochs, 'epoch')}" for count, epochs in steps)
    both = ", with the teacher and without," if sweep.labels() == "dataset" else ""
    tell(
        f"plan: {count_of(points, 'point')}; trainings: {words}, then the winner with {count_of(config.trials, 'fresh seed')}"
        f"{both} of {count_of(steps[-1][1], 'epoch')}"
    )
    return steps


def affordable(sweep: Sweep, seconds: float, points: int, sides: int, tell: Tell) -> int:
    """Return the most epochs with which the sweep is done in about so many seconds, from one training of one epoch.

    ``sides`` as in ``sweep_seconds``. Raises ``UserError`` if the time is too short for one epoch.
    """
    config = sweep.config()
    point = next(point for point in sweep.grid().points() if point.lambda_)
    run = train_point(sweep, settings_of(config, point, 1))  # one epoch is at the full input, whatever ``start_size``
    if run.report() is None:
        raise UserError(f"The run of one epoch, which shows how long one takes: {run.last('failed')['message']}")
    # Counted from its last start: a pause before it, or a wait in the queue, is no part of the budget.
    cost, spent = cost_of_run(run), run.last("done")["time"] - run.last("started", "resumed")["time"]
    tell(f"measured: {cost.epoch:.1f} s an epoch and {cost.run:.1f} s a run (run {run.id})")
    epochs = epochs_within(seconds - spent, points, config, cost, sides)
    if not epochs:
        needed = math.ceil((spent + sweep_seconds(points, 1, config, cost, sides)) / 60)
        raise UserError(
            f"{seconds / 60:g} minutes are too few for {count_of(points, 'point')}: with one epoch each and "
            f"{count_of(config.trials, 'trial')} it takes about {needed} here. Begin another sweep with those, or with fewer points or trials."
        )
    return epochs


def measure_point(sweep: Sweep, point: Point, epochs: int, tell: Tell) -> dict[str, Any]:
    """Train a point, unless it was trained already, and return the data of its ``point`` event.

    ``accuracy`` and ``agreement`` are those of its best epoch on validation, the only split by which a sweep chooses.
    """
    settings = {**point.to_dict(), "epochs": epochs}
    before = [event for event in sweep.events() if event["event"] == "point"]
    known = next((event for event in before if settings.items() <= event.items()), None)
    if known:
        return known
    run = train_point(sweep, settings_of(sweep.config(), point, epochs))
    diverged, best, seconds = run.status() != "done", {}, 0.0
    if not diverged:
        events = next(iter(events_by_trial(run.events()).values()))
        best = max((event for event in events if event["event"] == "eval"), key=lambda event: event["accuracy"])
        seconds = run.report()["train"]["seconds"]
    row = {
        **settings, "run": run.id, "accuracy": best.get("accuracy"), "agreement": best.get("agreement"),
        "diverged": diverged, "seconds": seconds,
    }  # fmt: skip
    sweep.append("point", **row)
    score = "diverged, counts as the worst" if diverged else f"{score_words(sweep, row)}, {seconds:.0f} s"
    total = sum(count for count, _ in sweep.plan())
    tell(f"{len(before) + 1:3} of {total}: {point}, {count_of(epochs, 'epoch')}: {score} (run {run.id})")
    return row


def train_fresh_seeds(sweep: Sweep, row: dict[str, Any], epochs: int, tell: Tell) -> Run:
    """Train the best point with the teacher again, with ``trials`` seeds that chose nothing, and as often without."""
    config, point = sweep.config(), Point.of(row)
    paired = bool(point.lambda_) and sweep.labels() == "dataset"
    changes = {
        **settings_of(config, point, epochs),
        "seed": config.seed + 1,
        "trials": config.trials,
        "baseline": "yes" if paired else "no",
    }
    both = ", with the teacher and without" if paired else ""
    tell(f"{point}: {count_of(epochs, 'epoch')} with {count_of(config.trials, 'fresh seed')}{both}")
    run = train_point(sweep, changes)
    if run.status() != "done":
        raise UserError(f"The winner diverged with fresh seeds, so nothing can be claimed: run {run.id}.")
    return run


def conclusion(sweep: Sweep, best: dict[str, Any], with_teacher: dict[str, Any], run: Run) -> dict[str, Any]:
    """Return the results of a sweep.

    Args:
        best: the row of ``Sweep.points`` that won; ``with_teacher``: the best one with a teacher.
        run: the run with fresh seeds.

    Returns:
        ``winner`` (``best``), ``final`` (the id of ``run``), ``student`` (the winner's folder in the folder of the
        runs), ``verdict`` (that of ``run``, on the test split), and all of it as a ``sentence``.
    """
    report = run.report()
    verdict, student = report["verdict"], f"{run.id}/student"
    winner, other = (
        f"{Point.of(row)} ({score_words(sweep, row)} after {count_of(row['epochs'], 'epoch')})"
        for row in (best, with_teacher)
    )
    sentence = f"Winner: {winner}."
    if not with_teacher["lambda"]:
        sentence += " With the teacher all diverged."
    elif not best["lambda"]:
        sentence += f" The best with the teacher: {other}."
        student = f"{run.id}/arms/baseline-{report['student']['seed']}/student"
    if verdict:
        sentence += f" With fresh seeds: {verdict['sentence']}"
    elif sweep.labels() == "teacher":
        agreed = [f"{trial['agreement']:.1%}" for trial in report["trials"]]
        sentence += f" With fresh seeds it agrees with the teacher on {', '.join(agreed)} of the test pictures."
    return {"winner": best, "final": run.id, "student": student, "verdict": verdict, "sentence": sentence}


def score_words(sweep: Sweep, row: dict[str, Any]) -> str:
    """Say in words what a training scored."""
    what = "" if sweep.labels() == "dataset" else "agreement with the teacher "
    return f"{row['accuracy']:.1%} {what}on validation"


def train_point(sweep: Sweep, changes: dict[str, Any]) -> Run:
    """Return the sweep's run with these changes of the settings, done or diverged.

    It is a new one, or the one that was made for them before, which goes on. Raises ``StopAsked``, and ``UserError`` if
    the run ended in another way.
    """
    if sweep.stop_asked():
        raise StopAsked
    old = sweep.run_of(changes)
    if old and (old.status() == "done" or has_diverged(old)):
        return old
    run = old or sweep.make_run(changes)

    def obey(event: dict[str, Any]) -> None:
        if sweep.stop_asked():
            sweep.stop_run()

    status = finish_run(run, obey, new=old is None)
    if status == "stopped":
        raise StopAsked
    if status != "done" and not has_diverged(run):
        reason = f"failed: {run.last('failed')['message']}" if status == "failed" else "died: its process is gone."
        raise UserError(f"Run {run.id} {reason} {sweep.goes_on}")
    return run


def has_diverged(run: Run) -> bool:
    """Tell whether a run has failed because its loss diverged."""
    last = run.last(*LIFECYCLE)
    return last["event"] == "failed" and last["kind"] == "diverged"
