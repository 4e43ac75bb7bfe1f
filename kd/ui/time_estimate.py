"""Tell how long a run of the settings on the page would take here, before it is started.

``python -m kd estimate`` measures it in a process with a run's own priority: with a lower one it would get less of the
machine than the run will. One measurement is made at a time for all visitors, none while a run trains (both would be slower
than they are), and the start of a run ends it.
"""

import json
import time
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

import gradio as gr

from kd.config import DistillConfig
from kd.errors import UserError
from kd.experiments.sweep import list_sweeps
from kd.runs.process import NICE
from kd.runs.run import Run
from kd.runs.store import list_runs
from kd.runs.summary import status_of, summarize
from kd.system.cache import Cache
from kd.system.files import default_runs_folder
from kd.system.processes import Child, ChildEnded
from kd.system.zerogpu import is_zerogpu
from kd.training.plan import views_of
from kd.ui import background, settings
from kd.ui.access import check_names, served, with_own
from kd.ui.progress import roughly

# A measurement may take so long; it takes about ten seconds, and more where others share the machine.
SECONDS = 180

# For so long an estimate is kept, for so long a problem, and so many of both together.
KEPT_SECONDS, PROBLEM_SECONDS, MOST_KEPT = 600, 20, 64

# Settings that a run's time does not depend on. The time for other epochs is computed from what was measured.
NO_MATTER = (
    "seed", "recipe", "method", "temperature", "lambda", "weight", "learning_rate", "weight_decay", "schedule", "warmup",
    "mixup", "heal", *settings.OWN,
)  # fmt: skip

TRAINS = "A run is training. How long this one would take is measured when that is over."

OTHERS = "The time of another run is being measured. Yours comes next."

TOO_LONG = (
    f"No time is known: measuring it took more than {SECONDS // 60} minutes. The teacher or the pictures may have to be "
    "fetched first."
)


@dataclass
class Measurement:
    """A measurement that is under way: for which settings, for which open page."""

    key: str
    asker: str
    child: Child
    given_up: bool = False


_now: Measurement | None = None

# Settings -> what ``kd.training.estimate`` found, or the ``UserError``.
_kept = Cache(lambda: MOST_KEPT)

_lock = Lock()


@served
def expected(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the time of a run with the widgets' ``values``, for ``owner`` on the open page ``asker``.

    That is a ``line``, or a ``problem``; while neither is known ``wait``, in words, and ``again``, the seconds after which
    to ask again.
    """
    try:
        config = settings.from_widgets(tuple(asked.get("values") or ()))
        check_names(config)
        if is_zerogpu() and config.device != "cpu":
            return {"wait": ""}  # this CPU says nothing of that GPU
        config = with_own(config, asked.get("owner", ""))
        return _answer(config, str(asked.get("asker", ""))[:40])
    except (ValueError, TypeError, UserError, OSError) as problem:
        return {"problem": str(problem)}


def _answer(config: DistillConfig, asker: str) -> dict[str, Any]:
    global _now
    key, training = key_of(config), trains()
    with _lock:
        found = _kept.find(key)
        if isinstance(found, UserError):
            raise found
        if found:
            return answer(found, config)
        if training:
            _give_up()
            return {"wait": TRAINS, "again": 5, "trains": True}
        if _now and _now.key != key and _now.asker == asker:  # the settings have changed since
            _give_up()
        if _now is None:
            _now = Measurement(key, asker, begin(config))
            Thread(target=_finish, args=(_now,), daemon=True).start()
        if _now.key != key:
            return {"wait": OTHERS, "again": 2}
    return {"wait": "Measuring how long it takes here", "again": 1}


def known(config: DistillConfig) -> dict[str, float]:
    """Return ``expected``, the seconds of a run with these settings, if they have been measured; else nothing."""
    found = estimated(config)
    return {"expected": found["seconds"]} if found else {}


def answer(found: dict[str, Any], config: DistillConfig) -> dict[str, Any]:
    """Return what the page is told of an estimate."""
    found = of_epochs(found, config)
    return {"line": in_words(found, config), "seconds": found["seconds"]}


def of_epochs(found: dict[str, Any], config: DistillConfig) -> dict[str, Any]:
    """Return an estimate that was made for other epochs as it is for those of ``config``."""
    if config.minutes is not None:
        return found
    before = found["stages"]["training"]
    training = before * config.epochs / found["epochs"]
    return {
        **found,
        "seconds": found["seconds"] - before + training,
        "stages": {**found["stages"], "training": training},
        "epochs": config.epochs,
    }


def estimated(config: DistillConfig) -> dict[str, Any] | None:
    """Return the estimate for these settings, if there is one."""
    found = _kept.find(key_of(config))
    return of_epochs(found, config) if isinstance(found, dict) else None


def measures() -> bool:
    """Return whether a measurement is under way."""
    return _now is not None


def key_of(config: DistillConfig) -> str:
    """Return what an estimate holds for, as text: the settings that matter, and the newest run.

    A run leaves decoded images and targets, which the next one need not make. Of the epochs only the number of views
    matters that they show, unless the input grows over them.
    """
    values = {name: value for name, value in config.to_dict().items() if name not in NO_MATTER}
    if config.start_size is None:
        values["epochs"] = views_of(config)
    newest = next((run.id for run in list_runs(default_runs_folder())), "")
    return json.dumps([values, newest])


def trains() -> bool:
    """Return whether a run or a sweep waits or works."""
    folder = default_runs_folder()

    def works(one: Run) -> bool:
        try:
            return status_of(one, summarize(one)) in ("queued", "running")
        except UserError:  # deleted meanwhile
            return False

    return any(map(works, [*list_runs(folder)[:20], *list_sweeps(folder)[:5]]))


def give_way() -> None:
    """End the measurement that is under way, because a run starts."""
    with _lock:
        _give_up()


def _give_up() -> None:
    global _now
    if _now:
        _now.given_up = True
        _now.child.end()
        _now = None


def begin(config: DistillConfig) -> Child:
    """Start ``python -m kd estimate``."""
    return background.start("estimate", config, nice=NICE)


def _finish(one: Measurement) -> None:
    """Wait for a measurement and keep what it found, or why it could not be made."""
    global _now
    begun = time.monotonic()

    def check_time(_: object) -> None:
        if time.monotonic() - begun > SECONDS:
            raise UserError(TOO_LONG)

    try:
        found, seconds = one.child.answer(check_time), KEPT_SECONDS
    except ChildEnded as ended:
        found, seconds = UserError(f"No time could be measured: {ended.reason}"), PROBLEM_SECONDS
    except UserError as problem:
        found, seconds = problem, PROBLEM_SECONDS
    with _lock:
        if one.given_up:
            return
        _now, until = None, time.monotonic() + seconds
        _kept.put(one.key, found, lambda: time.monotonic() < until)


def in_words(found: dict[str, Any], config: DistillConfig) -> str:
    """Return an estimate in words: "About 1 min 20 s here: targets 20 s, training 40 s, the rest 20 s"."""
    stages = found["stages"]
    parts = {"targets": stages["targets"], "training": stages["training"]}
    parts["the rest"] = found["seconds"] - sum(parts.values())
    named = [f"{name} {roughly(seconds)}" for name, seconds in parts.items() if seconds >= 0.5]
    epochs = f", {found['epochs']} epoch{'s' if found['epochs'] > 1 else ''}" if config.minutes else ""
    return f"About {roughly(found['seconds'])} here{epochs}" + (f": {', '.join(named)}" if len(named) > 1 else "")


# --- The line under the button


def build() -> gr.HTML:
    """Build the line; ``settings.follow`` tells it the settings and the visitor."""
    return gr.HTML(
        value=settings.at_first(),
        html_template='<p class="kd-expected" role="status" aria-live="polite"></p>',
        js_on_load="distillery.expected(element, props, server, watch)",
        server_functions=[expected],
        apply_default_css=False,
        elem_id="expected",
    )  # fmt: skip
