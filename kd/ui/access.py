"""Who may see and change a run.

On one's own machine, one token owns all runs and nobody is asked for it. On a Space (``SPACE_ID``), or where
``KD_SHARED=1``, each browser has a random token, and each login (``login``) has one of its own. The open page passes its
token to every handler, and a handler shows and changes only what that token owns.
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
from kd.export.job import is_exporting
from kd.export.push_job import is_pushing
from kd.runs import visitors
from kd.runs.run import START_SECONDS, Run
from kd.runs.store import find_run, list_runs, local_owner, resolve
from kd.runs.summary import status_of, summarize
from kd.system.files import default_runs_folder
from kd.system.ids import ID, owner_hash
from kd.ui.example import EXAMPLE
from kd.ui.settings import on_page

TOKEN = re.compile(r"[0-9a-f]{32}")

# A Hub id, a name of ours, or one of these after a word and a colon; no path of more than two parts.
NAME = re.compile(r"(?!\.)[\w.:-]{1,200}(/[\w.-]{1,100})?")

# Beyond this a file cannot be read from there.
MAX_CURSOR = 2**63 - 1


def shared() -> bool:
    """Tell whether this server has visitors who are strangers to each other."""
    return limits.is_shared(os.environ)


def new_token() -> str:
    """Return a token for a visitor, 128 random bits; on one's own machine it is empty, because nobody checks it."""
    return secrets.token_hex(16) if shared() else ""


def is_token(token: Any) -> bool:
    """Tell whether ``token`` can own runs here: any text on one's own machine, a ``new_token`` on a shared server."""
    return isinstance(token, str) and (not shared() or bool(TOKEN.fullmatch(token)))


def visitor(saved: Any) -> dict[str, Any]:
    """Return what a browser has ``saved``: ``owner`` (its token) and ``run`` (the last); new ones where that is not valid here."""
    known = isinstance(saved, dict) and is_token(saved.get("owner"))
    return saved if known else {"owner": new_token(), "run": None}


def token_of(live: Any) -> str:
    """Return the token of an open page, which is in the value of its panel of the run (``live``)."""
    return live.get("owner", "") if isinstance(live, dict) else ""


def owner(token: str) -> str:
    """Return the owner of a run that is started with ``token``. Raises ``UserError`` for what is not a token."""
    if not shared():
        return local_owner(default_runs_folder())
    if not is_token(token):
        raise UserError("This server is shared: start a run first, its answer has the token that owns it.")
    return token


def own(id: str, token: str) -> Run:
    """Return the run if it is the visitor's. ``UserError`` says the same of another's run as of one that does not exist."""
    if not shared():
        return find_run(default_runs_folder(), id if isinstance(id, str) else "")
    run = find_by_id(id)
    if run is None or not _owns(run, token):
        raise UserError(f"There is no run {str(id)[:40]!r} among yours.")
    visitors.seen(default_runs_folder(), run.owner())
    return run


def readable(id: str, token: str, view: str = "") -> Run:
    """Return the run if it is the visitor's or ``view`` is its read-only key. Raises ``UserError`` for any other."""
    run = find_by_id(id)
    if run and isinstance(view, str) and TOKEN.fullmatch(view) and hmac.compare_digest(view, view_key(run)):
        return run
    return own(id, token)


def shown(id: str, token: str, view: str = "") -> Run:
    """Return the run if it is the example, which all may see, or ``readable``. Raises ``UserError`` for any other."""
    return EXAMPLE if id == EXAMPLE.id else readable(id, token, view)


def own_runs(token: str) -> list[Run]:
    """Return the visitor's runs, newest first."""
    mine = [run for run in list_runs(default_runs_folder()) if not shared() or _owns(run, token)]
    if shared() and mine:
        visitors.seen(default_runs_folder(), owner_hash(token))
    return mine


def own_sweep(id: str, token: str) -> Sweep:
    """Return the sweep if it is the visitor's. ``UserError`` says the same of another's as of one that does not exist."""
    if not shared():
        return find_sweep(default_runs_folder(), id if isinstance(id, str) else "")
    found = next((one for one in list_sweeps(default_runs_folder()) if one.id == id), None)
    if found is None or not _owns(found, token):
        raise UserError(f"There is no sweep {str(id)[:40]!r} among yours.")
    return found


def own_sweeps(token: str) -> list[Sweep]:
    """Return the visitor's sweeps, newest first."""
    return [sweep for sweep in list_sweeps(default_runs_folder()) if not shared() or _owns(sweep, token)]


def own_upload(id: str, token: str) -> Upload:
    """Return the dataset (``upload:<id>``, or its id) if it is the visitor's.

    ``UserError`` says the same of another's as of one that does not exist.
    """
    wanted = id.removeprefix(UPLOAD_PREFIX) if isinstance(id, str) else ""
    found = next((one for one in own_uploads(token) if one.id == wanted), None)
    if found is None:
        raise UserError(f"There is no dataset {wanted[:40]!r} among yours. It may have been deleted.")
    return found


def own_uploads(token: str) -> list[Upload]:
    """Return the visitor's datasets, newest first."""
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
    """Return the key that lets anyone who has it read ``run``, and do nothing else with it."""
    return secret_key(f"view {run.id}", run.path.parent)


def secret_key(purpose: str, folder: Path) -> str:
    """Derive a key for one purpose from the secret of a folder of runs: 128 bits, in the form of a ``new_token``.

    It cannot be guessed from the purpose or from other keys.
    """
    return hmac.new(local_owner(folder).encode(), purpose.encode(), hashlib.sha256).hexdigest()[:32]


# One visitor's run or sweep is admitted at a time.
_admission = Lock()

# Id of a run or sweep -> when it was resumed. It counts as running until its process has had the time to say so itself;
# entries older than that are removed, so that this needs no other bound.
_resumed: dict[str, float] = {}


@contextmanager
def admitted(token: str, resumed: str = "") -> Iterator[None]:
    """Check a shared server's limits, and hold them while a visitor's run or sweep is created or ``resumed`` (its id).

    One is admitted at a time: of many that come at once, each would otherwise be the last that is allowed. Raises
    ``UserError`` for one too many, and where the visitor's or the server's disk space is used up.
    """
    if not shared():
        yield
        return
    with _admission:
        _check_load(token)
        yield
        if resumed:
            _resumed[resumed] = time.monotonic()


def _check_load(token: str) -> None:
    allowed, folder = limits.current(), default_runs_folder()
    if _count_active([*own_runs(token), *own_sweeps(token)]) >= allowed.open_runs:
        raise UserError(f"You have {allowed.open_runs:g} runs waiting or running. Stop one, or wait until it is done.")
    if _count_active([*list_runs(folder), *list_sweeps(folder)]) >= allowed.queue:
        raise UserError(f"The queue is full: {allowed.queue:g} runs wait or run. Try again in a while.")
    visitors.check_room(folder, owner_hash(token))


def _count_active(some: list[Run]) -> int:
    """Count those that wait or run; a sweep and its present run count as one."""
    for id in [id for id, when in _resumed.items() if time.monotonic() - when > START_SECONDS]:
        del _resumed[id]
    return len({one.settings().get("sweep", one.id) for one in some if _is_active(one)})


def _is_active(one: Run) -> bool:
    try:
        if is_exporting(one) or is_pushing(one):
            return True
        return one.id in _resumed or status_of(one, summarize(one)) in ("queued", "running")
    except UserError:  # deleted meanwhile
        return False


def keep_clean() -> None:
    """Delete every hour on a shared server, in the background, the data of visitors who have not come back."""

    def clean() -> None:
        while True:
            try:
                for one in visitors.clean_if_due(default_runs_folder()):
                    print(f"Deleted {one.path.name}: its owner has not come back.", file=sys.stderr, flush=True)
            except (OSError, UserError) as problem:
                print(f"What visitors left behind could not be deleted: {problem}", file=sys.stderr, flush=True)
            time.sleep(visitors.CLEAN_SECONDS)

    if shared():
        Thread(target=clean, daemon=True).start()


def house_rules() -> str:
    """Say in a sentence which limits a visitor of a shared server should know beforehand; nothing elsewhere."""
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
    """Refuse paths on a shared server, whose folders are not the visitors', with a ``UserError``."""
    for name in ("teacher", "dataset", "student"):
        value = getattr(config, name)
        if shared() and value != SAMPLE and (not NAME.fullmatch(value) or ".." in value or os.path.exists(value)):
            raise UserError(
                f"{name} is {value[:80]!r}, a path or no name at all. On a shared server it can only be a Hub id or a name."
            )


def uploaded(image: Any) -> str:
    """Return the path of a file that was uploaded to this server.

    Raises ``UserError`` for any other: a caller could name one of the server's own files.
    """
    path = image.get("path") if isinstance(image, dict) else getattr(image, "path", image)
    folder, runs = Path(get_upload_folder()).resolve(), default_runs_folder().resolve()
    real = Path(os.path.realpath(path)) if isinstance(path, str) else None
    in_runs = runs.is_relative_to(folder) and real is not None and real.is_relative_to(runs)
    if real is None or not real.is_relative_to(folder) or in_runs:
        raise UserError(
            "Pictures must be uploaded to this server first: on the page, or with gradio_client's handle_file('picture.png')."
        )
    return path


ServerFunction = Callable[..., dict[str, Any]]


def served(function: ServerFunction) -> ServerFunction:
    """Make a function ready for the page's scripts to call.

    Anybody else can call it too, with anything: what is no object counts as an empty one. A ``problem`` in its answer is
    put into the page's words. What gradio gives beside it, a request or what is in its session, is passed on.
    """

    @functools.wraps(function)
    def answer(asked: dict[str, Any], *given: Any) -> dict[str, Any]:
        value = function(asked if isinstance(asked, dict) else {}, *given)
        return {**value, "problem": on_page(value["problem"])} if "problem" in value else value

    return answer


def valid_cursor(cursor: Any) -> int:
    """Return a caller's place in the events of a run, or 0, the beginning, for what cannot be one."""
    return cursor if isinstance(cursor, int) and 0 < cursor <= MAX_CURSOR else 0


def outcome(action: Callable[..., Any], id: str, token: str, *more: Any) -> dict[str, Any]:
    """Do something with one of the visitor's runs or sweeps for a script. Return ``{}``, or a ``problem``."""
    try:
        action(id, token, *more)
    except (UserError, OSError, ValueError) as problem:
        return {"problem": str(problem)}
    return {}


@contextmanager
def kind_errors() -> Iterator[None]:
    """Show errors that the user can act on as messages of the page, in the page's words and without a traceback."""
    try:
        yield
    except (ValueError, UserError, PermissionError) as problem:
        raise gr.Error(on_page(str(problem)), print_exception=False) from problem


def find_by_id(id: str) -> Run | None:
    """Return the run with an id from outside, which becomes a path only if it has the form of ours."""
    if not isinstance(id, str) or not ID.fullmatch(id):
        return None
    run = Run(default_runs_folder().resolve() / id)
    return run if (run.path / "config.json").exists() else None


def _owns(run: Run | Upload, token: str) -> bool:
    try:
        return is_token(token) and hmac.compare_digest(run.owner(), owner_hash(token))
    except UserError:
        return False
