"""The first tab: choose, click Distill, watch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from kd.config import NO_TEACHER, OF_PICTURES, PRESETS, RUN_TEACHER, SAMPLE, STUDENT_NAMES, DistillConfig
from kd.data.library.store import short_name
from kd.errors import UserError
from kd.runs.process import start_run
from kd.runs.queue import device_name
from kd.runs.run import CLOSED, Run
from kd.runs.store import create_run
from kd.runs.summary import status_of, summarize
from kd.system.files import default_runs_folder
from kd.ui import dark_knowledge, dataset_check, settings, time_estimate
from kd.ui.access import (
    admitted,
    check_names,
    house_rules,
    kind_errors,
    outcome,
    own,
    owner,
    place,
    readable,
    served,
    token_of,
    view_key,
    visitor,
    with_own,
)
from kd.ui.disagreement import analysis
from kd.ui.figures import points, training_figures
from kd.ui.progress import STAGES, progress_line
from kd.ui.result import result

FILES = Path(__file__).parent / "templates"

PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
"""For the page's own handlers. Hiding them protects nothing: each checks whom it answers."""


def start(config: DistillConfig, token: str) -> Run:
    """Create a run and start its process. Raises ``UserError`` where the visitor may not."""
    check_names(config)
    config = with_own(config, token)
    with admitted(token):
        run = create_run(config, default_runs_folder(), owner(token), **time_estimate.known(config))
    time_estimate.give_way()
    start_run(run, behind=True)
    return run


def stop(id: str, token: str) -> Run:
    """Ask a run of the visitor's to stop. Raises ``UserError`` if it is not running."""
    run = own(id, token)
    if run.status() in CLOSED:
        raise UserError(f"Run {run.id} is not running: it is {run.status()}.")
    run.ask_to_stop()
    return run


def resume(id: str, token: str) -> Run:
    """Go on with a run of the visitor's that was closed before it was done. Raises ``UserError``."""
    run = own(id, token)
    if run.status() not in ("stopped", "failed", "died"):
        raise UserError(f"Run {run.id} is {run.status()}: there is nothing to resume.")
    with admitted(token, run.id):
        time_estimate.give_way()
        start_run(run, resume=True, behind=True)
    return run


# --- What the script asks for


@served
def poll(asked: dict[str, Any]) -> dict[str, Any]:
    """What has happened in ``run`` since ``cursor``, for ``owner`` or whoever has the key ``view``.

    ``status, line, stage, share, cursor`` always; ``figures`` whole at first, when training begins (again) and at the
    end, between those ``append``; once: ``title``, ``result``. ``refused`` where there is no such run for this visitor.
    """
    try:
        run = readable(asked.get("run", ""), asked.get("owner", ""), asked.get("view", ""))
        return _news(run, place(asked.get("cursor")), asked.get("owner", ""))
    except (UserError, PermissionError) as problem:
        return {"refused": str(problem)}


def _news(run: Run, since: int, token: str) -> dict[str, Any]:
    summary = summarize(run)
    status = status_of(run, summary)  # before the events are read: a closed run has no more of them
    events, cursor = run.read(since)
    closed = status in CLOSED
    head, figures = progress_line(summary, status)
    if not closed and run.stop_asked():
        head, figures = "Stopping: the student so far is kept", ""
    news = {
        "status": status, "line": [head, figures], "stage": summary.stage, "share": round(summary.share(), 3),
        "cursor": cursor,
    }  # fmt: skip
    if since == 0:
        news |= _introduction(run, token)
    begun = any(event["event"] == "training" for event in events)
    if since == 0 or begun or (closed and events):
        drawn = training_figures(run.events(), None if closed else summary.epochs)
        news["figures"] = {name: figure.to_plotly_json() for name, figure in drawn.items()}
    elif any(event["event"] in ("step", "eval") for event in events):
        news["append"] = points(events)
    warnings = [settings.on_page(text) for event in events for text in event.get("warnings", [])]
    if warnings:
        news["warnings"] = warnings
    if status == "done" and (report := run.report()):
        news["result"] = result(report)
    return news


def _introduction(run: Run, token: str) -> dict[str, Any]:
    """What a run is, and for its owner the key of its read-only link."""
    config = run.config()
    taught, name = config.teacher != NO_TEACHER, run.name()
    models = f"{short_name(config.teacher) if taught else 'Labels alone'} → {short_name(config.student)}"
    weights = [f"T {config.temperature:g}", f"lambda {run.lambda_():g}"]
    detail = ", ".join(
        [
            *([models] if name else []),
            short_name(config.dataset),
            *([settings.METHOD_WORDS[config.method][0]] if config.method != "kd" else []),
            *(weights if taught else []),
            f"{config.minutes:g} minutes"
            if config.minutes
            else f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}",
            *([f"{config.trials} seeds"] if config.trials > 1 else []),
            *(["with a baseline"] if config.baseline == "yes" else []),
        ]
    )
    try:
        own(run.id, token)
    except UserError:
        return {"title": [name or models, detail], "taught": taught, "mine": False}
    return {"title": [name or models, detail], "taught": taught, "mine": True, "view": view_key(run)}


@served
def stop_it(asked: dict[str, Any]) -> dict[str, Any]:
    """The Stop button: ``{}``, or ``problem``."""
    return outcome(stop, asked.get("run", ""), asked.get("owner", ""))


@served
def resume_it(asked: dict[str, Any]) -> dict[str, Any]:
    """The Resume button: ``{}``, or ``problem``."""
    return outcome(resume, asked.get("run", ""), asked.get("owner", ""))


# --- The tab


@dataclass
class DistillTab:
    """What the other parts of the page refer to."""

    live: gr.HTML
    button: gr.Button
    make: gr.Button
    widgets: list[gr.components.Component]
    chosen: list[gr.components.Component]
    """The preset, all widgets, and the row of methods' own settings: what a choice of pictures fills in."""


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
            with gr.Row(elem_id="teacher-row"):
                first = {"teacher": settings.widget("teacher")}
                make = gr.Button("Make a teacher", size="sm", scale=0, min_width=116, elem_id="make-teacher")
            first |= {name: settings.widget(name) for name in (*settings.OFFERED[1:], "method")}
            with gr.Row(visible=False) as own_row:
                first |= {name: settings.widget(name) for name in settings.OWN}
            first |= {name: settings.widget(name) for name in ("temperature", "lambda")}
            with gr.Row():
                first |= {name: settings.widget(name) for name in ("epochs", "minutes")}
            with gr.Row(elem_id="proof"):
                first |= {name: settings.widget(name) for name in ("baseline", "trials")}
            with gr.Column(elem_id="go"):
                button = gr.Button("Distill", variant="primary", size="lg", elem_id="distill")
                minutes = time_estimate.build()
            with gr.Accordion("More", open=False, elem_id="more"):
                rest = {name: settings.widget(name) for name in settings.FIELDS if name not in first}
            with gr.Accordion("Check the pictures", open=False, elem_id="check-pictures"):
                pictures = dataset_check.build()
            with gr.Accordion("Dark knowledge", open=False, elem_id="dark-knowledge"):
                dark_knowledge.build(
                    *((first | rest)[name] for name in ("teacher", "dataset", "temperature", "method"))
                )
        with gr.Column(scale=7, min_width=320):
            live = gr.HTML(
                value={},
                html_template=(FILES / "live.html").read_text().replace("@@empty", empty_state()).replace("@@stages", stages()),
                js_on_load="distillery.live(element, props, server, watch, run => trigger('compare', {run}), run => trigger('teach', {run}))",
                server_functions=[poll, stop_it, resume_it, analysis],
                apply_default_css=False,
                elem_id="live",
            )  # fmt: skip
    widgets = [first[name] if name in first else rest[name] for name in settings.FIELDS]
    every = dict(zip(settings.FIELDS, widgets, strict=True))

    def all_of(names: tuple[str, ...]) -> list[gr.components.Component]:
        return [every[name] for name in names]

    for panel in (minutes, pictures):
        settings.follow(panel, live, widgets)
    chosen = [preset, *all_of(("recipe", "method"))]
    preset.input(on_preset, preset, [*widgets, own_row], **PRIVATE)
    follows = [every["method"], own_row, *all_of((*settings.SET_BY_METHOD, *settings.OWN))]
    # Not ``input``: gradio's lists call that when they are merely left, and what was typed meanwhile would be lost.
    every["method"].change(on_method, chosen, follows, **PRIVATE)
    every["recipe"].change(on_recipe, chosen, all_of(settings.SET_BY_RECIPE), **PRIVATE)
    follows = all_of(("recipe", *settings.SET_BY_RECIPE))
    every["student"].input(on_student, [every["student"], *chosen], follows, **PRIVATE)
    live.teach(to_teacher, None, every["teacher"], **PRIVATE)
    return DistillTab(live, button, make, widgets, [preset, *widgets, own_row])


def on_preset(preset: str) -> list[Any]:
    """A preset is chosen: all settings are its own, its method's visible with them."""
    values = settings.preset_values(preset)
    _, own_row, *own = _shown_for(values["method"])
    updates = {name: gr.update(value=settings.to_widget(name, value)) for name, value in values.items()}
    updates["method"] |= {"info": settings.method_info(values["method"])}
    for name, shown in zip(settings.OWN, own, strict=True):
        updates[name] |= shown
    return [*updates.values(), own_row]


def on_method(preset: str, recipe: str, method: str) -> list[Any]:
    """A method is chosen: its own settings appear, and what its paper sets is filled in."""
    info, own_row, *own = _shown_for(method)
    values = settings.values_of(settings.SET_BY_METHOD, preset, recipe, method)
    return [info, own_row, *(gr.update(value=value) for value in values), *own]


def on_recipe(preset: str, recipe: str, method: str) -> list[Any]:
    """A recipe is chosen: its settings are filled in."""
    return settings.values_of(settings.SET_BY_RECIPE, preset, recipe, method)


def on_student(student: str, preset: str, recipe: str, method: str) -> Any:
    """A student is chosen: weights that know something have a recipe of their own, the guide's is for all."""
    wanted = "scratch" if student in STUDENT_NAMES else "pretrained"
    return gr.skip() if recipe in (wanted, "guide") else [wanted, *on_recipe(preset, wanted, method)]


def _shown_for(method: str) -> list[dict[str, Any]]:
    """Updates for the method's line of help, the row of methods' own settings, and each of those."""
    shown = [method in only for only in settings.OWN.values()]
    return [
        gr.update(info=settings.method_info(method)),
        gr.update(visible=any(shown)),
        *(gr.update(visible=one) for one in shown),
    ]


def on_distill(saved: dict[str, Any] | None, live: dict[str, Any] | None, *values: Any) -> tuple[dict, dict]:
    """The Distill button: start a run; it is the one that is shown, and the one a new page comes back to."""
    saved = visitor(saved)
    token = token_of(live) or saved["owner"]  # the button is there before the page has its token
    with kind_errors():
        run = start(settings.from_widgets(values), token)
    return {**saved, "run": run.id}, {"run": run.id, "owner": token, "new": True}


OF_TEACHER = (*OF_PICTURES, "duplicates", "seed", "device", "precision")
"""The settings that a run that makes a teacher has from the page; the others are those for pretrained weights."""


def on_make(saved: dict[str, Any] | None, live: dict[str, Any] | None, *values: Any) -> tuple[dict, dict]:
    """The Make a teacher button: start a run that fine-tunes the model in Teacher on the pictures, and show it."""
    saved = visitor(saved)
    token = token_of(live) or saved["owner"]
    with kind_errors():
        asked = settings.from_widgets(values).to_dict()
        config = DistillConfig.finetune(asked["teacher"], **{name: asked[name] for name in OF_TEACHER})
        run = start(config, token)
    gr.Info("The model in Teacher is fine-tuned on these pictures first. When it is done, click Use as teacher.")
    return {**saved, "run": run.id}, {"run": run.id, "owner": token, "new": True}


def to_teacher(event: gr.EventData) -> str:
    """The Use as teacher button: what the run has made becomes the teacher of the next."""
    return f"{RUN_TEACHER}{event.run}"


def empty_state() -> str:
    """Two sentences: what will happen, where, and how long it takes."""
    if device_name("auto").startswith("cuda"):
        where = "this machine's GPU"
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        where = f"this machine's CPU ({cores} core{'s' if cores > 1 else ''})"
    return (
        "<p>Click <b>Distill</b> and a small student network learns from a big teacher's answers, while the curves are "
        "drawn here.</p>"
        f"<p>It runs on {where}: for the sample, training and then measuring both on pictures that neither has seen "
        "takes about a minute and a half on two CPU cores.</p>"
        + (f"<p>{rules}</p>" if (rules := house_rules()) else "")
    )


def stages() -> str:
    """The stages of a run, as list items."""
    return "".join(f"<li>{name}</li>" for name in STAGES)
