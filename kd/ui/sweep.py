"""The third tab: temperatures x lambdas x methods. Cells fill as they are trained, and each opens its run."""

import dataclasses
import html
import time
from dataclasses import dataclass
from pathlib import Path
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
    place,
    served,
    token_of,
    with_own,
)
from kd.ui.progress import progress_line, roughly
from kd.ui.result import MARKS

FILES = Path(__file__).parent / "templates"

PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

MOST_LISTED = 50

TRIALS = 3
"""Fresh seeds of the winner, unless another number is asked for."""

GRID = ("temperatures", "lambdas", "methods", "budget_minutes", "trials")
"""The tab's own widgets, in their order."""


def start(config: DistillConfig, grid: Grid, token: str) -> Sweep:
    """Create a sweep and start its process. Raises ``UserError`` where the visitor may not, ``ValueError`` for no sweep."""
    check_names(config)
    config = with_own(config, token)
    with admitted(token):
        sweep = create_sweep(config, grid, default_runs_folder(), owner(token))
    time_estimate.give_way()
    start_sweep(sweep)
    return sweep


def stop(id: str, token: str) -> None:
    """Ask a sweep of the visitor's to stop, its run with it. Raises ``UserError`` if it is not running."""
    sweep = own_sweep(id, token)
    if sweep.status() in CLOSED:
        raise UserError(f"Sweep {sweep.id} is not running: it is {sweep.status()}.")
    sweep.ask_to_stop()


def resume(id: str, token: str) -> None:
    """Go on with a sweep of the visitor's that was closed before it was done. Raises ``UserError``."""
    sweep = own_sweep(id, token)
    if sweep.status() not in ("stopped", "failed", "died"):
        raise UserError(f"Sweep {sweep.id} is {sweep.status()}: there is nothing to resume.")
    with admitted(token, sweep.id):
        time_estimate.give_way()
        start_sweep(sweep)


def delete(id: str, token: str) -> None:
    """Remove a sweep of the visitor's; the runs that it has made stay. Raises ``UserError`` while it is worked on."""
    sweep = own_sweep(id, token)
    if (status := sweep.status()) not in CLOSED:
        raise UserError(f"Sweep {sweep.id} is {status}. Stop it first, then delete it.")
    delete_run(sweep)


# --- What is asked for


def from_widgets(values: tuple) -> tuple[DistillConfig, Grid]:
    """What the tab's widgets, then those of the settings, say. Raises ``ValueError`` in words for a user."""
    own = dict(zip(GRID, values, strict=False))
    trials = own.pop("trials", None)
    config = settings.from_widgets(tuple(values[len(GRID) :]))
    return DistillConfig.from_dict({**config.to_dict(), "trials": trials, "baseline": "no"}), Grid(**own)


@served
def preview(asked: dict[str, Any]) -> dict[str, Any]:
    """``rest``, what the sweep of ``owner`` takes from the Distill tab, and ``plan``, what it would train; or ``problem``."""
    try:
        config, grid = from_widgets(tuple(asked.get("values") or ()))
        check_names(config)
        own = with_own(config, asked.get("owner") or "")
        check_sweep(own, grid)
    except (UserError, ValueError, TypeError) as problem:
        return {"problem": str(problem)}
    count = len(grid.points())
    plan = None if grid.budget_minutes else rungs(count, config.epochs)
    rest = f"The rest is as on the Distill tab: {short_name(config.teacher)} teaches {short_name(config.student)} on {short_name(config.dataset)}."
    labels = "teacher" if dataset_classes(own.dataset) == [] else "dataset"
    words = plan_words(count, plan, config.trials, grid.budget_minutes, labels)
    if plan and (seconds := expected_seconds(count, asked["values"], own, labels)):
        words += f" About {roughly(seconds)} here."
    return {"rest": rest, "plan": words, "measuring": time_estimate.measures()}


def expected_seconds(points: int, values: list[Any], config: DistillConfig, labels: str) -> float | None:
    """How long the sweep of ``config`` takes, if the Distill tab has measured a run with its settings, ``values``."""
    one = settings.from_widgets(tuple(values[len(GRID) :]))
    one = dataclasses.replace(one, dataset=config.dataset, teacher=config.teacher, student=config.student)
    if (found := time_estimate.estimated(one)) is None:
        return None
    pace = cost_of_estimate(found, one)
    once = found["stages"]["pictures"] + found["stages"]["teacher"] + pace.view
    return once + sweep_seconds(points, config.epochs, config, pace, 2 if labels == "dataset" else 1)


def plan_words(
    points: int, plan: list[tuple[int, int]] | None, trials: int, minutes: float | None, labels: str = "dataset"
) -> str:
    """What is trained, in a sentence; ``labels``: whose they are (``Sweep.labels``)."""
    winner = f"the winner with {many(trials, 'fresh seed')}"
    winner += ", with the teacher and without" if labels == "dataset" else ""
    if plan is None:
        return f"{many(points, 'point')}; {minutes:g} minutes set the epochs, after one epoch has set the pace. Then {winner}."
    (first, epochs), *others = plan
    steps = "".join(f", then the best {count} for {length}" for count, length in others)
    trained = f"each for {many(epochs, 'epoch')}{steps}" if others or first > 1 else f"for {many(epochs, 'epoch')}"
    return f"{many(points, 'point')}, {trained}; last {winner}."


def many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- What the script asks for


@served
def offered(asked: dict[str, Any]) -> dict[str, Any]:
    """The visitor's sweeps, newest first: ``sweeps``, each its id and words."""
    found = []
    for sweep in own_sweeps(asked.get("owner", ""))[:MOST_LISTED]:
        try:
            found.append([sweep.id, in_words(sweep)])
        except (UserError, ValueError, OSError):  # damaged, or of another version
            continue
    return {"sweeps": found}


def in_words(sweep: Sweep) -> str:
    """A sweep on one line."""
    config, when = sweep.config(), time.strftime("%d %b %H:%M UTC", time.gmtime(sweep.settings()["created"]))
    return f"{when}: {short_name(config.student)}, {short_name(config.dataset)}, {many(len(sweep.grid().points()), 'point')}"


@served
def poll(asked: dict[str, Any]) -> dict[str, Any]:
    """What has happened in ``sweep`` since ``cursor``, for ``owner``.

    ``status, line, share, cursor`` always; at first also ``title``, ``about`` and ``maps`` (empty tables); when something
    was begun or measured the ``cells`` that it changed, ``plan``, ``legend`` and ``stay`` (which runs are left when it is
    deleted); at the end ``result`` and ``final``.
    ``refused`` where there is no such sweep for this visitor.
    """
    try:
        return _news(own_sweep(asked.get("sweep", ""), asked.get("owner", "")), place(asked.get("cursor")))
    except (UserError, PermissionError) as problem:
        return {"refused": str(problem)}


def _news(sweep: Sweep, since: int) -> dict[str, Any]:
    status = sweep.status()  # before the events are read: a closed sweep has no more of them
    events, (fresh, cursor) = sweep.events(), sweep.read(since)
    news = {"status": status, "line": line(sweep, status, events), "share": share(sweep, events), "cursor": cursor}
    if since == 0:
        news |= introduction(sweep)
    if fresh:
        grid, rows, config = sweep.grid(), sweep.points(), sweep.config()
        plan = sweep.plan() or (None if grid.budget_minutes else rungs(len(rows), config.epochs))
        news["cells"] = cells(rows, events, fresh if since else None, status)
        news["plan"] = plan_words(len(rows), plan, config.trials, grid.budget_minutes, sweep.labels())
        news["legend"] = legend(sweep, rows)
        news["stay"] = stay(sweep, events)
    if status == "done" and (report := sweep.report()):
        news |= {"result": sentence(report), "final": report["final"]}
    return news


@served
def stop_it(asked: dict[str, Any]) -> dict[str, Any]:
    """The Stop button: ``{}``, or ``problem``."""
    return outcome(stop, asked.get("sweep", ""), asked.get("owner", ""))


@served
def resume_it(asked: dict[str, Any]) -> dict[str, Any]:
    """The Resume button: ``{}``, or ``problem``."""
    return outcome(resume, asked.get("sweep", ""), asked.get("owner", ""))


@served
def delete_it(asked: dict[str, Any]) -> dict[str, Any]:
    """The Delete button, once it is confirmed: ``{}``, or ``problem``."""
    return outcome(delete, asked.get("sweep", ""), asked.get("owner", ""))


# --- In words


def stay(sweep: Sweep, events: list[dict[str, Any]]) -> str:
    """What a deleted sweep leaves, in a sentence."""
    made = {event["run"] for event in events if event["event"] == "run"}
    count = sum((sweep.runs_folder / id).exists() for id in made)
    return f"{many(count, 'run')} that it has made {'stays' if count == 1 else 'stay'} in Runs." if count else ""


def introduction(sweep: Sweep) -> dict[str, Any]:
    """What a sweep is, and its tables with nothing in their cells."""
    config, grid = sweep.config(), sweep.grid()
    when = time.strftime("%d %b %H:%M UTC", time.gmtime(sweep.settings()["created"]))
    budget = [f"{grid.budget_minutes:g} minutes"] if grid.budget_minutes else []
    return {
        "title": f"{short_name(config.teacher)} → {short_name(config.student)}",
        "about": ", ".join([short_name(config.dataset), many(len(grid.points()), "point"), *budget, f"begun {when}"]),
        "maps": "".join(heat_map(grid, method) for method in grid.methods),
    }


def line(sweep: Sweep, status: str, events: list[dict[str, Any]]) -> list[str]:
    """What is going on, and its figures."""
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
        head = "One epoch is trained to set the pace"
    elif "seed" in changes:
        head = f"Proving the winner, {Point.of(changes)}"
    else:
        done = sum(event["event"] == "point" for event in events)
        head = f"Training {done + 1} of {sum(count for count, _ in plan)}: {Point.of(changes)}"
    return [head, ", ".join(filter(None, figures))]


def _closing(sweep: Sweep, status: str, events: list[dict[str, Any]]) -> str:
    if status == "done":
        return "Done"
    if status == "failed":
        message = next(event["message"] for event in reversed(events) if event["event"] == "failed")
        return message.replace(sweep.goes_on, "Resume goes on with the sweep.")
    what = "Stopped." if status == "stopped" else "The sweep's process is gone: it ended without a word."
    return f"{what} Resume goes on where it was."


def share(sweep: Sweep, events: list[dict[str, Any]]) -> float:
    """How much of all epochs is trained, those of the winner's proof included."""
    if any(event["event"] == "done" for event in events):
        return 1.0
    plan = sweep.plan() or []
    trained = sum(event["epochs"] for event in events if event["event"] == "point")
    return round(trained / total_epochs(sweep, plan), 3) if plan else 0.0


def total_epochs(sweep: Sweep, plan: list[tuple[int, int]]) -> int:
    pair = 2 if sweep.labels() == "dataset" else 1
    return sum(count * length for count, length in plan) + pair * sweep.config().trials * plan[-1][1]


def left_seconds(sweep: Sweep, events: list[dict[str, Any]], now: float) -> float | None:
    """How long it still takes, as its trainings so far went; ``None`` before two of them (the first also asks the
    teacher)."""
    plan = sweep.plan()
    begun = {event["run"]: event["time"] for event in events if event["event"] == "run"}
    ended = [event for event in events if event["event"] == "point"]
    good = [event for event in ended if not event["diverged"] and event["run"] in begun]
    if not plan or len(good) < 2:
        return None
    pace = sum(event["seconds"] for event in good) / sum(event["epochs"] for event in good)
    besides = median_low(max(0.0, event["time"] - begun[event["run"]] - event["seconds"]) for event in good)
    epochs = total_epochs(sweep, plan) - sum(event["epochs"] for event in ended)
    trainings = sum(count for count, _ in plan) - len(ended) + 1
    since = max(event["time"] for event in events if event["event"] in ("run", "point", "started", "resumed"))
    return max(0.0, epochs * pace + trainings * besides - (now - since))


def sentence(report: dict[str, Any]) -> str:
    """What a sweep found, as HTML: the verdict's sign, where there is one, beside its words."""
    found = report.get("verdict")
    answer = found["answer"] if found else "no difference shown"
    mark = f'<span class="kd-mark" aria-hidden="true">{MARKS[answer]}</span> ' if found else ""
    return f'<p class="kd-verdict kd-{answer.split()[0]}">{mark}<span>{html.escape(report["sentence"])}</span></p>'


def legend(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """What the cells mean."""
    if not any(row["accuracy"] is not None for row in rows):
        return "Each cell will show how well its student does on validation, and open its run."
    words = f"{MEASURED[sweep.labels()]} on validation; the deeper, the better. A cell with fewer epochs was left behind by the others."
    return words + (" Without the teacher neither T nor the method matters." if 0 in sweep.grid().lambdas else "")


# --- The heat map


def heat_map(grid: Grid, method: str) -> str:
    """A method's table, its cells empty: a row for each lambda, a column for each temperature. Lambda 0 is one point."""
    places = {point: nth for nth, point in enumerate(grid.points())}
    head = "".join(f'<th scope="col">T {temperature:g}</th>' for temperature in grid.temperatures)

    def cell(temperature: float, weight: float, wide: int = 1) -> str:
        span = f' colspan="{wide}"' if wide > 1 else ""
        return f'<td data-point="{places[grid.point(temperature, weight, method)]}"{span}></td>'

    def row(weight: float) -> str:
        wide = len(grid.temperatures)
        body = (
            "".join(cell(temperature, weight) for temperature in grid.temperatures)
            if weight
            else cell(grid.temperatures[0], 0, wide)
        )
        return f'<tr><th scope="row">{weight:g}</th>{body}</tr>'

    name = html.escape(settings.METHOD_WORDS[method][0])
    return (
        f'<div class="kd-map" role="region" tabindex="0" aria-label="{name}"><table><caption>{name}</caption>'
        f'<thead><tr><th scope="col">lambda</th>{head}</tr></thead><tbody>{"".join(map(row, grid.lambdas))}</tbody></table></div>'
    )


def cells(
    rows: list[dict[str, Any]], events: list[dict[str, Any]], fresh: list[dict[str, Any]] | None, status: str
) -> dict[str, dict[str, Any]]:
    """Of the points that ``fresh`` events touch (``None``: of all), by their number, what a cell shows."""
    best = next(iter(ranking(rows)), None) if status == "done" else None
    run = next((event for event in reversed(events) if event["event"] == "run"), {})
    proves = "seed" in run.get("changes", {})
    touched = fresh and {Point.of(e.get("changes", e)) for e in fresh if e["event"] in ("run", "point")}
    return {
        str(nth): cell(row, row is best, status in CLOSED, proves)
        for nth, row in enumerate(rows)
        if fresh is None or Point.of(row) in touched or row["now"] or row is best
    }


def cell(row: dict[str, Any], wins: bool, closed: bool, proves: bool) -> dict[str, Any]:
    """What a cell shows: ``text`` and ``small``, its ``accuracy`` for the colour, the ``run`` that it opens, the ``point``
    in words, and what it ``is``: ``now``, ``best`` or nothing."""
    measured = row["rung"] is not None
    lines = (
        ["diverged" if row["diverged"] else f"{row['accuracy']:.1%}", many(row["epochs"], "epoch")] if measured else []
    )
    if row["now"]:
        lines.append("stopped" if closed else "proving" if proves else "training")
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
    """What the other parts of the page refer to."""

    board: gr.HTML
    button: gr.Button
    widgets: list[gr.components.Component]


def build(rest: list[gr.components.Component]) -> SweepTab:
    """What is swept on the left, the heat maps on the right; ``rest`` are the widgets of the settings."""
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
            plan = gr.HTML(
                value={"values": [*(widget.value for widget in widgets), *values]},
                html_template='<p class="kd-plan" role="status" aria-live="polite"></p><p class="kd-note kd-rest"></p>',
                js_on_load="distillery.preview(element, props, server, watch)",
                server_functions=[preview],
                apply_default_css=False,
                elem_id="sweep-plan",
            )
        with gr.Column(scale=7, min_width=320):
            board = gr.HTML(
                value={},
                html_template=(FILES / "sweep.html").read_text(),
                js_on_load="distillery.sweep(element, props, server, watch, run => trigger('open', {run}))",
                server_functions=[poll, offered, stop_it, resume_it, delete_it],
                apply_default_css=False,
                elem_id="sweep",
            )
    settings.follow(plan, board, every)
    return SweepTab(board, button, every)


def on_sweep(live: dict[str, Any] | None, *values: Any) -> dict[str, Any]:
    """The Sweep button: start one, and show it."""
    token = token_of(live)
    with kind_errors():
        sweep = start(*from_widgets(values), token)
    return {"sweep": sweep.id, "owner": token, "new": True}
