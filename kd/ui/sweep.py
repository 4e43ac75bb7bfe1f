"""The Sweep tab: temperatures x lambdas x methods, as heat maps. Cells fill as students are trained, and open their runs."""

import dataclasses
import time
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import gradio as gr

from kd.config import DistillConfig
from kd.data.library.store import dataset_classes, short_name
from kd.errors import UserError
from kd.experiments.grid import Grid, Point
from kd.experiments.halving import cost_of_estimate, ranking, rungs, sweep_seconds
from kd.experiments.sweep import Sweep, check_sweep, create_sweep, start_sweep
from kd.experiments.table import MEASURED
from kd.runs.run import CLOSED, Run
from kd.runs.store import delete_run
from kd.runs.summary import summarize
from kd.system.files import default_runs_folder
from kd.ui import settings, time_estimate
from kd.ui.access import (
    admitted,
    check_names,
    kind_errors,
    outcome,
    own_sweep,
    own_sweeps,
    owner,
    served,
    token_of,
    valid_cursor,
    with_own,
)
from kd.ui.progress import progress_line, roughly
from kd.ui.rendering import render
from kd.ui.result import MARKS

PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

# How many of the visitor's sweeps the list offers.
MOST_LISTED = 50

# With how many fresh seeds the winner is trained again, unless another number is asked for.
TRIALS = 3

# The tab's own widgets, in their order.
GRID = ("temperatures", "lambdas", "methods", "budget_minutes", "trials")


def start(config: DistillConfig, grid: Grid, token: str) -> Sweep:
    """Create a sweep and start its process.

    Raises ``UserError`` where the visitor may not do so, and ``ValueError`` where these settings make no sweep.
    """
    check_names(config)
    config = with_own(config, token)
    with admitted(token):
        sweep = create_sweep(config, grid, default_runs_folder(), owner(token))
    time_estimate.give_way()
    start_sweep(sweep)
    return sweep


def stop(id: str, token: str) -> None:
    """Ask one of the visitor's sweeps and its present run to stop. Raises ``UserError`` if it is not running."""
    sweep = own_sweep(id, token)
    if sweep.status() in CLOSED:
        raise UserError(f"Sweep {sweep.id} is not running: it is {sweep.status()}.")
    sweep.ask_to_stop()


def resume(id: str, token: str) -> None:
    """Continue one of the visitor's sweeps that ended before it was done. Raises ``UserError`` for any other."""
    sweep = own_sweep(id, token)
    if sweep.status() not in ("stopped", "failed", "died"):
        raise UserError(f"Sweep {sweep.id} is {sweep.status()}: there is nothing to resume.")
    with admitted(token, sweep.id):
        time_estimate.give_way()
        start_sweep(sweep)


def delete(id: str, token: str) -> None:
    """Delete one of the visitor's sweeps, but not the runs that it has made. Raises ``UserError`` while it is running."""
    sweep = own_sweep(id, token)
    if (status := sweep.status()) not in CLOSED:
        raise UserError(f"Sweep {sweep.id} is {status}. Stop it first, then delete it.")
    delete_run(sweep)


# --- What would be trained


def from_widgets(values: tuple) -> tuple[DistillConfig, Grid]:
    """Read the values of the tab's widgets, followed by those of the settings.

    Raises ``ValueError``, in words for a user, where they make no configuration or no grid.
    """
    own = dict(zip(GRID, values, strict=False))
    trials = own.pop("trials", None)
    config = settings.from_widgets(tuple(values[len(GRID) :]))
    return DistillConfig.from_dict({**config.to_dict(), "trials": trials, "baseline": "no"}), Grid(**own)


@served
def preview(asked: dict[str, Any]) -> dict[str, Any]:
    """Say what a sweep with the widgets' ``values`` would do for ``owner``, before it is started.

    The answer has ``plan`` (what would be trained), ``rest`` (what comes from the Distill tab), and ``measuring`` (whether
    the time is just being measured); or a ``problem``.
    """
    try:
        config, grid = from_widgets(tuple(asked.get("values") or ()))
        check_names(config)
        own = with_own(config, asked.get("owner") or "")
        check_sweep(own, grid)
    except (UserError, ValueError, TypeError) as problem:
        return {"problem": str(problem)}
    count = len(grid.points())
    plan = None if grid.budget_minutes else rungs(count, config.epochs)
    teacher, student, dataset = (short_name(name) for name in (config.teacher, config.student, config.dataset))
    rest = f"The rest is as on the Distill tab: {teacher} teaches {student} on {dataset}."
    labels = "teacher" if dataset_classes(own.dataset) == [] else "dataset"
    words = plan_words(count, plan, config.trials, grid.budget_minutes, labels)
    if plan and (seconds := expected_seconds(count, asked["values"], own, labels)):
        words += f" About {roughly(seconds)} here."
    return {"rest": rest, "plan": words, "measuring": time_estimate.measures()}


def expected_seconds(points: int, values: list[Any], config: DistillConfig, labels: str) -> float | None:
    """Return how long a sweep takes, or ``None`` unless the Distill tab has measured a run with the settings ``values``."""
    one = settings.from_widgets(tuple(values[len(GRID) :]))
    one = dataclasses.replace(one, dataset=config.dataset, teacher=config.teacher, student=config.student)
    if (found := time_estimate.estimated(one)) is None:
        return None
    cost = cost_of_estimate(found, one)
    once = found["stages"]["pictures"] + found["stages"]["teacher"] + cost.view
    return once + sweep_seconds(points, config.epochs, config, cost, 2 if labels == "dataset" else 1)


def plan_words(
    points: int, plan: list[tuple[int, int]] | None, trials: int, minutes: float | None, labels: str = "dataset"
) -> str:
    """Say in a sentence what is trained; ``labels`` is "dataset" or "teacher" (``Sweep.labels``)."""
    winner = f"the winner with {many(trials, 'fresh seed')}"
    winner += ", with the teacher and without" if labels == "dataset" else ""
    if plan is None:
        words = f"{minutes:g} minutes set the epochs, once one epoch has been timed"
        return f"{many(points, 'point')}; {words}. Then {winner}."
    (first, epochs), *others = plan
    steps = "".join(f", then the best {count} for {length}" for count, length in others)
    trained = f"each for {many(epochs, 'epoch')}{steps}" if others or first > 1 else f"for {many(epochs, 'epoch')}"
    return f"{many(points, 'point')}, {trained}; last {winner}."


def many(number: int, what: str) -> str:
    """Return a number and its noun: "1 point", "3 points"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- What the tab's script calls


@served
def offered(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the visitor's ``sweeps``, newest first: each as its id and its description."""
    found = []
    for sweep in own_sweeps(asked.get("owner", ""))[:MOST_LISTED]:
        try:
            found.append([sweep.id, in_words(sweep)])
        except (UserError, ValueError, OSError):  # damaged, or of another version
            continue
    return {"sweeps": found}


def in_words(sweep: Sweep) -> str:
    """Describe a sweep on one line."""
    config, points = sweep.config(), many(len(sweep.grid().points()), "point")
    return f"{_created(sweep)}: {short_name(config.student)}, {short_name(config.dataset)}, {points}"


def _created(sweep: Sweep) -> str:
    return time.strftime("%d %b %H:%M UTC", time.gmtime(sweep.settings()["created"]))


@served
def poll(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what has happened in ``sweep`` since ``cursor``, to its ``owner``.

    The answer always has ``status``, ``line``, ``share`` and ``cursor``. The first also has ``title``, ``about`` and
    ``maps`` (empty tables). When something was started or measured, it has the ``cells`` that changed, ``plan``,
    ``legend`` and ``stay`` (which runs are left when the sweep is deleted); at the end, ``result`` and ``final``.
    It is ``refused`` alone where this visitor has no such sweep.
    """
    try:
        return _progress_since(
            own_sweep(asked.get("sweep", ""), asked.get("owner", "")), valid_cursor(asked.get("cursor"))
        )
    except (UserError, PermissionError) as problem:
        return {"refused": str(problem)}


def _progress_since(sweep: Sweep, since: int) -> dict[str, Any]:
    """Return the answer of ``poll`` for a sweep that this visitor may see."""
    status = sweep.status()  # before the events are read: a closed sweep has no more of them
    events, (fresh, cursor) = sweep.events(), sweep.read(since)
    update = {"status": status, "line": line(sweep, status, events), "share": share(sweep, events), "cursor": cursor}
    if since == 0:
        update |= introduction(sweep)
    if fresh:
        grid, rows, config = sweep.grid(), sweep.points(), sweep.config()
        plan = sweep.plan() or (None if grid.budget_minutes else rungs(len(rows), config.epochs))
        update["cells"] = cells(rows, events, fresh if since else None, status)
        update["plan"] = plan_words(len(rows), plan, config.trials, grid.budget_minutes, sweep.labels())
        update["legend"] = legend(sweep, rows)
        update["stay"] = stay(sweep, events)
    if status == "done" and (report := sweep.report()):
        update |= {"result": sentence(report), "final": report["final"]}
    return update


@served
def stop_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Stop the sweep when its Stop button is clicked. Return ``{}``, or a ``problem``."""
    return outcome(stop, asked.get("sweep", ""), asked.get("owner", ""))


@served
def resume_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Continue the sweep when its Resume button is clicked. Return ``{}``, or a ``problem``."""
    return outcome(resume, asked.get("sweep", ""), asked.get("owner", ""))


@served
def delete_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Delete the sweep once the question after the Delete button is answered. Return ``{}``, or a ``problem``."""
    return outcome(delete, asked.get("sweep", ""), asked.get("owner", ""))


# --- In words


def stay(sweep: Sweep, events: list[dict[str, Any]]) -> str:
    """Say which runs are left when the sweep is deleted; nothing where there are none."""
    made = {event["run"] for event in events if event["event"] == "run"}
    count = sum((sweep.runs_folder / id).exists() for id in made)
    return f"{many(count, 'run')} that it has made {'stays' if count == 1 else 'stay'} in Runs." if count else ""


def introduction(sweep: Sweep) -> dict[str, Any]:
    """Describe a sweep in words, with its heat maps still empty."""
    config, grid = sweep.config(), sweep.grid()
    budget = [f"{grid.budget_minutes:g} minutes"] if grid.budget_minutes else []
    return {
        "title": f"{short_name(config.teacher)} → {short_name(config.student)}",
        "about": ", ".join(
            [short_name(config.dataset), many(len(grid.points()), "point"), *budget, f"begun {_created(sweep)}"]
        ),
        "maps": heat_maps(grid),
    }


def line(sweep: Sweep, status: str, events: list[dict[str, Any]]) -> list[str]:
    """Say what is going on, and its figures: ["Training 2 of 5: kd, T 1, lambda 0.5", "epoch 1 of 2, about 40 s left"]."""
    if status in CLOSED:
        return [_closing(sweep, status, events), ""]
    if sweep.stop_asked() and any(event["event"] in ("started", "resumed") for event in events):
        return ["Stopping", ""]
    last = next((event for event in reversed(events) if event["event"] in ("run", "point")), None)
    if last is None or last["event"] == "point":
        return ["Starting", ""]
    plan, changes = sweep.plan(), last["changes"]
    run = Run(sweep.runs_folder / last["run"])
    doing = progress_line(summarize(run), "running")[0] if run.path.exists() else ""
    left = left_seconds(sweep, events, time.time())
    figures = [f"{doing[:1].lower()}{doing[1:]}", *([f"about {roughly(left)} left"] if left is not None else [])]
    if plan is None:
        words = "One epoch is trained to time it"
    elif "seed" in changes:
        words = f"Proving the winner, {Point.of(changes)}"
    else:
        done = sum(event["event"] == "point" for event in events)
        words = f"Training {done + 1} of {sum(count for count, _ in plan)}: {Point.of(changes)}"
    return [words, ", ".join(filter(None, figures))]


def _closing(sweep: Sweep, status: str, events: list[dict[str, Any]]) -> str:
    if status == "done":
        return "Done"
    if status == "failed":
        message = next(event["message"] for event in reversed(events) if event["event"] == "failed")
        return message.replace(sweep.goes_on, "Resume goes on with the sweep.")
    what = "Stopped." if status == "stopped" else "The sweep's process is gone: it ended without a word."
    return f"{what} Resume goes on where it was."


def share(sweep: Sweep, events: list[dict[str, Any]]) -> float:
    """Return the share of all epochs that is trained, from 0 to 1; the winner's last trainings count too."""
    if any(event["event"] == "done" for event in events):
        return 1.0
    plan = sweep.plan() or []
    trained = sum(event["epochs"] for event in events if event["event"] == "point")
    return round(trained / total_epochs(sweep, plan), 3) if plan else 0.0


def total_epochs(sweep: Sweep, plan: list[tuple[int, int]]) -> int:
    """Return how many epochs the whole plan trains, with the winner's trials with the teacher and without."""
    pair = 2 if sweep.labels() == "dataset" else 1
    return sum(count * length for count, length in plan) + pair * sweep.config().trials * plan[-1][1]


def left_seconds(sweep: Sweep, events: list[dict[str, Any]], now: float) -> float | None:
    """Return how long the sweep still takes, judged by its trainings so far.

    ``None`` before two of them are done: the first takes longer because it also asks the teacher.
    """
    plan = sweep.plan()
    begun = {event["run"]: event["time"] for event in events if event["event"] == "run"}
    ended = [event for event in events if event["event"] == "point"]
    good = [event for event in ended if not event["diverged"] and event["run"] in begun]
    if not plan or len(good) < 2:
        return None
    per_epoch = sum(event["seconds"] for event in good) / sum(event["epochs"] for event in good)
    overhead = median_low(max(0.0, event["time"] - begun[event["run"]] - event["seconds"]) for event in good)
    epochs = total_epochs(sweep, plan) - sum(event["epochs"] for event in ended)
    trainings = sum(count for count, _ in plan) - len(ended) + 1
    since = max(event["time"] for event in events if event["event"] in ("run", "point", "started", "resumed"))
    return max(0.0, epochs * per_epoch + trainings * overhead - (now - since))


def sentence(report: dict[str, Any]) -> str:
    """Return what a sweep found, as HTML: the sentence, after the verdict's sign where there is a verdict."""
    found = report.get("verdict")
    answer = found["answer"] if found else "no difference shown"
    return render("sweep_verdict", answer=answer, mark=MARKS[answer] if found else "", sentence=report["sentence"])


def legend(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """Say what the cells of the heat maps mean."""
    if not any(row["accuracy"] is not None for row in rows):
        return "Each cell will show how well its student does on validation, and open its run."
    words = (
        f"{MEASURED[sweep.labels()]} on validation; the deeper the colour, the better. A student with fewer epochs was not "
        "among the best half and was not trained further."
    )
    return words + (" Without the teacher neither T nor the method matters." if 0 in sweep.grid().lambdas else "")


# --- The heat maps


def heat_maps(grid: Grid) -> str:
    """Return each method's table as HTML, its cells still empty: a row for each lambda, a column for each temperature.

    Lambda 0 is one point, and therefore one wide cell.
    """
    index = {point: nth for nth, point in enumerate(grid.points())}

    def row(weight: float, method: str) -> tuple[float, list[int]]:
        columns = grid.temperatures if weight else grid.temperatures[:1]
        return weight, [index[grid.point(temperature, weight, method)] for temperature in columns]

    maps = [
        {"name": settings.METHOD_WORDS[method][0], "rows": [row(weight, method) for weight in grid.lambdas]}
        for method in grid.methods
    ]
    return render("sweep_maps", maps=maps, temperatures=grid.temperatures)


def cells(
    rows: list[dict[str, Any]], events: list[dict[str, Any]], fresh: list[dict[str, Any]] | None, status: str
) -> dict[str, dict[str, Any]]:
    """Return what a cell shows for each point that ``fresh`` events changed, by its number; for all where that is ``None``."""
    best = next(iter(ranking(rows)), None) if status == "done" else None
    run = next((event for event in reversed(events) if event["event"] == "run"), {})
    is_final = "seed" in run.get("changes", {})
    changed = fresh and {Point.of(e.get("changes", e)) for e in fresh if e["event"] in ("run", "point")}
    return {
        str(nth): cell(row, row is best, status in CLOSED, is_final)
        for nth, row in enumerate(rows)
        if fresh is None or Point.of(row) in changed or row["now"] or row is best
    }


def cell(row: dict[str, Any], wins: bool, closed: bool, is_final: bool) -> dict[str, Any]:
    """Return what a cell shows.

    It has ``text`` and ``small`` lines, its ``accuracy`` for the colour, the ``run`` that it opens, the ``point`` in words,
    and what it ``is``: "now" (in training), "best" or neither.
    """
    measured = row["rung"] is not None
    lines = (
        ["diverged" if row["diverged"] else f"{row['accuracy']:.1%}", many(row["epochs"], "epoch")] if measured else []
    )
    if row["now"]:
        lines.append("stopped" if closed else "proving" if is_final else "training")
    elif wins:
        lines.append("★ winner")
    text, *small = lines or ["waits"]
    return {
        "text": text, "small": small, "accuracy": row["accuracy"], "run": row["now"] or row["run"],
        "point": str(Point.of(row)), "is": "now" if row["now"] and not closed else "best" if wins else "",
    }  # fmt: skip


# --- The tab


@dataclass
class SweepTab:
    """The components of the tab that other parts of the page refer to."""

    board: gr.HTML
    button: gr.Button
    widgets: list[gr.components.Component]


def build(rest: list[gr.components.Component]) -> SweepTab:
    """Lay out what is swept on the left and the heat maps on the right; ``rest`` are the widgets of the settings."""
    with gr.Row(elem_classes="kd-columns"):
        with gr.Column(scale=3, min_width=300):
            fields = {name: field.default for name, field in Grid.__dataclass_fields__.items()}
            widgets = [
                gr.Textbox(fields["temperatures"], label="Temperatures", info="With commas between them", max_lines=1, elem_id="sweep-temperatures"),
                gr.Textbox(fields["lambdas"], label="Lambdas", info="0 is labels alone", max_lines=1, elem_id="sweep-lambdas"),
                gr.CheckboxGroup(
                    [(words, key) for key, (words, _) in settings.METHOD_WORDS.items()],
                    value=fields["methods"].split(","), label="Methods", elem_id="sweep-methods",
                ),
            ]  # fmt: skip
            with gr.Row():
                widgets += [
                    gr.Textbox(
                        None, label="Budget in minutes", placeholder="none", max_lines=1,
                        min_width=120, elem_id="sweep-minutes",
                    ),
                    gr.Number(TRIALS, label="Trials of the winner", min_width=90, elem_id="sweep-trials"),
                ]  # fmt: skip
            button = gr.Button("Sweep", variant="primary", size="lg", elem_id="start-sweep")
            every = [*widgets, *rest]
            values = settings.at_first()["values"]
            # Not a gr.Markdown with a handler of its own: gradio would ask at every key that is typed and on every tab, and
            # replace the live region, whose errors a screen reader would read while a list is half typed. The script waits
            # until the typing has ended, asks only while this tab is open, and stays silent while the server is away.
            plan = gr.HTML(
                value={"values": [*(widget.value for widget in widgets), *values]},
                html_template=render("sweep_plan"),
                js_on_load="distillery.sweepPlan({ element, props, server, watch })",
                server_functions=[preview],
                apply_default_css=False,
                elem_id="sweep-plan",
            )
        with gr.Column(scale=7, min_width=320):
            board = gr.HTML(
                value={},
                html_template=render("sweep"),
                js_on_load="distillery.sweep({ element, props, server, watch, open: run => trigger('open', {run}) })",
                server_functions=[poll, offered, stop_it, resume_it, delete_it],
                apply_default_css=False,
                elem_id="sweep",
            )
    settings.follow(plan, board, every)
    return SweepTab(board, button, every)


def on_sweep(live: dict[str, Any] | None, *values: Any) -> dict[str, Any]:
    """Start a sweep when Sweep is clicked, and show it."""
    token = token_of(live)
    with kind_errors():
        sweep = start(*from_widgets(values), token)
    return {"sweep": sweep.id, "owner": token, "new": True}
