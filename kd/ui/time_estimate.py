"""How long a run of the settings as they stand would take here, said before the click.

``python -m kd estimate`` measures it in a process with a run's own priority, for with a lower one it would see less of the
machine than the run will: one at a time for all visitors, none while a run trains (both would be slower than they are),
and none that outlives the start of a run.
"""

import json
import subprocess
import time
from collections import OrderedDict
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
from kd.system.files import default_runs_folder
from kd.training.plan import views_of
from kd.ui import background, settings
from kd.ui.access import check_names, served, with_own
from kd.ui.progress import roughly

SECONDS = 180
"""A measurement may take so long; it takes about ten, and more where others share the machine."""

KEPT_SECONDS, PROBLEM_SECONDS, MOST_KEPT = 600, 20, 64

NO_MATTER = (
    "seed", "recipe", "method", "temperature", "lambda", "weight", "learning_rate", "weight_decay", "schedule", "warmup",
    "mixup", "heal", *settings.OWN,
)  # fmt: skip
"""Settings that a run's time does not depend on; of its epochs it is reckoned."""

TRAINS = "A run is training. How long this one would take is measured when that is over."

OTHERS = "The time of another run is being measured. Yours comes next."

TOO_LONG = (
    f"No time is known: measuring it took more than {SECONDS // 60} minutes. The teacher or the pictures may have to be "
    "fetched first."
)


@dataclass
class Measurement:
    """One that is under way: for which settings, for which open page."""

    key: str
    asker: str
    process: subprocess.Popen
    given_up: bool = False


_now: Measurement | None = None

_kept: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()
"""Settings -> until when it holds, and what was found (``kd.training.estimate``) or the ``problem``."""

_lock = Lock()


@served
def expected(asked: dict[str, Any]) -> dict[str, Any]:
    """The time of a run with the widgets' ``values``, for ``owner`` on the open page ``asker``.

    ``line``, or ``problem``; while neither is known ``wait``, in words, and ``again``, in how many seconds to ask.
    """
    try:
        config = settings.from_widgets(tuple(asked.get("values") or ()))
        check_names(config)
        config = with_own(config, asked.get("owner", ""))
        return _answer(config, str(asked.get("asker", ""))[:40])
    except (ValueError, TypeError, UserError, OSError) as problem:
        return {"problem": str(problem)}


def _answer(config: DistillConfig, asker: str) -> dict[str, Any]:
    global _now
    key, training = key_of(config), trains()
    with _lock:
        until, found = _kept.get(key, (0.0, {}))
        if until > time.monotonic():
            return found if "problem" in found else answer(found, config)
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
    """``expected``, the seconds of a run with these settings, if they have been measured; else nothing."""
    found = estimated(config)
    return {"expected": found["seconds"]} if found else {}


def answer(found: dict[str, Any], config: DistillConfig) -> dict[str, Any]:
    """What ``expected`` returns of what was found."""
    found = of_epochs(found, config)
    return {"line": in_words(found, config), "seconds": found["seconds"]}


def of_epochs(found: dict[str, Any], config: DistillConfig) -> dict[str, Any]:
    """What was found for other epochs, as it is for those of ``config``."""
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
    """What ``kd.training.estimate`` found for these settings, if it has been asked."""
    with _lock:
        until, found = _kept.get(key_of(config), (0.0, {}))
    return of_epochs(found, config) if until > time.monotonic() and "problem" not in found else None


def measures() -> bool:
    """Whether a measurement is under way."""
    return _now is not None


def key_of(config: DistillConfig) -> str:
    """What is found holds for: the settings that matter, and the newest run, since a run leaves pictures and targets. Of the
    epochs, how many views they show; an input that grows over them is another with each."""
    values = {name: value for name, value in config.to_dict().items() if name not in NO_MATTER}
    if config.start_size is None:
        values["epochs"] = views_of(config)
    newest = next((run.id for run in list_runs(default_runs_folder())), "")
    return json.dumps([values, newest])


def trains() -> bool:
    """Whether a run or a sweep is at work, or about to be."""
    folder = default_runs_folder()

    def works(one: Run) -> bool:
        try:
            return status_of(one, summarize(one)) in ("queued", "running")
        except UserError:  # deleted meanwhile
            return False

    return any(map(works, [*list_runs(folder)[:20], *list_sweeps(folder)[:5]]))


def give_way() -> None:
    """A run starts: end the measurement that is under way."""
    with _lock:
        _give_up()


def _give_up() -> None:
    global _now
    if _now:
        _now.given_up = True
        background.end(_now.process)
        _now = None


def begin(config: DistillConfig) -> subprocess.Popen:
    """Start ``python -m kd estimate``."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return background.start("estimate", "--json", "--preset=custom", settings=config.to_dict(), niceness=NICE, **pipes)


def _finish(one: Measurement) -> None:
    """Wait for a measurement and keep what it found."""
    global _now
    try:
        out, err = one.process.communicate(timeout=SECONDS)
        found = read(one.process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
    except subprocess.TimeoutExpired:
        background.end(one.process)
        one.process.communicate()
        found = {"problem": TOO_LONG}
    except ValueError as error:
        found = {"problem": f"No time could be measured: {error}"}
    with _lock:
        if one.given_up:
            return
        _now = None
        _kept[one.key] = time.monotonic() + (PROBLEM_SECONDS if "problem" in found else KEPT_SECONDS), found
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)


def read(code: int, out: str, err: str) -> dict[str, Any]:
    """What the command found, or its own words as a ``problem``."""
    if code == 0 and out.strip():
        return json.loads(out.splitlines()[-1])
    _, said, words = f"\n{err}".rpartition("\nkd: ")
    last = (err.strip().splitlines() or ["it ended without a word"])[-1]
    return {"problem": words.strip() if said else f"No time could be measured: {last}"}


def in_words(found: dict[str, Any], config: DistillConfig) -> str:
    """ "About 1 min 20 s here: targets 20 s, training 40 s, the rest 20 s"."""
    stages = found["stages"]
    parts = {"targets": stages["targets"], "training": stages["training"]}
    parts["the rest"] = found["seconds"] - sum(parts.values())
    named = [f"{name} {roughly(seconds)}" for name, seconds in parts.items() if seconds >= 0.5]
    epochs = f", {found['epochs']} epoch{'s' if found['epochs'] > 1 else ''}" if config.minutes else ""
    return f"About {roughly(found['seconds'])} here{epochs}" + (f": {', '.join(named)}" if len(named) > 1 else "")


# --- The line under the button


def build() -> gr.HTML:
    """The line; ``settings.follow`` tells it the settings and the visitor."""
    return gr.HTML(
        value=settings.at_first(),
        html_template='<p class="kd-expected" role="status" aria-live="polite"></p>',
        js_on_load="distillery.expected(element, props, server, watch)",
        server_functions=[expected],
        apply_default_css=False,
        elem_id="expected",
    )  # fmt: skip
