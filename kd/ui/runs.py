"""The fifth tab: all runs, newest first; their curves overlaid; rename, stop and delete."""

import hashlib
import html
import time
from pathlib import Path
from typing import Any

import gradio as gr

from kd.config import NO_TEACHER
from kd.data.library.store import short_name
from kd.errors import UserError
from kd.runs.run import CLOSED, LONGEST_NAME, Run
from kd.runs.store import delete_run
from kd.runs.summary import status_of, summarize
from kd.ui import figures
from kd.ui.access import outcome, own, own_runs, served
from kd.ui.distill import stop
from kd.ui.progress import queue_place
from kd.ui.result import is_labelled, times

FILES = Path(__file__).parent / "templates"

MOST_ROWS = 200

MOST_CURVES = 16

HEAD = ("", "Started", "Status", "Student and teacher", "T", "Lambda", "Accuracy", "Agreement", "Speed-up", "Actions")


@served
def rows(asked: dict[str, Any]) -> dict[str, Any]:
    """The table's body as ``html`` with its ``mark``, or ``{}`` where the page has it already (``seen``)."""
    mine = own_runs(asked.get("owner", ""))
    body = "".join(row(run) for run in mine[:MOST_ROWS])
    mark = hashlib.sha256(body.encode()).hexdigest()[:16]
    return {} if mark == asked.get("seen") else {"html": body, "mark": mark}


def row(run: Run) -> str:
    """One run; nothing for one that is deleted meanwhile, or of another version."""
    try:
        return _row(run)
    except UserError:
        return ""


def _row(run: Run) -> str:
    summary, config, report = summarize(run), run.config(), run.report()
    status = status_of(run, summary)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.settings()["created"]))
    taught = config.teacher != NO_TEACHER
    whom = f"from {short_name(config.teacher)}" if taught else "from the labels alone"
    given, student, whom = (html.escape(text) for text in (run.name(), short_name(config.student), whom))
    name = f"{given or student}, started {created}"
    made = f"{student} {whom}" if given else whom
    accuracy = summary.accuracy
    if report:
        accuracy = report["student"]["accuracy"] if is_labelled(report) else None
    agreement = report["agreement"] if report else summary.agreement
    cells = {
        "Started": f'<time datetime="{created}">{created}</time>',
        "Status": f'<span class="kd-status kd-{status}">{status_words(status, summary)}</span>',
        "Student and teacher": f"<b>{given or student}</b> <br><small>{made}</small>",
        "T": f"{config.temperature:g}" if taught else "",
        "Lambda": f"{1 if summary.labels == 'teacher' else config.lambda_:g}" if taught else "",
        "Accuracy": "" if accuracy is None else f"{accuracy:.1%} <br><small>{'test' if report else 'validation'}</small>",
        "Agreement": "" if agreement is None else f"{agreement:.1%}",
        "Speed-up": times(report["speedup"]) if report and taught else "",
        "Actions": actions(status, name, taught),
    }  # fmt: skip
    box = f'<td><input type="checkbox" value="{run.id}" aria-label="Show the curves of {name}"></td>'
    return (
        f'<tr data-run="{run.id}" data-name="{given}">{box}'
        + "".join(f'<td data-label="{k}">{v}</td>' for k, v in cells.items())
        + "</tr>"
    )


def status_words(status: str, summary: Any) -> str:
    """The status, and how far it is."""
    if status == "queued" and summary.place:
        return f"queued, {queue_place(summary)}".replace(" in the queue", "")
    if status == "running" and summary.epochs:
        return f"running, {summary.share():.0%}"
    return status


def actions(status: str, name: str, taught: bool) -> str:
    """The buttons of a row; without a teacher there is nothing to compare."""
    compare = ["compare"] if status == "done" and taught else []
    wanted = ["open", *compare, "rename", "delete" if status in CLOSED else "stop"]
    return "".join(
        f'<button type="button" class="kd-button{" kd-danger" if do == "delete" else ""}" data-do="{do}" '
        f'aria-label="{do.capitalize()} {name}">{do.capitalize()}</button>'
        for do in wanted
    )


@served
def curves(asked: dict[str, Any]) -> dict[str, Any]:
    """The figures of the runs ``runs``, overlaid; or ``problem``."""
    ids = asked.get("runs")
    if not isinstance(ids, list) or len(ids) > MOST_CURVES:
        return {"problem": f"Choose {MOST_CURVES} runs at most."}
    try:
        chosen = [own(id, asked.get("owner", "")) for id in ids]
        return {name: figure.to_plotly_json() for name, figure in figures.overlay_figures(chosen).items()}
    except UserError as problem:
        return {"problem": str(problem)}


@served
def act(asked: dict[str, Any]) -> dict[str, Any]:
    """Rename, stop or delete a run of the visitor's: ``{}``, or ``problem``."""
    who = asked.get("run", ""), asked.get("owner", "")
    match asked.get("do"):
        case "rename":
            return outcome(rename, *who, asked.get("name"))
        case "stop":
            return outcome(stop, *who)
        case "delete":
            return outcome(delete, *who)
    return {}


def rename(id: str, token: str, name: str) -> None:
    """Give a run of the visitor's a name. Raises ``UserError`` for what is none."""
    own(id, token).rename(name)


def delete(id: str, token: str) -> None:
    """Remove a run of the visitor's, its student with it. Raises ``UserError`` while it is worked on."""
    run = own(id, token)
    if run.status() not in CLOSED:
        raise UserError(f"Run {run.id} is {run.status()}. Stop it first, then delete it.")
    delete_run(run)


def build() -> gr.HTML:
    """The list; its script asks for the rows while the tab is open."""
    head = "".join(f'<th scope="col">{name or "Curves"}</th>' for name in HEAD)
    return gr.HTML(
        value={},
        html_template=(FILES / "runs.html").read_text().replace("@@head", head).replace("@@longest", str(LONGEST_NAME)),
        js_on_load="distillery.runs(element, props, server, watch, run => trigger('open', {run}), run => trigger('compare', {run}))",
        server_functions=[rows, curves, act],
        apply_default_css=False,
        elem_id="runs",
    )  # fmt: skip
