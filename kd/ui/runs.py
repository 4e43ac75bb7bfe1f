"""The Runs tab: all runs, newest first; their curves overlaid; rename, stop and delete."""

import hashlib
import time
from typing import Any

import gradio as gr

from kd.config import NO_TEACHER
from kd.data.library.store import short_name
from kd.errors import UserError
from kd.export.job import check_not_exporting
from kd.export.push_job import check_not_pushing
from kd.runs.backup import what_is_lost
from kd.runs.run import CLOSED, LONGEST_NAME, Run
from kd.runs.store import delete_run
from kd.runs.summary import Summary, status_of, summarize
from kd.ui import figures
from kd.ui.access import outcome, own, own_runs, served, shown
from kd.ui.distill import stop
from kd.ui.example import EXAMPLE
from kd.ui.progress import queue_place
from kd.ui.rendering import render
from kd.ui.result import deployed_speedup, is_labelled, percent, times

MOST_ROWS = 200

# How many runs' curves can lie over each other and still be told apart.
MOST_CURVES = 16

COLUMNS = (
    "Started", "Status", "Student and teacher", "T", "Lambda", "Accuracy", "Agreement", "Speed-up", "Actions",
)  # fmt: skip


@served
def rows(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the table's body as ``html`` with its ``mark``, or ``{}`` where the page already has it (``seen``). The example
    comes last. ``lost`` says what a restart of the server would lose."""
    mine = own_runs(asked.get("owner", ""))
    body, lost = "".join(row(run) for run in [*mine[:MOST_ROWS], EXAMPLE]), what_is_lost()
    mark = hashlib.sha256((body + lost).encode()).hexdigest()[:16]
    return {} if mark == asked.get("seen") else {"html": body, "mark": mark, "lost": lost}


def row(run: Run) -> str:
    """Return one run's row as HTML; nothing for a run that has just been deleted, or of another version."""
    try:
        return render("runs_row", **_row_values(run))
    except UserError:
        return ""


def _row_values(run: Run) -> dict[str, Any]:
    summary, config, report = summarize(run), run.config(), run.report()
    status = status_of(run, summary)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.settings()["created"]))
    has_teacher = config.teacher != NO_TEACHER
    student, given_name = short_name(config.student), "Example" if run == EXAMPLE else run.name()
    source = f"from {short_name(config.teacher)}" if has_teacher else "from the labels alone"
    accuracy = summary.accuracy
    if report:
        accuracy = report["student"]["accuracy"] if is_labelled(report) else None
    agreement = report["agreement"] if report else summary.agreement
    cells = {
        "Started": created,
        "Status": status_words(status, summary),
        "Student and teacher": (given_name or student, f"{student} {source}" if given_name else source),
        "T": f"{config.temperature:g}" if has_teacher else "",
        "Lambda": f"{1 if summary.labels == 'teacher' else config.lambda_:g}" if has_teacher else "",
        "Accuracy": () if accuracy is None else (percent(accuracy), "test" if report else "validation"),
        "Agreement": "" if agreement is None else percent(agreement),
        "Speed-up": times(deployed_speedup(report)) if report and has_teacher else "",
        "Actions": ["open"] if run == EXAMPLE else actions(status, has_teacher),
    }
    label = f"{given_name or student}, started {created}"
    return {"id": run.id, "given_name": given_name, "label": label, "status": status, "cells": cells}


def status_words(status: str, summary: Summary) -> str:
    """Return the status and how far the run is: "running, 40%"."""
    if status == "queued" and summary.place:
        return f"queued, {queue_place(summary)}".replace(" in the queue", "")
    if status == "running" and summary.epochs:
        return f"running, {summary.share():.0%}"
    return status


def actions(status: str, has_teacher: bool) -> list[str]:
    """Return the names of a row's buttons; without a teacher there is nothing to compare."""
    compare = ["compare"] if status == "done" and has_teacher else []
    return ["open", *compare, "rename", "delete" if status in CLOSED else "stop"]


@served
def curves(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the chosen ``runs``, one curve each; or a ``problem``."""
    ids = asked.get("runs")
    if not isinstance(ids, list) or len(ids) > MOST_CURVES:
        return {"problem": f"Choose {MOST_CURVES} runs at most."}
    try:
        chosen = [shown(id, asked.get("owner", "")) for id in ids]
        return {name: figure.to_plotly_json() for name, figure in figures.overlay_figures(chosen).items()}
    except UserError as problem:
        return {"problem": str(problem)}


@served
def act(asked: dict[str, Any]) -> dict[str, Any]:
    """Rename, stop or delete one of the visitor's runs. Return ``{}``, or a ``problem``."""
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
    """Give one of the visitor's runs a name. Raises ``UserError`` for what cannot be a name."""
    own(id, token).rename(name)


def delete(id: str, token: str) -> None:
    """Delete one of the visitor's runs and its student. Raises ``UserError`` while it is waiting or running."""
    run = own(id, token)
    if run.status() not in CLOSED:
        raise UserError(f"Run {run.id} is {run.status()}. Stop it first, then delete it.")
    check_not_exporting(run, "delete the run")
    check_not_pushing(run, "delete the run")
    delete_run(run)


def build() -> gr.HTML:
    """Return the list, whose script asks for the rows every 2 s while the tab is open.

    It is HTML of ours and not a ``gr.Dataframe``, whose cells hold no buttons and are no cards on a phone; the script keeps
    the focus and the chosen boxes when the rows change, and asks for nothing that it already has.
    """
    return gr.HTML(
        value={},
        html_template=render("runs", head=("Curves", *COLUMNS), longest_name=LONGEST_NAME),
        js_on_load="""distillery.runs({
            element, props, server, open: run => trigger('open', {run}), compare: run => trigger('compare', {run}),
        })""",
        server_functions=[rows, curves, act],
        apply_default_css=False,
        elem_id="runs",
    )
