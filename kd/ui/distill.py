"""The Distill tab: the settings, the buttons that start a run, and the run as it goes on."""

import dataclasses
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gradio as gr

from kd.config import NO_TEACHER, OF_PICTURES, PRESETS, RUN_TEACHER, SAMPLE, STUDENT_NAMES, DistillConfig
from kd.data.library.store import UPLOAD_PREFIX, short_name
from kd.errors import UserError
from kd.export.job import check_not_exporting
from kd.export.push import LICENSES
from kd.export.push_job import check_not_pushing
from kd.runs.pieces import GOES_ON, is_in_pieces
from kd.runs.process import start_run
from kd.runs.queue import device_name
from kd.runs.run import CLOSED, Run
from kd.runs.store import create_run
from kd.runs.summary import Summary, status_of, summarize
from kd.system.cache import Cache
from kd.system.files import default_runs_folder
from kd.system.zerogpu import is_zerogpu
from kd.ui import dark_knowledge, dataset_check, push, settings, take_away, time_estimate
from kd.ui.access import (
    admitted,
    check_names,
    house_rules,
    kind_errors,
    outcome,
    own,
    own_upload,
    owner,
    served,
    shown,
    token_of,
    valid_cursor,
    view_key,
    visitor,
    with_own,
)
from kd.ui.disagreement import analysis
from kd.ui.example import EXAMPLE, where_and_when
from kd.ui.figures import new_points, training_figures
from kd.ui.progress import STAGES, progress_line
from kd.ui.rendering import render
from kd.ui.result import PROOF_SEEDS, proof_words, result

# The figures of so many runs are kept.
MOST_DRAWN = 16

# Options of the page's own event handlers. Hiding them from the API protects nothing: each checks whom it answers.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


def start(config: DistillConfig, token: str) -> Run:
    """Create a run and start its process. Raises ``UserError`` where the visitor may not do so."""
    check_names(config)
    return _begin(with_own(config, token), token)


def _begin(config: DistillConfig, token: str) -> Run:
    with admitted(token):
        run = create_run(config, default_runs_folder(), owner(token), **time_estimate.known(config))
    time_estimate.give_way()
    start_run(run, behind=True)
    return run


def prove(id: str, token: str) -> Run:
    """Start the example or one of the visitor's runs again, with ``PROOF_SEEDS`` seeds, each with the teacher and without.

    Its names are folders already, which were checked when it was first started. Raises ``UserError`` for any other run.
    """
    run = EXAMPLE if id == EXAMPLE.id else own(id, token)
    return _begin(dataclasses.replace(run.config(), trials=PROOF_SEEDS, baseline="yes"), token)


def stop(id: str, token: str) -> Run:
    """Ask one of the visitor's runs to stop. Raises ``UserError`` if it is not running."""
    run = own(id, token)
    if run.status() in CLOSED:
        raise UserError(f"Run {run.id} is not running: it is {run.status()}.")
    run.ask_to_stop()
    return run


def resume(id: str, token: str) -> Run:
    """Continue one of the visitor's runs that ended before it was done. Raises ``UserError`` for any other."""
    run = own(id, token)
    if run.status() not in ("stopped", "paused", "failed", "died"):
        raise UserError(f"Run {run.id} is {run.status()}: there is nothing to resume.")
    check_not_exporting(run, "resume the run")
    check_not_pushing(run, "resume the run")
    with admitted(token, run.id):
        time_estimate.give_way()
        start_run(run, resume=True, behind=True)
    return run


# --- What the tab's script calls


@served
def poll(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what has happened in ``run`` since ``cursor``, to its ``owner`` or to whoever has its read-only key ``view``.

    The answer always has ``status``, ``line``, ``stage``, ``share`` and ``cursor``. It has the whole ``figures`` at first,
    whenever a training begins, and at the end; in between it has the new points as ``append``. Of a paused run it says what
    is to come (``asks``, ``goes_on``). It has ``title`` in the first answer and ``result`` once the run is done. It is ``refused`` alone where this visitor may not see such a run.
    """
    try:
        run = shown(asked.get("run", ""), asked.get("owner", ""), asked.get("view", ""))
        return _progress_since(run, valid_cursor(asked.get("cursor")), asked.get("owner", ""))
    except (UserError, PermissionError) as problem:
        return {"refused": str(problem)}


def _progress_since(run: Run, since: int, token: str) -> dict[str, Any]:
    """Return the answer of ``poll`` for a run that this visitor may see."""
    summary = summarize(run)
    status = status_of(run, summary)  # before the events are read: a closed run has no more of them
    events, cursor = run.read(since)
    closed = status in CLOSED
    words, figures = progress_line(summary, status)
    if not closed and run.stop_asked():
        words, figures = "Stopping: the student so far is kept", ""
    update = {
        "status": status, "line": [words, figures], "stage": summary.stage, "share": round(summary.share(), 3),
        "cursor": cursor, **_next_piece(run, status, summary),
    }  # fmt: skip
    if since == 0:
        update |= _introduction(run, token)
    begins = any(event["event"] == "training" for event in events)
    if since == 0 or begins or (closed and events):
        every, update["cursor"] = (events, cursor) if since == 0 else run.read()
        update["figures"] = drawn(run, every, update["cursor"], None if closed else summary.epochs)
    elif any(event["event"] in ("step", "eval") for event in events):
        update["append"] = new_points(events)
    warnings = [settings.on_page(text) for event in events for text in event.get("warnings", [])]
    if warnings:
        update["warnings"] = warnings
    if status == "done" and (report := run.report()):
        may_start = run == EXAMPLE or _is_own(run, token)
        update["result"] = result(report, proof_words(report, run.events()) if may_start else "")
    return update


# Run, cursor and the axis's end -> the figures. Many visitors open the example, or a run that was shared, at the same time, and
# to draw takes ten times as long as all else that a page asks for.
_drawn = Cache(lambda: MOST_DRAWN)


def drawn(run: Run, events: list[dict[str, Any]], cursor: int, epochs: float | None) -> dict[str, Any]:
    """Return the figures of a run's events up to ``cursor``, ready for JSON; ``epochs`` as in ``training_figures``."""
    return _drawn.get(
        (run.path, cursor, epochs),
        lambda: {name: figure.to_plotly_json() for name, figure in training_figures(events, epochs).items()},
    )


def _next_piece(run: Run, status: str, summary: Summary) -> dict[str, bool]:
    """Say of a paused run that the page has to ask for its next piece itself (``asks``), or that it ``goes_on``: by itself,
    or where the page asks, once it has been seen at work there."""
    if status != "paused" or not is_in_pieces(run):
        return {}
    return {"asks": summary.reason != "cpu", "goes_on": summary.reason in ("cpu", *GOES_ON)}


def _introduction(run: Run, token: str) -> dict[str, Any]:
    """Describe a run in words; for its owner, add the key of its read-only link."""
    config, name = run.config(), run.name()
    has_teacher = config.teacher != NO_TEACHER
    models = f"{short_name(config.teacher) if has_teacher else 'Labels alone'} → {short_name(config.student)}"
    weights = [f"T {config.temperature:g}", f"lambda {run.lambda_():g}"]
    detail = ", ".join(
        [
            *([models] if name else []),
            short_name(config.dataset),
            *([settings.METHOD_WORDS[config.method][0]] if config.method != "kd" else []),
            *(weights if has_teacher else []),
            *([f"{config.labels:,} labels"] if config.labels else []),
            f"{config.minutes:g} minutes"
            if config.minutes
            else f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}",
            *([f"{config.trials} seeds"] if config.trials > 1 else []),
            *(["with a baseline"] if config.baseline == "yes" else []),
        ]
    )
    described = {"title": [name or models, detail], "has_teacher": has_teacher}
    if run == EXAMPLE:
        return {**described, "mine": False, "example": where_and_when()}
    return {**described, "mine": True, "view": view_key(run)} if _is_own(run, token) else {**described, "mine": False}


def _is_own(run: Run, token: str) -> bool:
    try:
        return own(run.id, token) == run
    except UserError:
        return False


@served
def stop_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Stop the run when its Stop button is clicked. Return ``{}``, or a ``problem``."""
    return outcome(stop, asked.get("run", ""), asked.get("owner", ""))


@served
def resume_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Continue the run when its Resume button is clicked. Return ``{}``, or a ``problem``."""
    return outcome(resume, asked.get("run", ""), asked.get("owner", ""))


# --- The tab


@dataclass
class DistillTab:
    """The components of the tab that other parts of the page refer to."""

    live: gr.HTML
    button: gr.Button
    make: gr.Button
    student: gr.Dropdown
    widgets: list[gr.components.Component]
    # What choosing a dataset changes: the preset, all widgets, the row of settings that belong to some methods only, and the
    # part in which the teacher is still to be chosen.
    chosen: list[gr.components.Component]


def build() -> DistillTab:
    """Lay out the settings on the left and the run on the right.

    What the project is about comes first: the temperature, the teacher's share and the labels, beside what they make of the
    teacher's answer to a picture. What is seldom changed is folded away.
    """
    with gr.Row(elem_classes="kd-columns"):
        with gr.Column(scale=5, min_width=300, elem_id="settings"):
            preset = gr.Radio(
                [(name.capitalize(), name) for name in PRESETS],
                value=SAMPLE,
                label="Preset",
                elem_id="set-preset",
            )
            sample = settings.preset_values(SAMPLE)
            line = models_line(*(sample[name] for name in settings.OFFERED))
            with gr.Accordion(line, open=False, elem_id="models") as models:
                with gr.Row(elem_id="teacher-row"):
                    every = {"teacher": settings.widget("teacher")}
                    make = gr.Button("Make a teacher", size="sm", scale=0, min_width=116, elem_id="make-teacher")
                every |= {name: settings.widget(name) for name in settings.OFFERED[1:]}
            with gr.Row(elem_id="lesson"):
                with gr.Column(min_width=200, elem_id="sliders"):
                    every |= {name: settings.widget(name) for name in ("temperature", "lambda", "labels")}
                taught = gr.Column(min_width=200)
            with gr.Row(elem_id="length"):
                every |= {name: settings.widget(name) for name in ("epochs", "minutes")}
            with gr.Column(elem_id="go"):
                button = gr.Button("Distill", variant="primary", size="lg", elem_id="distill")
                if is_zerogpu():
                    gr.HTML(render("zerogpu"), js_on_load=None, apply_default_css=False, elem_id="lent-gpu")
                minutes = time_estimate.build()
            with gr.Accordion("More", open=False, elem_id="more"):
                every["method"] = settings.widget("method")
                with gr.Row(visible=False) as own_row:
                    every |= {name: settings.widget(name) for name in settings.OWN}
                with gr.Row(elem_id="proof"):
                    every |= {name: settings.widget(name) for name in ("baseline", "trials")}
                every |= {name: settings.widget(name) for name in settings.FIELDS if name not in every}
            with gr.Accordion("Another picture", open=False, elem_id="another-picture"):
                chosen = dark_knowledge.chooser()
            with gr.Accordion("Check the pictures", open=False, elem_id="check-pictures"):
                pictures = dataset_check.build()
            with taught:
                dark_knowledge.build(chosen, every)
        with gr.Column(scale=7, min_width=320):
            live = _run_panel()
    every = {name: every[name] for name in settings.FIELDS}
    widgets = list(every.values())
    for panel in (minutes, pictures):
        settings.follow(panel, live, widgets)
    _connect(preset, every, own_row)
    of_line = [every[name] for name in settings.OFFERED]
    gr.on([one.change for one in of_line], on_models, [live, *of_line], models, **PRIVATE)
    live.use_as_teacher(to_teacher, None, every["teacher"], **PRIVATE)
    return DistillTab(live, button, make, every["student"], widgets, [preset, *widgets, own_row, models])


def models_line(teacher: str, dataset: str, student: str) -> str:
    """Say on one line who learns what from whom."""
    return f"{teacher} → {student} on {dataset}"


def on_models(live: dict[str, Any] | None, teacher: Any, dataset: Any, student: Any) -> Any:
    """Say on the line what is chosen below it. A dataset that the visitor has brought is called by its name."""
    words = [str(one or "?").rstrip("/") for one in (teacher, dataset, student)]
    if words[1].startswith(UPLOAD_PREFIX):
        with suppress(UserError):
            words[1] = own_upload(words[1], token_of(live)).info()["name"]
    return gr.update(label=models_line(*(short_name(one) for one in words)))


def _run_panel() -> gr.HTML:
    """Return the panel that shows a run.

    It is HTML with a script of ours and not a ``gr.Plot``: a ``gr.Plot`` is built anew and sent whole (30 KB and growing)
    at every update, and loses the reader's zoom. The script asks for the new points only (0.2 KB) and appends them. It
    takes no place in gradio's queue, goes on after a reload or a restart of the server, and asks less often while the
    browser's tab is hidden.
    """
    return gr.HTML(
        value={},
        html_template=render("distill", machine=machine(), rules=house_rules(), stages=STAGES, licenses=LICENSES),
        js_on_load="""distillery.distill({
            element, props, server, watch,
            compare: run => trigger('compare', {run}), prove: run => trigger('prove', {run}), useAsTeacher: run => trigger('use_as_teacher', {run}),
            goOn: run => trigger('go_on', {run}),
        })""",
        server_functions=[poll, stop_it, resume_it, analysis, *take_away.SERVED, *push.SERVED],
        apply_default_css=False,
        elem_id="live",
    )


def _connect(preset: gr.Radio, every: dict[str, gr.components.Component], own_row: gr.Row) -> None:
    """Let the preset, the method, the recipe and the student fill in the settings that go with them."""

    def all_of(names: tuple[str, ...]) -> list[gr.components.Component]:
        return [every[name] for name in names]

    chosen = [preset, *all_of(("recipe", "method"))]
    preset.input(on_preset, preset, [*every.values(), own_row], **PRIVATE)
    filled = [every["method"], own_row, *all_of((*settings.SET_BY_METHOD, *settings.OWN))]
    # Not ``input``: gradio's lists call that when they are merely left, and what was typed meanwhile would be lost.
    every["method"].change(on_method, chosen, filled, **PRIVATE)
    every["recipe"].change(on_recipe, chosen, all_of(settings.SET_BY_RECIPE), **PRIVATE)
    filled = all_of(("recipe", *settings.SET_BY_RECIPE))
    every["student"].input(on_student, [every["student"], *chosen], filled, **PRIVATE)


def on_preset(preset: str) -> list[Any]:
    """Fill in all settings of a chosen preset, and show those of its method."""
    values = settings.preset_values(preset)
    _, own_row, *own = _shown_for(values["method"])
    updates = {name: gr.update(value=settings.to_widget(name, value)) for name, value in values.items()}
    updates["method"] |= {"info": settings.method_info(values["method"])}
    for name, update in zip(settings.OWN, own, strict=True):
        updates[name] |= update
    return [*updates.values(), own_row]


def on_method(preset: str, recipe: str, method: str) -> list[Any]:
    """Show the settings that only a chosen method has, and fill in the values that its paper uses."""
    info, own_row, *own = _shown_for(method)
    values = settings.values_of(settings.SET_BY_METHOD, preset, recipe, method)
    return [info, own_row, *(gr.update(value=value) for value in values), *own]


def on_recipe(preset: str, recipe: str, method: str) -> list[Any]:
    """Fill in the settings of a chosen recipe."""
    return settings.values_of(settings.SET_BY_RECIPE, preset, recipe, method)


def on_student(student: str, preset: str, recipe: str, method: str) -> Any:
    """Choose the recipe that suits a chosen student, from scratch or pretrained; the guide's recipe suits both and stays."""
    wanted = "scratch" if student in STUDENT_NAMES else "pretrained"
    return gr.skip() if recipe in (wanted, "guide") else [wanted, *on_recipe(preset, wanted, method)]


def _shown_for(method: str) -> list[dict[str, Any]]:
    """Return updates for the method's line of help, the row of settings that only some methods have, and each of those."""
    shown = [method in only for only in settings.OWN.values()]
    return [
        gr.update(info=settings.method_info(method)),
        gr.update(visible=any(shown)),
        *(gr.update(visible=one) for one in shown),
    ]


def on_distill(saved: dict[str, Any] | None, live: dict[str, Any] | None, *values: Any) -> tuple[dict, dict]:
    """Start a run when Distill is clicked. The page shows it, and the browser comes back to it later."""
    saved = visitor(saved)
    token = token_of(live) or saved["owner"]  # the button is there before the page has its token
    with kind_errors():
        run = start(settings.from_widgets(values), token)
    return {**saved, "run": run.id}, {"run": run.id, "owner": token, "new": True}


def on_prove(saved: dict[str, Any] | None, live: dict[str, Any] | None, event: gr.EventData) -> tuple[dict, dict]:
    """Start and show the same training with more seeds when Prove it is clicked."""
    saved = visitor(saved)
    token = token_of(live) or saved["owner"]
    with kind_errors():
        run = prove(event.run, token)
    return {**saved, "run": run.id}, {"run": run.id, "owner": token, "new": True}


# The page's settings that a run takes over that makes a teacher; the others are those for pretrained weights.
OF_TEACHER = (*OF_PICTURES, "duplicates", "seed", "device", "precision")


def on_make(saved: dict[str, Any] | None, live: dict[str, Any] | None, *values: Any) -> tuple[dict, dict]:
    """Start and show a run that fine-tunes the model in Teacher on the pictures when Make a teacher is clicked."""
    saved = visitor(saved)
    token = token_of(live) or saved["owner"]
    with kind_errors():
        asked = settings.from_widgets(values).to_dict()
        config = DistillConfig.finetune(asked["teacher"], **{name: asked[name] for name in OF_TEACHER})
        run = start(config, token)
    gr.Info("The model in Teacher is fine-tuned on these pictures first. When it is done, click Use as teacher.")
    return {**saved, "run": run.id}, {"run": run.id, "owner": token, "new": True}


def to_teacher(event: gr.EventData) -> str:
    """Name the run's student as the teacher of the next run when Use as teacher is clicked."""
    return f"{RUN_TEACHER}{event.run}"


def machine() -> str:
    """Say what a run is trained on: "this machine's CPU (2 cores)"."""
    if is_zerogpu():
        return "a GPU that is lent to the open page, a few minutes a day"
    if device_name("auto").startswith("cuda"):
        return "this machine's GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"this machine's CPU ({cores} core{'s' if cores > 1 else ''})"
