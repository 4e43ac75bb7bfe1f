"""Who may see and change a run.

On one's own machine, one token owns all runs and nobody is asked for it. On a Space (``SPACE_ID``), or where
``KD_SHARED=1``, each browser has a random token; it is handed to every handler, and a run answers to its own only.
"""

import dataclasses
import hashlib
import hmac
import math
import os
import re
import secrets
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from kd import limits, runs, uploads
from kd import sweep as sweeps
from kd.config import SAMPLE, DistillConfig
from kd.runs import ID, Run, RunError
from kd.sweep import Sweep
from kd.uploads import Upload

TOKEN = re.compile(r"[0-9a-f]{32}")
FOLDER = re.compile(r"[~./\\]|[A-Za-z]:\\")
"""How a folder of the server begins, and a Hub id does not."""


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


def owner(token: str) -> str:
    """Whom a run that is started with ``token`` belongs to. Raises ``RunError`` for what is not a token."""
    if not shared():
        return runs.local_owner(runs.default_folder())
    if not is_token(token):
        raise RunError("This server is shared: start a run first, its answer has the token that owns it.")
    return token


def own(id: str, token: str) -> Run:
    """The run, if it is the visitor's. Whether it is another's or is not there at all, ``RunError`` says the same."""
    if not shared():
        return runs.find(runs.default_folder(), id)
    run = _at(id)
    if run is None or not _owns(run, token):
        raise RunError(f"There is no run {str(id)[:40]!r} among yours.")
    return run


def readable(id: str, token: str, view: str = "") -> Run:
    """The run, if it is the visitor's or ``view`` is its read-only key. Raises ``RunError``."""
    run = _at(id)
    if run and isinstance(view, str) and hmac.compare_digest(view.encode(), view_key(run).encode()):
        return run
    return own(id, token)


def own_runs(token: str) -> list[Run]:
    """The visitor's runs, newest first."""
    return [run for run in runs.list_runs(runs.default_folder()) if not shared() or _owns(run, token)]


def own_sweep(id: str, token: str) -> Sweep:
    """The sweep, if it is the visitor's. ``RunError`` says the same of another's as of one that is not there."""
    if not shared():
        return sweeps.find(runs.default_folder(), id if isinstance(id, str) else "")
    found = next((one for one in sweeps.list_sweeps(runs.default_folder()) if one.id == id), None)
    if found is None or not _owns(found, token):
        raise RunError(f"There is no sweep {str(id)[:40]!r} among yours.")
    return found


def own_sweeps(token: str) -> list[Sweep]:
    """The visitor's sweeps, newest first."""
    return [sweep for sweep in sweeps.list_sweeps(runs.default_folder()) if not shared() or _owns(sweep, token)]


def own_upload(id: str, token: str) -> Upload:
    """The dataset (``upload:<id>``, or its id), if it is the visitor's. ``RunError`` says the same of another's as of
    one that is not there."""
    wanted = id.removeprefix(uploads.PREFIX) if isinstance(id, str) else ""
    found = next((one for one in own_uploads(token) if one.id == wanted), None)
    if found is None:
        raise RunError(f"There is no dataset {wanted[:40]!r} among yours. It may have been deleted.")
    return found


def own_uploads(token: str) -> list[Upload]:
    """The visitor's datasets, newest first."""
    return [one for one in uploads.list_uploads(runs.default_folder()) if not shared() or _owns(one, token)]


def with_own_pictures(config: DistillConfig, token: str) -> DistillConfig:
    """``config`` with the folder of the visitor's dataset in the place of ``upload:<id>``. Raises ``RunError``, also for
    a dataset that is another's."""
    if not config.dataset.startswith(uploads.PREFIX):
        return config
    return dataclasses.replace(config, dataset=str(own_upload(config.dataset, token).path))


def view_key(run: Run) -> str:
    """What lets anyone who has it read ``run``, and no more: made from the folder's secret, so it cannot be guessed."""
    secret = runs.local_owner(run.path.parent)
    return hmac.new(secret.encode(), f"view {run.id}".encode(), hashlib.sha256).hexdigest()[:32]


def check_request(config: DistillConfig, token: str) -> None:
    """Raises ``RunError`` for what a visitor of a shared server may not ask for: its folders, or all of its time."""
    if not shared():
        return
    check_names(config, token)
    allowed, folder = limits.current(), runs.default_folder()
    if _at_work([*own_runs(token), *own_sweeps(token)]) >= _most(allowed.open_runs):
        raise RunError(f"You have {allowed.open_runs:g} runs waiting or running. Stop one, or wait until it is done.")
    if _at_work([*runs.list_runs(folder), *sweeps.list_sweeps(folder)]) >= _most(allowed.queue):
        raise RunError("The queue is full. Try again in a while.")


def _most(limit: float | None) -> float:
    return math.inf if limit is None else limit


def _at_work(some: list[Run]) -> int:
    """How many wait or run; a sweep and the run that it is at are one."""
    return len({one.settings().get("sweep", one.id) for one in some if one.status() in ("queued", "running")})


def check_names(config: DistillConfig, token: str = "") -> None:
    """Raises ``RunError`` for a path, on a shared server: its folders are not the visitors'; but a dataset may be one
    that the visitor has brought, ``upload:<id>``, or its folder in a run's own settings."""
    brought = {str(one.path) for one in own_uploads(token)} if shared() else ()
    with_own_pictures(config, token)
    for name in ("teacher", "dataset", "student"):
        value = getattr(config, name)
        if name == "dataset" and value in brought:
            continue
        if shared() and value != SAMPLE and (FOLDER.match(value) or ".." in value or Path(value).exists()):
            raise RunError(f"{name} is {value!r}, a path. On a shared server it can only be a Hub id or a name.")


def uploaded(image: Any) -> str:
    """The path of a file that was uploaded to this server. Raises ``RunError`` for any other: a caller could name the
    server's own."""
    path = image.get("path") if isinstance(image, dict) else getattr(image, "path", image)
    folder = Path(get_upload_folder()).resolve()
    if not isinstance(path, str) or not Path(os.path.realpath(path)).is_relative_to(folder):
        raise RunError("images must be uploaded files. With gradio_client: handle_file('picture.png').")
    return path


def outcome(action: Callable[[str, str], Any], id: str, token: str) -> dict[str, Any]:
    """What a script is told of an action on a visitor's run or sweep: ``{}``, or ``problem``."""
    try:
        action(id, token)
    except (RunError, PermissionError, ValueError) as problem:
        return {"problem": str(problem)}
    return {}


@contextmanager
def kind_errors():
    """What the user can act on, as the page's own kind of error, with its words unchanged and no traceback."""
    try:
        yield
    except (ValueError, RunError, PermissionError) as problem:
        raise gr.Error(str(problem), print_exception=False) from problem


def _at(id: str) -> Run | None:
    """An id from outside becomes a path only if it looks like one of ours."""
    if not isinstance(id, str) or not ID.fullmatch(id):
        return None
    run = Run(runs.default_folder().resolve() / id)
    return run if (run.path / "config.json").exists() else None


def _owns(run: Run | Upload, token: str) -> bool:
    try:
        run.check_owner(token if isinstance(token, str) else "")
    except (PermissionError, RunError):
        return False
    return True
