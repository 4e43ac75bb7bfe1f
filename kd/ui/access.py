"""Who may see and change a run.

On one's own machine, one token owns all runs and nobody is asked for it. On a Space (``SPACE_ID``), or where
``KD_SHARED=1``, each browser has a random token, and each login (``login``) one of its own; the open page hands it to every
handler, and a run answers to its own only.
"""

import functools
import hashlib
import hmac
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from kd import limits
from kd.config import SAMPLE, DistillConfig
from kd.data.library.store import UPLOAD_PREFIX, Upload, list_uploads
from kd.errors import UserError
from kd.experiments.sweep import Sweep, find_sweep, list_sweeps
from kd.runs import visitors
from kd.runs.run import START_SECONDS, Run
from kd.runs.store import find_run, list_runs, local_owner, resolve
from kd.runs.summary import status_of, summarize
from kd.system.files import default_runs_folder
from kd.system.ids import ID, owner_hash
from kd.ui.settings import on_page

TOKEN = re.compile(r"[0-9a-f]{32}")

NAME = re.compile(r"(?!\.)[\w.:-]{1,200}(/[\w.-]{1,100})?")
"""A Hub id, a name of ours, or one of these with a word and a colon before it; no path of more than two parts."""

LAST_PLACE = 2**63 - 1


def shared() -> bool:
    """Whether this server has visitors who are strangers to each other."""
    return limits.is_shared(os.environ)


def new_token() -> str:
    """A token for a visitor, 128 random bits; on one's own machine it is not looked at."""
    return secrets.token_hex(16) if shared() else ""


def is_token(token: Any) -> bool:
    """Whether ``token`` can own runs here: any text on one's own machine, one of ``new_token``'s on a shared server."""
    return isinstance(token, str) and (not shared() or bool(TOKEN.fullmatch(token)))


def visitor(saved: Any) -> dict[str, Any]:
    """What a browser keeps, ``owner`` (its token) and ``run`` (its last); new for one that has nothing of use here."""
    known = isinstance(saved, dict) and is_token(saved.get("owner"))
    return saved if known else {"owner": new_token(), "run": None}


def token_of(live: Any) -> str:
    """The token that an open page has been given, with the run that it shows (``live``)."""
    return live.get("owner", "") if isinstance(live, dict) else ""


def owner(token: str) -> str:
    """Whom a run that is started with ``token`` belongs to. Raises ``UserError`` for what is not a token."""
    if not shared():
        return local_owner(default_runs_folder())
    if not is_token(token):
        raise UserError("This server is shared: start a run first, its answer has the token that owns it.")
    return token


def own(id: str, token: str) -> Run:
    """The run, if it is the visitor's. Whether it is another's or is not there at all, ``UserError`` says the same."""
    if not shared():
        return find_run(default_runs_folder(), id if isinstance(id, str) else "")
    run = _at(id)
    if run is None or not _owns(run, token):
        raise UserError(f"There is no run {str(id)[:40]!r} among yours.")
    visitors.seen(default_runs_folder(), run.owner())
    return run


def readable(id: str, token: str, view: str = "") -> Run:
    """The run, if it is the visitor's or ``view`` is its read-only key. Raises ``UserError``."""
    run = _at(id)
    if run and isinstance(view, str) and TOKEN.fullmatch(view) and hmac.compare_digest(view, view_key(run)):
        return run
    return own(id, token)


def own_runs(token: str) -> list[Run]:
    """The visitor's runs, newest first."""
    mine = [run for run in list_runs(default_runs_folder()) if not shared() or _owns(run, token)]
    if shared() and mine:
        visitors.seen(default_runs_folder(), owner_hash(token))
    return mine


def own_sweep(id: str, token: str) -> Sweep:
    """The sweep, if it is the visitor's. ``UserError`` says the same of another's as of one that is not there."""
    if not shared():
        return find_sweep(default_runs_folder(), id if isinstance(id, str) else "")
    found = next((one for one in list_sweeps(default_runs_folder()) if one.id == id), None)
    if found is None or not _owns(found, token):
        raise UserError(f"There is no sweep {str(id)[:40]!r} among yours.")
    return found


def own_sweeps(token: str) -> list[Sweep]:
    """The visitor's sweeps, newest first."""
    return [sweep for sweep in list_sweeps(default_runs_folder()) if not shared() or _owns(sweep, token)]


def own_upload(id: str, token: str) -> Upload:
    """The dataset (``upload:<id>``, or its id), if it is the visitor's. ``UserError`` says the same of another's as of
    one that is not there."""
    wanted = id.removeprefix(UPLOAD_PREFIX) if isinstance(id, str) else ""
    found = next((one for one in own_uploads(token) if one.id == wanted), None)
    if found is None:
        raise UserError(f"There is no dataset {wanted[:40]!r} among yours. It may have been deleted.")
    return found


def own_uploads(token: str) -> list[Upload]:
    """The visitor's datasets, newest first."""
    mine = [one for one in list_uploads(default_runs_folder()) if not shared() or _owns(one, token)]
    if shared() and mine:
        visitors.seen(default_runs_folder(), owner_hash(token))
    return mine


def with_own(config: DistillConfig, token: str) -> DistillConfig:
    """Return ``config`` with the folders of the visitor's datasets and runs for their names, as ``resolve`` does.

    Raises ``UserError``, also for what is another's.
    """
    visitor = (token if is_token(token) else "") if shared() else None
    return resolve(config, default_runs_folder(), visitor)


def view_key(run: Run) -> str:
    """What lets anyone who has it read ``run``, and no more: made from the folder's secret, so it cannot be guessed."""
    return secret_key(f"view {run.id}", run.path.parent)


def secret_key(purpose: str, folder: Path) -> str:
    """What is made from the secret of a folder of runs for one purpose, 128 bits that look like ``new_token``'s. Nobody who
    knows the purpose, or other keys, can make it."""
    return hmac.new(local_owner(folder).encode(), purpose.encode(), hashlib.sha256).hexdigest()[:32]


_beginning = Lock()

_resumed: dict[str, float] = {}
"""When runs and sweeps were resumed lately: it takes their processes a moment to say so."""


@contextmanager
def admitted(token: str, resumed: str = "") -> Iterator[None]:
    """For the time in which a visitor's run or sweep is made, or ``resumed`` (its id): one at a time, or many that come at
    once would all be the third. Raises ``UserError`` for one too many, and for one that there is no room for."""
    if not shared():
        yield
        return
    with _beginning:
        _check_load(token)
        yield
        if resumed:
            _resumed[resumed] = time.monotonic()


def _check_load(token: str) -> None:
    allowed, folder = limits.current(), default_runs_folder()
    if _at_work([*own_runs(token), *own_sweeps(token)]) >= allowed.open_runs:
        raise UserError(f"You have {allowed.open_runs:g} runs waiting or running. Stop one, or wait until it is done.")
    if _at_work([*list_runs(folder), *list_sweeps(folder)]) >= allowed.queue:
        raise UserError(f"The queue is full: {allowed.queue:g} runs wait or run. Try again in a while.")
    visitors.check_room(folder, owner_hash(token))


def _at_work(some: list[Run]) -> int:
    """How many wait or run; a sweep and the run that it is at are one."""
    for id in [id for id, when in _resumed.items() if time.monotonic() - when > START_SECONDS]:
        del _resumed[id]
    return len({one.settings().get("sweep", one.id) for one in some if _works(one)})


def _works(one: Run) -> bool:
    try:
        return one.id in _resumed or status_of(one, summarize(one)) in ("queued", "running")
    except UserError:  # deleted meanwhile
        return False


def keep_clean() -> None:
    """On a shared server, look every hour for the data of visitors who do not come back, in the background."""

    def look() -> None:
        while True:
            try:
                for one in visitors.clean_if_due(default_runs_folder()):
                    print(f"Deleted {one.path.name}: its owner has not come back.", file=sys.stderr, flush=True)
            except (OSError, UserError) as problem:
                print(f"What visitors left behind could not be deleted: {problem}", file=sys.stderr, flush=True)
            time.sleep(visitors.CLEAN_SECONDS)

    if shared():
        Thread(target=look, daemon=True).start()


def house_rules() -> str:
    """The limits that a visitor of a shared server should know beforehand, in a sentence each; nothing elsewhere."""
    if not shared():
        return ""
    allowed = limits.current()
    rules = (
        (allowed.open_runs, f"you may have {allowed.open_runs:g} runs waiting or running"),
        (allowed.steps, f"a run may take {allowed.steps:,.0f} training steps"),
        (allowed.quota_mb, f"your runs and datasets may take {allowed.quota_mb:,.0f} MB"),
        (allowed.idle_days, f"they are deleted when you have not come back for {allowed.idle_days:g} days"),
    )
    words = [text for limit, text in rules if limit < math.inf]
    return f"This server is shared: {', '.join(words)}." if words else ""


def check_names(config: DistillConfig) -> None:
    """Raises ``UserError`` for a path, on a shared server: its folders are not the visitors'."""
    for name in ("teacher", "dataset", "student"):
        value = getattr(config, name)
        if shared() and value != SAMPLE and (not NAME.fullmatch(value) or ".." in value or os.path.exists(value)):
            raise UserError(
                f"{name} is {value[:80]!r}, a path or no name at all. On a shared server it can only be a Hub id or a name."
            )


def uploaded(image: Any) -> str:
    """The path of a file that was uploaded to this server. Raises ``UserError`` for any other: a caller could name the
    server's own."""
    path = image.get("path") if isinstance(image, dict) else getattr(image, "path", image)
    folder = Path(get_upload_folder()).resolve()
    if not isinstance(path, str) or not Path(os.path.realpath(path)).is_relative_to(folder):
        raise UserError(
            "Pictures must be uploaded to this server first: on the page, or with gradio_client's handle_file('picture.png')."
        )
    return path


Answers = Callable[[dict[str, Any]], dict[str, Any]]


def served(function: Answers) -> Answers:
    """A function that the page's script calls. So can anybody, with anything: what is no object counts as an empty one."""

    @functools.wraps(function)
    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        found = function(asked if isinstance(asked, dict) else {})
        return {**found, "problem": on_page(found["problem"])} if "problem" in found else found

    return answer


def place(cursor: Any) -> int:
    """A place in a run's events as a caller gives it; the beginning for what is none."""
    return cursor if isinstance(cursor, int) and 0 < cursor <= LAST_PLACE else 0


def outcome(action: Callable[..., Any], id: str, token: str, *more: Any) -> dict[str, Any]:
    """What a script is told of an action on a visitor's run or sweep: ``{}``, or ``problem``."""
    try:
        action(id, token, *more)
    except (UserError, OSError, ValueError) as problem:
        return {"problem": str(problem)}
    return {}


@contextmanager
def kind_errors():
    """What the user can act on, as the page's own kind of error, in the page's words and with no traceback."""
    try:
        yield
    except (ValueError, UserError, PermissionError) as problem:
        raise gr.Error(on_page(str(problem)), print_exception=False) from problem


def _at(id: str) -> Run | None:
    """An id from outside becomes a path only if it looks like one of ours."""
    if not isinstance(id, str) or not ID.fullmatch(id):
        return None
    run = Run(default_runs_folder().resolve() / id)
    return run if (run.path / "config.json").exists() else None


def _owns(run: Run | Upload, token: str) -> bool:
    try:
        return is_token(token) and hmac.compare_digest(run.owner(), owner_hash(token))
    except UserError:
        return False
