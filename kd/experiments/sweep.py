"""A sweep: temperatures x lambdas x methods, short trainings first and the best for longer; the winner is then trained
with fresh seeds, with and without the teacher, before anything is claimed.

A sweep's folder, in ``.sweeps`` beside the runs, is built as a run's is: ``config.json`` (what all points share, owner's
hash), ``sweep.json`` (the grid), ``events.jsonl`` (``created started plan run point | done failed stopped``), ``lock``,
``STOP``, ``report.json``. What it trains are ordinary runs: an event ``run`` says which was made for what, an event
``point`` what came of it. So whatever is killed, and whenever, the next process goes on where it was.
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

from kd.config import METHODS, NO_TEACHER, SAMPLE, DistillConfig
from kd.data.library.store import dataset_classes
from kd.errors import UserError
from kd.experiments.grid import Grid, Point
from kd.experiments.halving import cost_of_run, epochs_within, ranking, rungs, sweep_seconds
from kd.runs.process import closed_by_an_event, finish_run, niceness, open_log
from kd.runs.queue import StopAsked
from kd.runs.run import CLOSED, LIFECYCLE, Run, events_by_trial
from kd.runs.store import create_run, list_runs
from kd.system.files import SWEEPS, write_whole
from kd.system.ids import one_of
from kd.system.processes import start_kd
from kd.text import count_of

Tell = Callable[[str], None]


# --- A sweep's folder


@dataclass(frozen=True)
class Sweep(Run):
    """A sweep's folder: events, lock, status, owner and ``report`` as a run's. Reading it is cheap."""

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
        """Its ``rungs``, once they are decided."""
        plan = self.last("plan")
        return plan and [tuple(rung) for rung in plan["rungs"]]

    def labels(self) -> str:
        """Whose the labels are: the ``dataset``'s, or the ``teacher``'s, where accuracy is agreement with it."""
        return (self.last("plan") or {}).get("labels", "dataset")

    def points(self) -> list[dict[str, Any]]:
        """Each point's ``temperature``, ``lambda`` and ``method``, and what is known of it: ``rung`` (from 1) and
        ``epochs`` of its longest training, the ``run``, ``accuracy`` and ``agreement`` on validation, ``diverged``; and
        ``now``, the id of the run that it was last begun in, if that has not been measured."""
        events, plan = self.events(), self.plan() or []
        rung = {epochs: nth for nth, (_, epochs) in enumerate(plan, start=1)}
        measured = [event for event in events if event["event"] == "point"]
        last = next((event for event in reversed(events) if event["event"] in ("run", "point", "done")), {})
        return [
            {
                **point.to_dict(),
                **_longest([event for event in measured if _is_of(event, point)], rung),
                "now": last["run"] if last.get("event") == "run" and _is_of(last["changes"], point) else None,
            }
            for point in self.grid().points()
        ]

    def run_of(self, changes: dict[str, Any]) -> Run | None:
        """The run that was made with these changes of the settings, if it is there."""
        made = (event["run"] for event in self.events() if event["event"] == "run" and event["changes"] == changes)
        found = [run for run in (Run(self.runs_folder / id) for id in made) if (run.path / "config.json").exists()]
        return found[-1] if found else None

    def make_run(self, changes: dict[str, Any]) -> Run:
        """A new run with these changes of the settings: of the sweep's owner, its ``config.json`` naming the ``sweep``."""
        config = DistillConfig.from_dict({**self.config().to_dict(), **changes})
        run = create_run(config, self.runs_folder, secrets.token_hex(16))
        settings = {**run.settings(), "owner": self.settings()["owner"], "sweep": self.id}
        write_whole(run.path / "config.json", json.dumps(settings, indent=2))
        self.append("run", run=run.id, changes=changes)
        return run

    def ask_to_stop(self) -> None:
        """Leave the file that the working process looks for, and stop the run in progress."""
        super().ask_to_stop()
        self.stop_run()

    def stop_run(self) -> None:
        """Ask the run in progress, if there is one, to stop: once, or a resume would take it for a new wish."""
        last = self.last("run")
        run = last and Run(self.runs_folder / last["run"])
        if run and run.path.exists() and not run.stop_asked() and run.last(*LIFECYCLE)["event"] not in CLOSED:
            run.ask_to_stop()


def _is_of(values: dict[str, Any], point: Point) -> bool:
    return point.to_dict().items() <= values.items()


def _longest(measured: list[dict[str, Any]], rung: dict[int, int]) -> dict[str, Any]:
    """Of a point's trainings the longest, in ``Sweep.points``'s words."""
    names = ("epochs", "run", "accuracy", "agreement", "diverged")
    if not measured:
        return {"rung": None, **dict.fromkeys(names), "diverged": False}
    longest = max(measured, key=lambda event: event["epochs"])
    return {"rung": rung[longest["epochs"]], **{name: longest[name] for name in names}}


def create_sweep(config: DistillConfig, grid: Grid, folder: Path, owner: str) -> Sweep:
    """Make the folder of a new sweep under the runs' ``folder``; ``work_on_sweep`` works on it. ``config``: what its points
    share, resolved; ``trials`` are those of the winner, and its seeds follow ``seed``. Raises ``ValueError`` as ``check``."""
    check_sweep(config, grid)
    sweep = Sweep(create_run(config, Path(folder) / SWEEPS, owner).path)
    try:
        write_whole(sweep.path / "sweep.json", json.dumps(asdict(grid), indent=2))
    except OSError as error:
        shutil.rmtree(sweep.path, ignore_errors=True)
        raise UserError(sweep.not_writable(error)) from error
    return sweep


def check_sweep(config: DistillConfig, grid: Grid) -> None:
    """Raises ``ValueError``, in words for a user, for settings that cannot be swept; of pictures that were not imported
    ``check_labels`` tells more."""
    if config.minutes is not None:
        raise ValueError("A sweep has no minutes for each training. Give epochs, or budget-minutes for all of it.")
    if config.seed + config.trials >= 2**32:
        raise ValueError(f"seed is {config.seed}; the winner needs {config.trials} above it. Take a smaller one.")
    if config.teacher == NO_TEACHER:
        raise ValueError("The teacher is none, and a sweep is about how a teacher teaches. Choose a teacher.")
    if (classes := dataset_classes(config.dataset)) is not None:
        check_classes(grid, classes)


def check_labels(config: DistillConfig, grid: Grid) -> str:
    """Whose the labels are, from a look at the pictures: the ``dataset``'s, or the ``teacher``'s where they have none.
    Raises ``ValueError`` as ``check_classes``, ``UserError`` as a run would."""
    classes = None if config.dataset == SAMPLE else dataset_classes(config.dataset)
    if config.dataset != SAMPLE and classes is None:
        from kd.data.splits import load_splits

        classes = load_splits(config).classes  # none where there are no labels
    if classes is not None:
        check_classes(grid, classes)
    return "teacher" if classes == [] else "dataset"


def check_classes(grid: Grid, classes: list[str]) -> None:
    """Raises ``ValueError``, before half of a grid is trained, where it means nothing for pictures of these classes."""
    if not classes:
        refuse_without_labels(grid)
    standardised = [method for method in grid.methods if method.endswith("+std")]
    if len(classes) == 2 and standardised:
        raise ValueError(
            f"methods has {', '.join(standardised)}, and the pictures have two classes, {' and '.join(classes)}: the standardised "
            "logits of two classes are always the same two numbers. Leave it out."
        )


def refuse_without_labels(grid: Grid) -> None:
    """Raises ``ValueError`` where a grid has another lambda than 1, which is what all are without labels."""
    if grid.lambdas != (1.0,):
        given = ",".join(f"{weight:g}" for weight in grid.lambdas)
        raise ValueError(
            f"The pictures have no labels, so a student learns from the teacher alone, and lambdas is {given}: 0, labels "
            "alone, would have nothing to learn from, and any other is trained as 1. Give 1 alone, or put each class's "
            "pictures into a folder of its own."
        )


def list_sweeps(folder: Path) -> list[Sweep]:
    """The sweeps of a runs' folder, newest first."""
    found = [Sweep(run.path) for run in list_runs(Path(folder) / SWEEPS)]
    return [sweep for sweep in found if (sweep.path / "sweep.json").exists()]


def find_sweep(folder: Path, id: str) -> Sweep:
    """The sweep with this id, the start of one, or ``last``. Raises ``UserError`` where there is none, or several."""
    return one_of(list_sweeps(folder), id, "sweep", folder, "`python -m kd sweep` makes one.")


def start_sweep(sweep: Sweep) -> subprocess.Popen:
    """Work on a sweep, new or interrupted, in a detached process, which outlives this one and stands behind the page."""
    sweep.forget_stop()
    with open_log(sweep) as log:
        return start_kd("run", str(sweep.path), nice=niceness(sweep), stdout=log, stderr=log)


# --- The work


def work_on_sweep(sweep: Sweep, tell: Tell = lambda text: None) -> None:
    """Work on a sweep until it is done or asked to stop; every ending is an event. One that is done is left alone.

    Raises ``UserError`` where another process works on it, and where it cannot go on, after the ``failed`` event has said
    so: the next call tries again.
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
    """Everything between ``started`` and ``done``."""
    left = sweep.grid().points()
    steps = plan(sweep, len(left), tell)
    for count, epochs in steps:
        measured = [measure_point(sweep, point, epochs, tell) for point in left[:count]]
        left = [Point.of(row) for row in ranking(measured)]
    rows = [{name: value for name, value in row.items() if name != "now"} for row in sweep.points()]
    best = ranking(rows)
    if not best:
        raise UserError("Every point diverged. Try another sweep with a learning rate ten times lower.")
    # Without the teacher there are no two sides to compare: then the best with it is set against it.
    taught = next((row for row in best if row["lambda"]), best[0])
    run = prove(sweep, taught, steps[-1][1], tell)
    report = {"sweep": sweep.id, "points": rows, **conclusion(sweep, best[0], taught, run)}
    write_whole(sweep.path / "report.json", json.dumps(report, indent=2))
    sweep.close("done", winner=best[0], final=run.id, sentence=report["sentence"])


def plan(sweep: Sweep, points: int, tell: Tell) -> list[tuple[int, int]]:
    """The sweep's rungs, decided once: a resumed one keeps to them."""
    config, minutes = sweep.config(), sweep.grid().budget_minutes
    if sweep.plan() is None:
        labels = check_labels(config, sweep.grid())
        epochs = (
            config.epochs
            if minutes is None
            else affordable(sweep, minutes * 60, points, 2 if labels == "dataset" else 1, tell)
        )
        sweep.append("plan", epochs=epochs, rungs=rungs(points, epochs), labels=labels)
    steps = sweep.plan()
    words = ", then ".join(f"{count} of {count_of(epochs, 'epoch')}" for count, epochs in steps)
    both = ", with the teacher and without," if sweep.labels() == "dataset" else ""
    tell(
        f"plan: {count_of(points, 'point')}; trainings: {words}, then the winner with {count_of(config.trials, 'fresh seed')}"
        f"{both} of {count_of(steps[-1][1], 'epoch')}"
    )
    return steps


def affordable(sweep: Sweep, seconds: float, points: int, sides: int, tell: Tell) -> int:
    """The epochs of the longest trainings so that all is done in about so many seconds, from one training of one epoch.

    Raises ``UserError`` where that is too short for any.
    """
    config = sweep.config()
    point = next(point for point in sweep.grid().points() if point.lambda_)
    run = train_point(sweep, settings_of(config, point, 1))  # one epoch is at the full input, whatever ``start_size``
    if run.report() is None:
        raise UserError(f"The run of one epoch that was to set the pace: {run.last('failed')['message']}")
    # from the start that ended: a pause before it, or a place in the queue, is no part of the budget
    pace, spent = cost_of_run(run), run.last("done")["time"] - run.last("started", "resumed")["time"]
    tell(f"pace: {pace.epoch:.1f} s an epoch and {pace.run:.1f} s a run (run {run.id})")
    epochs = epochs_within(seconds - spent, points, config, pace, sides)
    if not epochs:
        needed = math.ceil((spent + sweep_seconds(points, 1, config, pace, sides)) / 60)
        raise UserError(
            f"{seconds / 60:g} minutes are too few for {count_of(points, 'point')}: with one epoch each and "
            f"{count_of(config.trials, 'trial')} it takes about {needed} here. Begin another sweep with those, or with fewer points or trials."
        )
    return epochs


def settings_of(config: DistillConfig, point: Point, epochs: int) -> dict[str, Any]:
    """What a point's training changes in the settings. A method has the weight that its paper gives it, unless
    ``config`` has one of its own."""
    usual = {method: METHODS[method].get("weight", 1.0) for method in (config.method, point.method)}
    weight = usual[point.method] if config.weight == usual[config.method] else config.weight
    return {**point.to_dict(), "weight": weight, "epochs": epochs, "trials": 1, "baseline": "no"}


def measure_point(sweep: Sweep, point: Point, epochs: int, tell: Tell) -> dict[str, Any]:
    """Train a point, unless it was, and return its ``point`` event: ``accuracy`` and ``agreement`` of its best epoch on
    validation, the only split that a sweep chooses by."""
    asked = {**point.to_dict(), "epochs": epochs}
    before = [e for e in sweep.events() if e["event"] == "point"]
    known = next((event for event in before if asked.items() <= event.items()), None)
    if known:
        return known
    run = train_point(sweep, settings_of(sweep.config(), point, epochs))
    diverged, best, seconds = run.status() != "done", {}, 0.0
    if not diverged:
        looks = [e for e in next(iter(events_by_trial(run.events()).values())) if e["event"] == "eval"]
        best, seconds = max(looks, key=lambda event: event["accuracy"]), run.report()["train"]["seconds"]
    found = {"accuracy": best.get("accuracy"), "agreement": best.get("agreement"), "diverged": diverged}
    sweep.append("point", **asked, run=run.id, **found, seconds=seconds)
    words = "diverged, counts as the worst" if diverged else f"{scored(sweep, found)}, {seconds:.0f} s"
    total = sum(count for count, _ in sweep.plan())
    tell(f"{len(before) + 1:3} of {total}: {point}, {count_of(epochs, 'epoch')}: {words} (run {run.id})")
    return sweep.last("point")


def prove(sweep: Sweep, row: dict[str, Any], epochs: int, tell: Tell) -> Run:
    """The best point with the teacher once more, ``trials`` times with seeds that chose nothing, and as often without."""
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


def conclusion(sweep: Sweep, best: dict[str, Any], taught: dict[str, Any], run: Run) -> dict[str, Any]:
    """``winner`` (a row of ``Sweep.points``), ``final`` (the run with fresh seeds), the winner's ``student`` of that run (a
    folder under the runs'), ``verdict`` (that run's, on the test split) and all of it in a ``sentence``."""
    report = run.report()
    verdict, student = report["verdict"], f"{run.id}/student"
    winner, other = (
        f"{Point.of(row)} ({scored(sweep, row)} after {count_of(row['epochs'], 'epoch')})" for row in (best, taught)
    )
    sentence = f"Winner: {winner}."
    if not taught["lambda"]:
        sentence += " With the teacher all diverged."
    elif not best["lambda"]:
        sentence += f" The best with the teacher: {other}."
        seed = report["student"].get("seed", run.config().seed)
        student = f"{run.id}/arms/baseline-{seed}/student"
    if verdict:
        sentence += f" With fresh seeds: {verdict['sentence']}"
    elif sweep.labels() == "teacher":
        agreed = [f"{trial['agreement']:.1%}" for trial in report["trials"]]
        sentence += f" With fresh seeds it agrees with the teacher on {', '.join(agreed)} of the test pictures."
    return {"winner": best, "final": run.id, "student": student, "verdict": verdict, "sentence": sentence}


def scored(sweep: Sweep, row: dict[str, Any]) -> str:
    """What a training came to, in words."""
    what = "" if sweep.labels() == "dataset" else "agreement with the teacher "
    return f"{row['accuracy']:.1%} {what}on validation"


def train_point(sweep: Sweep, changes: dict[str, Any]) -> Run:
    """The sweep's run with these changes, done or diverged: the one that was begun for them, or a new one.

    Raises ``StopAsked``, and ``UserError`` where the run ended in another way.
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
        why = f"failed: {run.last('failed')['message']}" if status == "failed" else "died: its process is gone."
        raise UserError(f"Run {run.id} {why} {sweep.goes_on}")
    return run


def has_diverged(run: Run) -> bool:
    last = run.last(*LIFECYCLE)
    return last["event"] == "failed" and last["kind"] == "diverged"
