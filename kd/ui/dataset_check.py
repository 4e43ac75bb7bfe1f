"""Check the pictures: what is wrong with the chosen dataset, before anything is trained on it.

``python -m kd check`` looks at them in a process of low priority, one at a time for all visitors: a crash or a picture
that takes gigabytes ends that process, not the page.
"""

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import gradio as gr

from kd.config import CHECKED, DistillConfig
from kd.errors import UserError
from kd.evaluation import dataset_report
from kd.ui import background, settings
from kd.ui.access import check_names, is_token, served, with_own

FILES = Path(__file__).parent / "templates"

SECONDS, AWAY = 1800, 180
"""A check may take so long, and goes on for so long after its page was last heard of."""

MOST_KEPT = 8

PROGRESS = re.compile(r"[a-z ]+: [\d,]+ of [\d,]+")

OTHERS = "Another visitor's pictures are being checked. Yours come next"


@dataclass
class Checking:
    """One that is under way: of what, for which open page."""

    key: str
    asker: str
    process: subprocess.Popen
    folder: Path
    said: list[str] = field(default_factory=list)
    """Its last lines that are not progress."""
    progress: str = "Starting"
    heard: float = field(default_factory=time.monotonic)
    given_up: bool = False


_now: Checking | None = None

_kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
"""Visitor, dataset and splits -> ``found``, or ``problem``."""

_lock = Lock()


@served
def checked(asked: dict[str, Any]) -> dict[str, Any]:
    """The check of the dataset that the widgets' ``values`` name, for ``owner``, on the open page ``asker``.

    ``html`` and ``title``, or ``problem``; while neither is known ``wait``, in words: ask again. ``fresh`` begins anew;
    ``teacher`` asks the teacher too; ``file`` is ``html`` or ``json`` to have the ``text`` of what is kept.
    """
    try:
        config, key = _named(asked)
        if asked.get("file") in ("html", "json"):
            return _file(key, asked["file"])
        return _answer(
            config, key, str(asked.get("asker", ""))[:40], bool(asked.get("fresh")), bool(asked.get("teacher"))
        )
    except (ValueError, TypeError, UserError, OSError) as problem:
        return {"problem": str(problem)}


def _named(asked: dict[str, Any]) -> tuple[DistillConfig, str]:
    """What is to be checked, and the key of its answer: one visitor never gets another's. Raises ``UserError``."""
    config, token = settings.from_widgets(tuple(asked.get("values") or ())), asked.get("owner", "")
    if not is_token(token):
        raise UserError("Reload the page: it has lost its key.")
    check_names(config)
    config = with_own(config, token)
    values = {name: value for name, value in config.to_dict().items() if name in CHECKED}
    return config, json.dumps([token, bool(asked.get("teacher")), values])


def _answer(config: DistillConfig, key: str, asker: str, fresh: bool, teacher: bool) -> dict[str, Any]:
    global _now
    with _lock:
        if fresh:
            _kept.pop(key, None)
        if key in _kept:
            return _shown(_kept[key])
        if _now and _now.asker == asker and _now.key != key:  # the page asks for something else now
            _give_up()
        if _now is None:
            _now = _begin(config, key, asker, teacher)
            Thread(target=_finish, args=(_now,), daemon=True).start()
        if _now.key != key:
            return {"wait": OTHERS}
        _now.heard = time.monotonic()
        return {"wait": _now.progress}


@served
def cancel(asked: dict[str, Any]) -> dict[str, Any]:
    """End the check that the open page ``asker`` has begun; ``{}``."""
    with _lock:
        if _now and _now.asker == str(asked.get("asker", ""))[:40]:
            _give_up()
    return {}


def _give_up() -> None:
    global _now
    if _now:
        _now.given_up = True
        background.end(_now.process)
        _now = None


def _begin(config: DistillConfig, key: str, asker: str, teacher: bool) -> Checking:
    """Start ``python -m kd check``; it leaves what it finds in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="kd-check-"))
    values = {name: value for name, value in config.to_dict().items() if name in CHECKED}
    if not teacher:
        values["teacher"] = None
    process = background.start(
        "check", f"--out={folder / 'check.json'}", settings=values, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    return Checking(key, asker, process, folder)


def _finish(one: Checking) -> None:
    """Follow a check to its end and keep what it found. One whose page has gone is ended."""
    global _now
    reader = Thread(target=_listen, args=(one,), daemon=True)
    reader.start()
    begun = time.monotonic()
    while one.process.poll() is None:
        if max(time.monotonic() - begun - SECONDS, time.monotonic() - one.heard - AWAY) > 0:
            background.end(one.process)
        with suppress(subprocess.TimeoutExpired):
            one.process.wait(timeout=1)
    reader.join(timeout=5)
    answer = _read(one)
    shutil.rmtree(one.folder, ignore_errors=True)
    with _lock:
        if one.given_up:
            return
        _now = None
        _kept[one.key] = answer
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)


def _listen(one: Checking) -> None:
    for line in one.process.stderr:
        if PROGRESS.fullmatch(line.strip()):
            one.progress = line.strip().capitalize()
        else:
            one.said = [*one.said, line.rstrip()][-20:]


def _read(one: Checking) -> dict[str, Any]:
    """What a check that has ended leaves: ``found``, or its own words as a ``problem``."""
    file = one.folder / "check.json"
    if one.process.returncode == 0 and file.exists():
        return {"found": json.loads(file.read_text())}
    _, said, words = "\n".join(["", *one.said]).rpartition("\nkd: ")
    if said:
        return {"problem": words.strip()}
    if one.process.returncode < 0:
        return {"problem": "The check was ended: it took too long, or more memory than there is. Try fewer pictures."}
    last = next((line for line in reversed(one.said) if line.strip()), "it ended without a word")
    return {"problem": f"The pictures could not be checked: {last}"}


def _shown(kept: dict[str, Any]) -> dict[str, Any]:
    if "problem" in kept:
        return kept
    found = kept["found"]
    count = len(found["problems"])
    head = f"{count} problem{'s' * (count != 1)}" if count else "No problems"
    return {"html": dataset_report.body(found, settings.on_page), "title": f"{head} in {found['dataset']}"}


def _file(key: str, kind: str) -> dict[str, Any]:
    with _lock:
        found = _kept.get(key, {}).get("found")
    if found is None:
        raise UserError("This check is no longer kept. Check the pictures once more.")
    return {
        "text": dataset_report.page(found) if kind == "html" else json.dumps(dataset_report.as_json(found), indent=1)
    }


# --- The panel


def build() -> gr.HTML:
    """The panel; ``settings.follow`` tells it the settings and the visitor."""
    return gr.HTML(
        value=settings.at_first(),
        html_template=(FILES / "check.html").read_text(),
        js_on_load="distillery.check(element, props, server, watch)",
        server_functions=[checked, cancel],
        apply_default_css=False,
        elem_id="check",
    )
