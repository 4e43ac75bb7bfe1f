"""A sweep: temperatures x lambdas x methods, short trainings first and the best for longer; the winner is then trained
with fresh seeds, with and without the teacher, before anything is claimed.

A sweep's folder, in ``.sweeps`` beside the runs, is built as a run's is: ``config.json`` (what all points share, owner's
hash), ``sweep.json`` (the grid), ``events.jsonl`` (``created started plan run point | done failed stopped``), ``lock``,
``STOP``, ``report.json``. What it trains are ordinary runs: an event ``run`` says which was made for what, an event
``point`` what came of it. So whatever is killed, and whenever, the next process goes on where it was.
"""

import dataclasses
import json
import math
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

from kd.config import METHODS, NO_TEACHER, SAMPLE, DistillConfig, checked, public_name, setting
from kd.data.library import store as uploads
from kd.runs import process as launch
from kd.runs import run as runs
from kd.runs.process import StopAsked
from kd.runs.run import LIFECYCLE, SWEEPS, Run, RunError

MOST_POINTS = 60
MOST_EPOCHS = 1000
"""A budget, however large, buys no more."""
SWEPT = ("temperature", "lambda", "method", "baseline", "minutes")
"""The settings that a sweep decides itself."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """What a sweep varies."""

    temperature: float
    lambda_: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        return {public_name(field): getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """That of a row of ``Sweep.points``, or of an event."""
        return cls(row["temperature"], row["lambda"], row["method"])

    def __str__(self) -> str:
        taught = f"{self.method}, T {self.temperature:g}, lambda {self.lambda_:g}"
        return taught if self.lambda_ else "lambda 0, labels alone"


@dataclass(frozen=True)
class Grid:
    """What is swept, and the time for it. Lists may be text with commas, as flags and text boxes deliver them. Raises
    ``ValueError``, in words for a user, on what is no grid."""

    temperatures: tuple[float, ...] = setting(
        "1,2,5,10", "temperatures to try", of="temperature", expected="numbers above 0", example="1,2,5"
    )
    lambdas: tuple[float, ...] = setting(
        "0,0.25,0.5,0.75,1", "weights of the teacher to try", of="lambda", expected="numbers from 0 to 1", example="0,0.5,1"
    )  # fmt: skip
    methods: tuple[str, ...] = setting(
        "kd", "losses to try", of="method", expected=f"some of {', '.join(METHODS)},", example="kd,dist"
    )
    budget_minutes: float | None = setting(
        None, "time for all of it, the last trials included; it sets the epochs (default: the settings' own)", above=0
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check = several if "of" in field.metadata else checked
            object.__setattr__(self, field.name, check(field, getattr(self, field.name)))
        if not any(self.lambdas):
            raise ValueError("lambdas has 0 alone, which is no teacher. Add one above it, for example 0,0.5.")
        if (count := len(self.points())) > MOST_POINTS:
            raise ValueError(f"These are {count} points, and a sweep has {MOST_POINTS} at most. Shorten a list.")

    def point(self, temperature: float, lambda_: float, method: str) -> Point:
        """The point that stands for these: without the teacher, neither its temperature nor the method matters."""
        return Point(temperature, lambda_, method) if lambda_ else Point(self.temperatures[0], 0.0, self.methods[0])

    def points(self) -> list[Point]:
        """Each point once; of equals in all that is measured, the earlier is preferred."""
        every = product(self.methods, self.lambdas, self.temperatures)
        return list(dict.fromkeys(self.point(temperature, weight, method) for method, weight, temperature in every))


def several(field: dataclasses.Field, value: Any) -> tuple:
    """A list of values of the setting that a ``Grid``'s field is ``of``, each once, in their order."""
    one = next(f for f in dataclasses.fields(DistillConfig) if public_name(f) == field.metadata["of"])
    values = value.split(",") if isinstance(value, str) else list(value)
    try:
        found = [checked(one, item) for item in values]
    except ValueError:
        found = []
    if not found:
        expected, example = field.metadata["expected"], field.metadata["example"]
        given = value if isinstance(value, str) else ",".join(map(str, values))
        raise ValueError(
            f"{field.name} is {given!r}; expected {expected} separated by commas, for example {example}."
        ) from None
    return tuple(dict.fromkeys(found))


# --- Successive halving and its time: pure functions


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
class Pace:
    """Seconds of an ``epoch``, of a ``run`` besides its epochs, and of the teacher for a ``view``."""

    epoch: float
    run: float
    view: float


def pace_of(run: Run) -> Pace:
    """What a run that is done took. Decoding and the teacher's measurements are left out of ``run``: they are kept."""
    at = {event["event"]: event for event in run.events()}
    data, targets, train = at["data"], at["targets"], run.report()["train"]
    teacher = (at["teacher"]["time"] - at["models"]["time"]) * (1 + data["test"] / data["validation"])
    spent = at["done"]["time"] - run.last("started", "resumed")["time"]
    rest = spent - data["seconds"] - targets["seconds"] - train["seconds"] - teacher
    return Pace(train["seconds"] / train["epochs"], max(0.0, rest), targets["seconds"])


def pace_of_estimate(found: dict[str, Any], config: DistillConfig) -> Pace:
    """The same from what ``kd.training.estimate`` found for ``config``, whose pictures and targets may be kept in part."""
    stages, arms = found["stages"], config.trials * (2 if config.baseline == "yes" else 1)
    views = min(config.views, found["epochs"])
    return Pace(
        stages["training"] / (arms * found["epochs"]),
        stages["start"] + stages["test"] / arms,
        stages["targets"] / views,
    )


def seconds_of(points: int, epochs: int, config: DistillConfig, pace: Pace, sides: int = 2) -> float:
    """How long a sweep takes whose longest trainings are of ``epochs``, with its last trials, of each of ``sides``: with
    the teacher and, where there are labels, without."""
    steps = rungs(points, epochs)
    trained = sum(count * length for count, length in steps) + sides * config.trials * epochs
    begun = sum(count for count, _ in steps) + 1
    return trained * pace.epoch + begun * pace.run + (min(config.views, epochs) - 1) * pace.view


def epochs_within(seconds: float, points: int, config: DistillConfig, pace: Pace, sides: int = 2) -> int:
    """The most epochs with which a sweep is done in ``seconds``; 0 if it cannot be."""
    fits = (seconds_of(points, epochs, config, pace, sides) <= seconds for epochs in range(1, MOST_EPOCHS + 1))
    return next((epochs for epochs, fit in enumerate(fits) if not fit), MOST_EPOCHS)


def ranking(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those rows of ``Sweep.points``, or ``point`` events, that were measured, the best first: by the length of their
    training, then accuracy on validation, then agreement with the teacher, then their order. What diverged is out."""
    found = [row for row in rows if row["accuracy"] is not None]
    return sorted(found, key=lambda row: (-row["epochs"], -row["accuracy"], -row["agreement"]))


# --- A sweep's folder


@dataclass(frozen=True)
class Sweep(Run):
    """A sweep's folder: events, lock, status, owner and ``report`` as a run's. Reading it is cheap."""

    @property
    def goes_on(self) -> str:
        return f"`python -m kd sweep --resume {self.id}` goes on with the sweep."

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
        run = runs.create(config, self.runs_folder, secrets.token_hex(16))
        settings = {**run.settings(), "owner": self.settings()["owner"], "sweep": self.id}
        runs.write_whole(run.path / "config.json", json.dumps(settings, indent=2))
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
        if run and run.path.exists() and not run.stop_asked() and run.last(*LIFECYCLE)["event"] not in runs.CLOSED:
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


def create(config: DistillConfig, grid: Grid, folder: Path, owner: str) -> Sweep:
    """Make the folder of a new sweep under the runs' ``folder``; ``go_on`` works on it. ``config``: what its points share;
    ``trials`` are those of the winner, and its seeds follow ``seed``. Raises ``ValueError`` as ``check``."""
    config = runs.resolved(config, folder)
    check(config, grid)
    sweep = Sweep(runs.create(config, Path(folder) / SWEEPS, owner).path)
    try:
        runs.write_whole(sweep.path / "sweep.json", json.dumps(asdict(grid), indent=2))
    except OSError as error:
        shutil.rmtree(sweep.path, ignore_errors=True)
        raise RunError(sweep.not_writable(error)) from error
    return sweep


def check(config: DistillConfig, grid: Grid) -> None:
    """Raises ``ValueError``, in words for a user, for settings that cannot be swept; of pictures that were not imported
    ``check_labels`` tells more."""
    if config.minutes is not None:
        raise ValueError("A sweep has no minutes for each training. Give epochs, or budget-minutes for all of it.")
    if config.seed + config.trials >= 2**32:
        raise ValueError(f"seed is {config.seed}; the winner needs {config.trials} above it. Take a smaller one.")
    if config.teacher == NO_TEACHER:
        raise ValueError("The teacher is none, and a sweep is about how a teacher teaches. Choose a teacher.")
    if (classes := uploads.classes_of(config.dataset)) is not None:
        check_classes(grid, classes)


def check_labels(config: DistillConfig, grid: Grid) -> str:
    """Whose the labels are, from a look at the pictures: the ``dataset``'s, or the ``teacher``'s where they have none.
    Raises ``ValueError`` as ``check_classes``, ``RunError`` as a run would."""
    classes = None if config.dataset == SAMPLE else uploads.classes_of(config.dataset)
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
    found = [Sweep(run.path) for run in runs.list_runs(Path(folder) / SWEEPS)]
    return [sweep for sweep in found if (sweep.path / "sweep.json").exists()]


def find(folder: Path, id: str) -> Sweep:
    """The sweep with this id, the start of one, or ``last``. Raises ``RunError`` where there is none, or several."""
    return runs.one_of(list_sweeps(folder), id, "sweep", folder, "`python -m kd sweep` makes one.")


def start(sweep: Sweep) -> subprocess.Popen:
    """Work on a sweep, new or interrupted, in a detached process, which outlives this one and stands behind the page."""
    home = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    sweep.forget_stop()
    try:
        log = (sweep.path / "stderr.txt").open("ab")
    except OSError as error:
        raise RunError(sweep.not_writable(error)) from error
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "kd", "run", str(sweep.path), *launch.niceness(sweep, behind=True)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip


# --- The work


def go_on(sweep: Sweep, tell: Tell = lambda text: None) -> None:
    """Work on a sweep until it is done or asked to stop; every ending is an event. One that is done is left alone.

    Raises ``RunError`` where another process works on it, and where it cannot go on, after the ``failed`` event has said
    so: the next call tries again.
    """
    if sweep.last("done"):
        return
    with sweep.work():
        sweep.forget_old_stop()
        sweep.append("resumed" if sweep.last("started") else "started", pid=os.getpid())
        try:
            recipe(sweep, tell)
        except (StopAsked, KeyboardInterrupt):
            sweep.stop_run()  # after a second Ctrl-C it may be at work still
            sweep.close("stopped", message=f"Stopped. {sweep.goes_on}")
        except BaseException as error:
            words = (
                str(error)
                if isinstance(error, RunError | ValueError)
                else f"{type(error).__name__}: {error}. {sweep.goes_on}"
            )
            sweep.close("failed", message=words, error=type(error).__name__)
            raise


def recipe(sweep: Sweep, tell: Tell) -> None:
    """Everything between ``started`` and ``done``."""
    left = sweep.grid().points()
    steps = plan(sweep, len(left), tell)
    for count, epochs in steps:
        measured = [measure(sweep, point, epochs, tell) for point in left[:count]]
        left = [Point.of(row) for row in ranking(measured)]
    rows = [{name: value for name, value in row.items() if name != "now"} for row in sweep.points()]
    best = ranking(rows)
    if not best:
        raise RunError("Every point diverged. Try another sweep with a learning rate ten times lower.")
    # Without the teacher there are no two sides to compare: then the best with it is set against it.
    taught = next((row for row in best if row["lambda"]), best[0])
    run = prove(sweep, taught, steps[-1][1], tell)
    report = {"sweep": sweep.id, "points": rows, **conclusion(sweep, best[0], taught, run)}
    runs.write_whole(sweep.path / "report.json", json.dumps(report, indent=2))
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
    words = ", then ".join(f"{count} of {_count(epochs, 'epoch')}" for count, epochs in steps)
    both = ", with the teacher and without," if sweep.labels() == "dataset" else ""
    tell(
        f"plan: {_count(points, 'point')}; trainings: {words}, then the winner with {_count(config.trials, 'fresh seed')}"
        f"{both} of {_count(steps[-1][1], 'epoch')}"
    )
    return steps


def affordable(sweep: Sweep, seconds: float, points: int, sides: int, tell: Tell) -> int:
    """The epochs of the longest trainings so that all is done in about so many seconds, from one training of one epoch.

    Raises ``RunError`` where that is too short for any.
    """
    config = sweep.config()
    point = next(point for point in sweep.grid().points() if point.lambda_)
    run = trained(sweep, settings_of(config, point, 1))  # one epoch is at the full input, whatever ``start_size``
    if run.report() is None:
        raise RunError(f"The run of one epoch that was to set the pace: {run.last('failed')['message']}")
    # from the start that ended: a pause before it, or a place in the queue, is no part of the budget
    pace, spent = pace_of(run), run.last("done")["time"] - run.last("started", "resumed")["time"]
    tell(f"pace: {pace.epoch:.1f} s an epoch and {pace.run:.1f} s a run (run {run.id})")
    epochs = epochs_within(seconds - spent, points, config, pace, sides)
    if not epochs:
        needed = math.ceil((spent + seconds_of(points, 1, config, pace, sides)) / 60)
        raise RunError(
            f"{seconds / 60:g} minutes are too few for {_count(points, 'point')}: with one epoch each and "
            f"{_count(config.trials, 'trial')} it takes about {needed} here. Begin another sweep with those, or with fewer points or trials."
        )
    return epochs


def settings_of(config: DistillConfig, point: Point, epochs: int) -> dict[str, Any]:
    """What a point's training changes in the settings. A method has the weight that its paper gives it, unless
    ``config`` has one of its own."""
    usual = {method: METHODS[method].get("weight", 1.0) for method in (config.method, point.method)}
    weight = usual[point.method] if config.weight == usual[config.method] else config.weight
    return {**point.to_dict(), "weight": weight, "epochs": epochs, "trials": 1, "baseline": "no"}


def measure(sweep: Sweep, point: Point, epochs: int, tell: Tell) -> dict[str, Any]:
    """Train a point, unless it was, and return its ``point`` event: ``accuracy`` and ``agreement`` of its best epoch on
    validation, the only split that a sweep chooses by."""
    asked = {**point.to_dict(), "epochs": epochs}
    before = [e for e in sweep.events() if e["event"] == "point"]
    known = next((event for event in before if asked.items() <= event.items()), None)
    if known:
        return known
    run = trained(sweep, settings_of(sweep.config(), point, epochs))
    diverged, best, seconds = run.status() != "done", {}, 0.0
    if not diverged:
        looks = [e for e in next(iter(runs.by_arm(run.events()).values())) if e["event"] == "eval"]
        best, seconds = max(looks, key=lambda event: event["accuracy"]), run.report()["train"]["seconds"]
    found = {"accuracy": best.get("accuracy"), "agreement": best.get("agreement"), "diverged": diverged}
    sweep.append("point", **asked, run=run.id, **found, seconds=seconds)
    words = "diverged, counts as the worst" if diverged else f"{scored(sweep, found)}, {seconds:.0f} s"
    total = sum(count for count, _ in sweep.plan())
    tell(f"{len(before) + 1:3} of {total}: {point}, {_count(epochs, 'epoch')}: {words} (run {run.id})")
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
    tell(f"{point}: {_count(epochs, 'epoch')} with {_count(config.trials, 'fresh seed')}{both}")
    run = trained(sweep, changes)
    if run.status() != "done":
        raise RunError(f"The winner diverged with fresh seeds, so nothing can be claimed: run {run.id}.")
    return run


def conclusion(sweep: Sweep, best: dict[str, Any], taught: dict[str, Any], run: Run) -> dict[str, Any]:
    """``winner`` (a row of ``Sweep.points``), ``final`` (the run with fresh seeds), the winner's ``student`` of that run (a
    folder under the runs'), ``verdict`` (that run's, on the test split) and all of it in a ``sentence``."""
    report = run.report()
    verdict, student = report["verdict"], f"{run.id}/student"
    winner, other = (
        f"{Point.of(row)} ({scored(sweep, row)} after {_count(row['epochs'], 'epoch')})" for row in (best, taught)
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


def trained(sweep: Sweep, changes: dict[str, Any]) -> Run:
    """The sweep's run with these changes, done or diverged: the one that was begun for them, or a new one.

    Raises ``StopAsked``, and ``RunError`` where the run ended in another way.
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

    status = launch.finish(run, obey, new=old is None)
    if status == "stopped":
        raise StopAsked
    if status != "done" and not has_diverged(run):
        why = f"failed: {run.last('failed')['message']}" if status == "failed" else "died: its process is gone."
        raise RunError(f"Run {run.id} {why} {sweep.goes_on}")
    return run


def has_diverged(run: Run) -> bool:
    last = run.last(*LIFECYCLE)
    return last["event"] == "failed" and last["message"].startswith("Training diverged")


# --- Showing


MEASURED = {"dataset": "Accuracy", "teacher": "Agreement with the teacher"}
"""By whose the labels are, what a map shows."""


def heat_maps(sweep: Sweep) -> list[list[list[str]]]:
    """For each method a table, its head first: a row for each lambda, a column for each temperature; in a cell the
    accuracy on validation of the point's longest training and, in brackets, its epochs. The winner has a star."""
    grid, rows = sweep.grid(), sweep.points()
    best = next(iter(ranking(rows)), None) if sweep.last("done") else None
    cells = {Point.of(row): _cell(row, row is best) for row in rows}

    def table(method: str) -> list[list[str]]:
        head = [method, *(f"T {temperature:g}" for temperature in grid.temperatures)]
        return [head] + [
            [f"lambda {weight:g}", *(cells[grid.point(t, weight, method)] for t in grid.temperatures)]
            for weight in grid.lambdas
        ]

    return [table(method) for method in grid.methods]


def _cell(row: dict[str, Any], is_best: bool) -> str:
    if row["rung"] is None:
        return "..." if row["now"] else "-"
    figure = "diverged" if row["diverged"] else f"{row['accuracy']:.1%}"
    return f"{figure} ({row['epochs']}){'*' if is_best else ''}"


def legend(sweep: Sweep) -> str:
    """What a heat map's cells mean."""
    words = f"{MEASURED[sweep.labels()]} on validation (epochs of the longest training); * the winner."
    if 0 in sweep.grid().lambdas:
        words += " At lambda 0 neither T nor the method matters: one training stands for all."
    return words


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
