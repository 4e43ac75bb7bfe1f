"""The Pictures tab: import an archive, named classes or unlabelled pictures; the datasets so far, to use or to delete."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

import gradio as gr

from kd import limits
from kd.data.folders import SPLIT_NAMES
from kd.data.library.store import ImportRefused, Library, Source, Upload, import_dataset
from kd.errors import UserError
from kd.runs import visitors
from kd.runs.store import delete_dataset
from kd.system.files import default_runs_folder
from kd.system.ids import owner_hash
from kd.ui.access import outcome, own_upload, own_uploads, owner, served, uploaded
from kd.ui.rendering import render

# How many imports of all visitors may wait or run at once.
MOST_WAITING = 8

# How many skipped files are listed by name.
MOST_NAMED = 100

# How often an import that waits for its turn checks whether it has been cancelled.
CHECK_SECONDS = 0.5

# How pictures can be brought -> the name of that way, and what it is for.
WAYS = {
    "archive": ("An archive", "Class folders in a zip, with or without train, validation and test; or pictures alone."),
    "classes": ("Pictures in named classes", "Name each class and give it pictures, from files or from the webcam."),
    "unlabelled": ("Pictures without labels", "A student then learns from the teacher's answers alone."),
}


@dataclass
class Import:
    """An import that waits, is running or has ended."""

    name: str
    done: int = 0
    of: int = 0
    over: bool = False
    cancelled: bool = False
    problem: str = ""
    # The first of the skipped files, each with the reason; ``skipped_count`` is how many there are.
    skipped: list[tuple[str, str]] = field(default_factory=list)
    skipped_count: int = 0
    # The id of the dataset that it has made.
    dataset: str = ""

    def words(self) -> str:
        """Say what it is doing, or how it ended."""
        if self.dataset:
            return f"{self.name} is stored."
        if self.over:
            return self.problem or "Cancelled; nothing was stored."
        return f"Reading file {self.done:,} of {self.of:,}" if self.of else "Waiting for its turn"


class Cancelled(Exception):
    """The visitor has cancelled the import."""


# Owner -> the last import. It is not kept on disk: an import ends with the page's process.
_imports: dict[str, Import] = {}

# Uploaded file -> how many imports need it: gradio keeps the same file of two visitors once.
_needed: Counter[Path] = Counter()

_lock = Lock()

# One import runs at a time; the others wait.
_turn = BoundedSemaphore(1)


# --- What the tab's script calls


@served
def offered(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the visitor's datasets and the state of the last import.

    The datasets are ``html`` with its ``mark``, left out where the page already has them (``seen``). The import is ``now``:
    ``words, done, of, over, problem, skipped`` (as HTML) and ``dataset`` (the id of what it has made).
    """
    token = asked.get("owner", "")
    body = "".join(map(card, own_uploads(token)))
    mark = hashlib.sha256(body.encode()).hexdigest()[:16]
    answer: dict[str, Any] = {} if mark == asked.get("seen") else {"html": body, "mark": mark}
    with suppress(UserError):  # a visitor without a token has brought nothing
        if one := _imports.get(owner(token)):
            answer["now"] = {
                "words": one.words(), "done": one.done, "of": one.of, "over": one.over, "problem": bool(one.problem),
                "skipped": skipped_html(one.skipped, one.skipped_count), "dataset": one.dataset,
            }  # fmt: skip
    return answer


@served
def begin(asked: dict[str, Any]) -> dict[str, Any]:
    """Start to import uploaded files in the background. Return ``{}``, or a ``problem``.

    ``way`` is one of ``WAYS``, ``name`` the dataset's, and ``classes`` a list of (name, paths).
    """
    try:
        start_import(_source(asked), str(asked.get("name") or ""), asked.get("owner", ""))
    except (UserError, TypeError, ValueError) as problem:
        return {"problem": str(problem)}
    return {}


def start_import(source: Source, name: str, token: str) -> Import:
    """Start to import uploaded files, which are removed once they are read, as a dataset called ``name``; return the import.

    Raises ``UserError`` where the visitor's last import is at work still, or too many others' are.
    """
    token, name = owner(token), name.strip()[:80]
    one = Import(name or "The dataset")
    with _lock:
        if token in _imports and not _imports[token].over:
            raise UserError("Your last import is not done yet. Wait for it, or cancel it.")
        if sum(not other.over for other in _imports.values()) >= MOST_WAITING:
            raise UserError("Several others are bringing pictures just now. Try again in a few minutes.")
        _imports[token] = one
        _needed.update(_files(source))
    Thread(target=_work, args=(one, source, name, token), daemon=True).start()
    return one


def last_import(token: str) -> Import | None:
    """Return the visitor's last import since this server was started. Raises ``UserError`` for what is no token."""
    return _imports.get(owner(token))


@served
def act(asked: dict[str, Any]) -> dict[str, Any]:
    """Cancel the running import, or ``do`` delete the dataset ``id``. Return ``{}``, or a ``problem``."""
    if asked.get("do") == "delete":
        return outcome(
            lambda id, token: delete_dataset(own_upload(id, token)), asked.get("id", ""), asked.get("owner", "")
        )
    return outcome(lambda _, token: _cancel(owner(token)), "", asked.get("owner", ""))


def _cancel(token: str) -> None:
    if one := _imports.get(token):
        one.cancelled = True


def _source(asked: dict[str, Any]) -> Source:
    """Return the uploaded files that ``asked`` names. Raises ``UserError`` for any other file, for none and for too many."""
    classes, most = asked.get("classes") or [], limits.current().files
    if asked.get("way") not in WAYS or not all(paths for _, paths in classes) or not classes:
        raise UserError("Choose the files first: an archive, or pictures for each class.")
    if sum(len(paths) for _, paths in classes) > most:
        raise UserError(f"More than {most:,g} files are too many at once. Pack them as a zip.")
    files = [(str(name), Path(uploaded(path))) for name, paths in classes for path in paths]
    if missing := next((path for _, path in files if not path.is_file()), None):
        raise UserError(f"{missing.name} is not on this server any more. Choose it again.")
    if asked["way"] == "archive":
        return files[0][1]
    if asked["way"] == "unlabelled":
        return [("", path) for _, path in files]
    if any(not name.strip() for name, _ in files):
        raise UserError("A class has no name. Name it, or remove it.")
    return files


def _work(one: Import, source: Source, name: str, token: str) -> None:
    """Wait for a turn, import, and remove the uploaded files that no other import needs."""

    def progress(done: int, of: int) -> None:
        one.done, one.of = done, of
        if one.cancelled:
            raise Cancelled

    try:
        with turn(lambda: progress(0, 0)):
            folder = default_runs_folder()
            room = min(visitors.room(folder, owner_hash(token)))
            library = Library(folder, token, room if math.isfinite(room) else None)
            upload = import_dataset(source, name, library, progress)
        one.name, one.dataset = upload.info()["name"], upload.id
    except Cancelled:
        pass
    except ImportRefused as problem:
        one.problem = str(problem)
        one.skipped, one.skipped_count = problem.skipped[:MOST_NAMED], len(problem.skipped)
    except (UserError, OSError) as problem:
        one.problem = str(problem)
    except Exception:
        one.problem = (
            "The import failed, and nothing was stored. This is our mistake, not yours; the server's log has it."
        )
        raise
    finally:
        one.over = True
        with _lock:
            _needed.subtract(_files(source))
            for path in _files(source):
                if _needed[path] <= 0:
                    del _needed[path]
                    path.unlink(missing_ok=True)


def _files(source: Source) -> set[Path]:
    return {source} if isinstance(source, Path) else {path for _, path in source}


@contextmanager
def turn(check: Callable[[], None]) -> Iterator[None]:
    """Let one import run at a time; ``check`` is called while this one waits, and may raise."""
    check()
    while not _turn.acquire(timeout=CHECK_SECONDS):
        check()
    try:
        yield
    finally:
        _turn.release()


# --- As HTML


def card(upload: Upload) -> str:
    """Return one dataset as HTML: its figures, its notes, and what can be done with it; nothing for one just deleted."""
    try:
        info, size = upload.info(), upload.bytes()
    except (UserError, OSError):
        return ""
    count = sum(sum(split.values()) for split in info["pictures"].values())
    without = sum(split.get("", 0) for split in info["pictures"].values())
    classes = f"{len(info['classes'])} classes" if info["classes"] else "no labels"
    if info["classes"] and without:
        classes += f", {without:,} without a label"
    return render(
        "datasets_card",
        id=upload.id,
        info=info,
        figures=f"{count:,} pictures, {classes}, {size / 1e6:,.1f} MB",
        classes=info["classes"] + [""] * bool(without),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info["created"])),
        splits=[split for split in SPLIT_NAMES if split in info["pictures"]],
        **_skipped_values(info["examples"], info["skipped"]),
    )


def skipped_html(skipped: list[tuple[str, str]], count: int) -> str:
    """Return skipped files with their reasons as an HTML list; ``skipped`` are the first of ``count``."""
    return render("datasets_skipped", **_skipped_values(skipped, count))


def _skipped_values(skipped: list[tuple[str, str]], count: int) -> dict[str, Any]:
    return {"skipped": skipped[:MOST_NAMED], "more": count - MOST_NAMED}


def hint() -> str:
    """Say in a sentence what limits hold for pictures here; nothing where there are none."""
    allowed = limits.current()
    parts = (
        (allowed.upload_mb, "{:,g} MB a file"),
        (allowed.pictures, "{:,g} pictures"),
        (allowed.classes, "{:,g} classes"),
        (allowed.picture_mb, "{:,g} MB a picture"),
        (allowed.megapixels, "{:,g} megapixels a picture"),
    )
    words = ", ".join(text.format(value) for value, text in parts if value < math.inf)
    quota = "" if allowed.quota_mb == math.inf else f" You may keep {allowed.quota_mb:,g} MB here."
    idle = (
        ""
        if allowed.idle_days == math.inf
        else f" What you do not come back to is deleted after {allowed.idle_days:g} days."
    )
    return (f"At most {words}." if words else "") + quota + idle


# --- The tab


def build() -> gr.HTML:
    """Return the tab; its script uploads the files, asks how far the import is, and asks for the list."""
    return gr.HTML(
        value={},
        html_template=render("datasets", ways=WAYS, limits=hint()),
        js_on_load="""distillery.datasets({
            element, props, server, upload, use: dataset => trigger('use', {dataset}),
        })""",
        server_functions=[offered, begin, act],
        apply_default_css=False,
        elem_id="data",
    )
