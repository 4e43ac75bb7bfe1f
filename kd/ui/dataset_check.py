"""Check the pictures: the panel that says what is wrong with the chosen dataset, before anything is trained on it.

``python -m kd check`` does it in a process of low priority, one at a time for all visitors: a crash or an image that takes
gigabytes ends that process, not the page.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import gradio as gr

from kd.config import CHECKED, DistillConfig
from kd.errors import UserError
from kd.evaluation import dataset_report
from kd.system.cache import Cache
from kd.system.processes import Child, ChildEnded
from kd.ui import background, settings
from kd.ui.access import check_names, is_token, served, with_own

FILES = Path(__file__).parent / "templates"

# A check may take so many seconds, and goes on for so many after its page last asked for it.
SECONDS, AWAY = 1800, 180

# So many answers are kept.
MOST_KEPT = 8

OTHERS = "Another visitor's pictures are being checked. Yours come next"


@dataclass
class Checking:
    """A check that is under way: of what, for which open page, and when that last asked for it."""

    key: str
    asker: str
    child: Child
    progress: str = "Starting"
    heard: float = field(default_factory=time.monotonic)
    given_up: bool = False


_now: Checking | None = None

# Visitor, dataset and splits -> what was found, or the ``UserError``.
_kept = Cache(lambda: MOST_KEPT)

_lock = Lock()


@served
def checked(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the check of the dataset that the widgets' ``values`` name, for ``owner``, on the open page ``asker``.

    That is ``html`` and ``title``, or a ``problem``; while neither is known ``wait``, in words: ask again. ``fresh`` begins
    anew; ``teacher`` asks the teacher too; ``file`` is ``html`` or ``json`` to have the ``text`` of what is kept.
    """
    try:
        token = asked.get("owner", "")
        if not is_token(token):
            raise UserError("Reload the page: it has lost its key.")
        config = settings.from_widgets(tuple(asked.get("values") or ()))
        wanted = Wanted.of(config, token, bool(asked.get("teacher")))
        if asked.get("file") in ("html", "json"):
            return _file(wanted.key, asked["file"])
        found = find_check(wanted, str(asked.get("asker", ""))[:40], bool(asked.get("fresh")))
        return {"wait": found} if isinstance(found, str) else _shown(found)
    except (ValueError, TypeError, UserError, OSError) as problem:
        return {"problem": str(problem)}


@dataclass(frozen=True)
class Wanted:
    """What is to be checked, and the key of its answer: one visitor never gets another's."""

    config: DistillConfig
    teacher: bool
    key: str

    @classmethod
    def of(cls, config: DistillConfig, token: str, teacher: bool) -> "Wanted":
        """Return it for the visitor with this ``token``; ``teacher`` asks the teacher too. Raises ``UserError``."""
        check_names(config)
        config = with_own(config, token)
        values = {name: value for name, value in config.to_dict().items() if name in CHECKED}
        return cls(config, teacher, json.dumps([token, teacher, values]))


def find_check(wanted: Wanted, asker: str, fresh: bool = False) -> dict[str, Any] | str:
    """Return what the check has found, or while that is not known, in words, what is being done: ask again.

    ``fresh`` begins anew. Another check that ``asker`` has begun is given up. Raises ``UserError`` where the images could not be
    checked.
    """
    global _now
    with _lock:
        if fresh:
            _kept.forget(wanted.key)
        if (found := _kept.find(wanted.key)) is not None:
            if isinstance(found, UserError):
                raise found
            return found
        if _now and _now.asker == asker and _now.key != wanted.key:  # the page asks for something else now
            _give_up()
        if _now is None:
            _now = _begin(wanted, asker)
            Thread(target=_finish, args=(_now,), daemon=True).start()
        if _now.key != wanted.key:
            return OTHERS
        _now.heard = time.monotonic()
        return _now.progress


@served
def cancel(asked: dict[str, Any]) -> dict[str, Any]:
    """End the check that the open page ``asker`` has begun; return ``{}``."""
    with _lock:
        if _now and _now.asker == str(asked.get("asker", ""))[:40]:
            _give_up()
    return {}


def _give_up() -> None:
    global _now
    if _now:
        _now.given_up = True
        _now.child.end()
        _now = None


def _begin(wanted: Wanted, asker: str) -> Checking:
    """Start ``python -m kd check`` with the settings that matter to it."""
    values = wanted.config.to_dict()
    values = {name: value for name, value in values.items() if name in CHECKED and value is not None}
    if not wanted.teacher:
        del values["teacher"]
    child = background.start("check", DistillConfig.preset("custom", **values), ask_teacher=wanted.teacher)
    return Checking(wanted.key, asker, child)


def _finish(one: Checking) -> None:
    """Follow a check to its end and keep what it found, or why it could not be made."""
    global _now
    begun = time.monotonic()

    def on_progress(report: dict[str, Any] | None) -> None:
        if report:
            one.progress = f"{report['phase'].capitalize()}: {report['done']:,} of {report['of']:,}"
        if max(time.monotonic() - begun - SECONDS, time.monotonic() - one.heard - AWAY) > 0:
            one.child.end()  # whose end is told below

    try:
        found = one.child.answer(on_progress)
    except ChildEnded as ended:
        found = UserError(
            "The check was ended: it took too long, or more memory than there is. Try fewer pictures."
            if ended.was_killed
            else f"The pictures could not be checked: {ended.reason}"
        )
    except UserError as problem:
        found = problem
    with _lock:
        if one.given_up:
            return
        _now = None
        _kept.put(one.key, found)


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    """Return what the page is told of a check."""
    count = len(found["problems"])
    head = f"{count} problem{'s' * (count != 1)}" if count else "No problems"
    return {"html": dataset_report.body(found, settings.on_page), "title": f"{head} in {found['dataset']}"}


def _file(key: str, kind: str) -> dict[str, Any]:
    """Return the ``text`` of the file of a check that is kept. Raises ``UserError`` for one that is not."""
    found = _kept.find(key)
    if not isinstance(found, dict):
        raise UserError("This check is no longer kept. Check the pictures once more.")
    return {
        "text": dataset_report.page(found) if kind == "html" else json.dumps(dataset_report.as_json(found), indent=1)
    }


# --- The panel


def build() -> gr.HTML:
    """Build the panel; ``settings.follow`` tells it the settings and the visitor."""
    return gr.HTML(
        value=settings.at_first(),
        html_template=(FILES / "check.html").read_text(),
        js_on_load="distillery.check(element, props, server, watch)",
        server_functions=[checked, cancel],
        apply_default_css=False,
        elem_id="check",
    )
