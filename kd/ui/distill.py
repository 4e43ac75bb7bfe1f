"""The first tab: choose, click Distill, watch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from kd import launch, plots, runs
from kd.config import PRESETS, SAMPLE, DistillConfig
from kd.runs import CLOSED, Run, RunError
from kd.ui import settings
from kd.ui.owners import check_request, kind_errors, own, owner, readable, view_key, visitor
from kd.ui.summary import STAGES, result_table, short, status_of, summarize

FILES = Path(__file__).parent
PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
"""For the page's own handlers. Hiding them protects nothing: each checks whom it answers."""


def start(config: DistillConfig, token: str) -> Run:
    """Create a run and start its process. Raises ``RunError`` where the visitor may not."""
    check_request(config, token)
    run = runs.create(config, runs.default_folder(), owner(token))
    launch.start(run)
    return run


def stop(id: str, token: str) -> Run:
    """Ask a run of the visitor's to stop. Raises ``RunError`` if it is not running."""
    run = own(id, token)
    if run.status() in CLOSED:
        raise RunError(f"Run {run.id} is not running: it is {run.status()}.")
    run.ask_to_stop()
    return run


def resume(id: str, token: str) -> Run:
    """Go on with a run of the visitor's that was closed before it was done. Raises ``RunError``."""
    run = own(id, token)
    if run.status() not in ("stopped", "failed", "died"):
        raise RunError(f"Run {run.id} is {run.status()}: there is nothing to resume.")
    check_request(run.config(), token)
    launch.start(run, resume=True)
    return run


# --- What the script asks for


def poll(asked: dict[str, Any]) -> dict[str, Any]:
    """What has happened in ``run`` since ``cursor``, for ``owner`` or whoever has the key ``view``.

    ``status, line, stage, share, cursor`` always; ``figures`` whole at first and when training begins (again), after
    that ``append``; once: ``title``, ``result``. ``refused`` where there is no such run for this visitor.
    """
    try:
        run = readable(asked.get("run", ""), asked.get("owner", ""), asked.get("view", ""))
        cursor = asked.get("cursor")
        return _news(run, cursor if isinstance(cursor, int) and cursor > 0 else 0, asked.get("owner", ""))
    except (RunError, PermissionError) as problem:
        return {"refused": str(problem)}


def _news(run: Run, since: int, token: str) -> dict[str, Any]:
    summary = summarize(run)
    status = status_of(run, summary)  # before the events are read: a closed run has no more of them
    events, cursor = run.read(since)
    closed = status in CLOSED
    head, figures = summary.line(status)
    if not closed and run.stop_asked():
        head, figures = "Stopping: the student so far is kept", ""
    news = {
        "status": status, "line": [head, figures], "stage": summary.stage, "share": round(summary.share(), 3),
        "cursor": cursor,
    }  # fmt: skip
    if since == 0:
        news |= _introduction(run, token)
    if since == 0 or any(event["event"] == "training" for event in events):
        drawn = plots.figures(run.events(), None if closed else summary.epochs)
        news["figures"] = {name: figure.to_plotly_json() for name, figure in drawn.items()}
    elif any(event["event"] in ("step", "eval") for event in events):
        news["append"] = plots.points(events)
    warnings = [text for event in events for text in event.get("warnings", [])]
    if warnings:
        news["warnings"] = warnings
    if status == "done" and (report := run.report()):
        news["result"] = result_table(report)
    return news


def _introduction(run: Run, token: str) -> dict[str, Any]:
    """What a run is, and for its owner the key of its read-only link."""
    config = run.config()
    title = f"{short(config.teacher)} → {short(config.student)}"
    detail = f"{short(config.dataset)}, T {config.temperature:g}, lambda {config.lambda_:g}, {config.epochs} epochs"
    try:
        own(run.id, token)
    except RunError:
        return {"title": [title, detail], "mine": False}
    return {"title": [title, detail], "mine": True, "view": view_key(run)}


def stop_it(asked: dict[str, Any]) -> dict[str, Any]:
    """The Stop button: ``{}``, or ``problem``."""
    return _answer(stop, asked)


def resume_it(asked: dict[str, Any]) -> dict[str, Any]:
    """The Resume button: ``{}``, or ``problem``."""
    return _answer(resume, asked)


def _answer(action: Any, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        action(asked.get("run", ""), asked.get("owner", ""))
    except (RunError, PermissionError, ValueError) as problem:
        return {"problem": str(problem)}
    return {}


# --- The tab


@dataclass
class DistillTab:
    """What the other parts of the page refer to."""

    live: gr.HTML
    button: gr.Button
    widgets: list[gr.components.Component]


PRESET_HELP = "Sample is built in and works offline"


def build() -> DistillTab:
    """The widgets on the left, the run on the right."""
    with gr.Row(elem_classes="kd-columns"):
        with gr.Column(scale=3, min_width=300):
            preset = gr.Radio(
                [(name.capitalize(), name) for name in PRESETS],
                value=SAMPLE,
                label="Preset",
                elem_id="set-preset",
                info=PRESET_HELP,
            )
            first = {name: settings.widget(name) for name in settings.OFFERED}
            with gr.Row():
                first |= {name: settings.widget(name) for name in ("temperature", "epochs")}
            first["lambda"] = settings.widget("lambda")
            button = gr.Button("Distill", variant="primary", size="lg", elem_id="distill")
            with gr.Accordion("More", open=False, elem_id="more"):
                rest = {name: settings.widget(name) for name in settings.FIELDS if name not in first}
        with gr.Column(scale=7, min_width=320):
            live = gr.HTML(
                value={},
                html_template=(FILES / "live.html").read_text().replace("@@empty", empty_state()).replace("@@stages", stages()),
                js_on_load="distillery.live(element, props, server, watch, run => trigger('compare', {run}))",
                server_functions=[poll, stop_it, resume_it],
                apply_default_css=False,
                elem_id="live",
            )  # fmt: skip
    widgets = [first[name] if name in first else rest[name] for name in settings.FIELDS]
    preset.input(lambda name: list(settings.preset_values(name).values()), preset, widgets, **PRIVATE)
    return DistillTab(live, button, widgets)


def on_distill(saved: dict[str, Any] | None, *values: Any) -> tuple[dict, dict]:
    """The Distill button: start a run; it is the one that is shown, and the one a new page comes back to."""
    saved = visitor(saved)
    with kind_errors():
        run = start(settings.from_widgets(values), saved["owner"])
    return {**saved, "run": run.id}, {"run": run.id, "owner": saved["owner"], "new": True}


def empty_state() -> str:
    """Two sentences: what will happen, where, and how long it takes."""
    if launch.device_name("auto").startswith("cuda"):
        where = "this machine's GPU"
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        where = f"this machine's CPU ({cores} core{'s' if cores > 1 else ''})"
    return (
        "<p>Click <b>Distill</b> and a small student network learns from a big teacher, from its answers as well as "
        "from the labels, while the curves are drawn here.</p>"
        f"<p>It runs on {where}: for the sample, training and then measuring both on pictures that neither has seen "
        "takes a little over a minute on two CPU cores.</p>"
    )


def stages() -> str:
    """The stages of a run, as list items."""
    return "".join(f"<li>{name}</li>" for name in STAGES)
