"""The tab of one's own pictures: bring an archive, named classes or a heap; what was found; use it, delete it."""

import hashlib
import html
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

FILES = Path(__file__).parent / "templates"

MOST_WAITING = 8

MOST_NAMED = 100

LOOK_SECONDS = 0.5
"""How often an import that waits looks whether it is still wanted."""

WAYS = {
    "archive": ("An archive", "Class folders in a zip, with or without train, validation and test; or pictures alone."),
    "classes": ("Pictures in named classes", "Name each class and give it pictures, from files or from the webcam."),
    "heap": ("Pictures without labels", "A student then learns from the teacher's answers alone."),
}


@dataclass
class Import:
    """One that waits or is under way, and how it ended."""

    name: str
    done: int = 0
    of: int = 0
    over: bool = False
    called_off: bool = False
    problem: str = ""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """The first of those that were ``refused``."""
    refused: int = 0
    found: str = ""

    def words(self) -> str:
        """What it is doing."""
        if self.found:
            return f"{self.name} is stored."
        if self.over:
            return self.problem or "Cancelled; nothing was stored."
        return f"Reading file {self.done:,} of {self.of:,}" if self.of else "Waiting for its turn"


class CalledOff(Exception):
    """The visitor does not want it any more."""


_imports: dict[str, Import] = {}
"""Owner -> the last import. It is worth nothing after a restart of the page: its process has ended with it."""

_held: Counter[Path] = Counter()
"""Uploaded files -> the imports that need them: gradio keeps the same file of two visitors once."""

_lock, _turn = Lock(), BoundedSemaphore(1)
"""One import at a time has this machine; the others wait."""


# --- What the script asks for


@served
def offered(asked: dict[str, Any]) -> dict[str, Any]:
    """The visitor's datasets as ``html`` with its ``mark``, unless the page has it already (``seen``); and ``now``, the
    import that is under way or was the last: ``words, done, of, over, problem, skipped`` (as HTML), ``found`` (its id)."""
    token = asked.get("owner", "")
    body = "".join(map(card, own_uploads(token)))
    mark = hashlib.sha256(body.encode()).hexdigest()[:16]
    news: dict[str, Any] = {} if mark == asked.get("seen") else {"html": body, "mark": mark}
    with suppress(UserError):  # a visitor without a token has brought nothing
        if one := _imports.get(owner(token)):
            news["now"] = {
                "words": one.words(), "done": one.done, "of": one.of, "over": one.over, "problem": bool(one.problem),
                "skipped": named(one.skipped, one.refused), "found": one.found,
            }  # fmt: skip
    return news


@served
def begin(asked: dict[str, Any]) -> dict[str, Any]:
    """Import what was uploaded, in the background: ``way`` one of ``WAYS``, ``name``, and ``classes``, a list of (name,
    paths). ``{}``, or ``problem``."""
    try:
        whose, source, name = owner(asked.get("owner", "")), _source(asked), str(asked.get("name") or "").strip()[:80]
        one = Import(name or "The dataset")
        with _lock:
            if whose in _imports and not _imports[whose].over:
                raise UserError("Your last import is not done yet. Wait for it, or cancel it.")
            if sum(not other.over for other in _imports.values()) >= MOST_WAITING:
                raise UserError("Several others are bringing pictures just now. Try again in a few minutes.")
            _imports[whose] = one
            _held.update(_files(source))
    except (UserError, TypeError, ValueError) as problem:
        return {"problem": str(problem)}
    Thread(target=_work, args=(one, source, name, whose), daemon=True).start()
    return {}


@served
def act(asked: dict[str, Any]) -> dict[str, Any]:
    """``do``: cancel the import that is under way, or delete the dataset ``id``. ``{}``, or ``problem``."""
    if asked.get("do") == "delete":
        return outcome(
            lambda id, token: delete_dataset(own_upload(id, token)), asked.get("id", ""), asked.get("owner", "")
        )
    return outcome(lambda _, token: _call_off(owner(token)), "", asked.get("owner", ""))


def _call_off(whose: str) -> None:
    if one := _imports.get(whose):
        one.called_off = True


def _source(asked: dict[str, Any]) -> Source:
    """The files that ``asked`` names, all of them uploaded ones. Raises ``UserError``."""
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
    if asked["way"] == "heap":
        return [("", path) for _, path in files]
    if any(not name.strip() for name, _ in files):
        raise UserError("A class has no name. Name it, or remove it.")
    return files


def _work(one: Import, source: Source, name: str, whose: str) -> None:
    """The import, once it is its turn; the uploaded files are not needed afterwards."""

    def progress(done: int, of: int) -> None:
        one.done, one.of = done, of
        if one.called_off:
            raise CalledOff

    try:
        with turn(lambda: progress(0, 0)):
            folder = default_runs_folder()
            room = min(visitors.room(folder, owner_hash(whose)))
            library = Library(folder, whose, room if math.isfinite(room) else None)
            upload = import_dataset(source, name, library, progress)
        one.name, one.found = upload.info()["name"], upload.id
    except CalledOff:
        pass
    except ImportRefused as problem:
        one.problem, one.skipped, one.refused = str(problem), problem.skipped[:MOST_NAMED], len(problem.skipped)
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
            _held.subtract(_files(source))
            for path in _files(source):
                if _held[path] <= 0:
                    del _held[path]
                    path.unlink(missing_ok=True)


def _files(source: Source) -> set[Path]:
    return {source} if isinstance(source, Path) else {path for _, path in source}


@contextmanager
def turn(waits: Callable[[], None]) -> Iterator[None]:
    """For one import at a time; ``waits`` is called until it is this one's turn, and may raise."""
    waits()
    while not _turn.acquire(timeout=LOOK_SECONDS):
        waits()
    try:
        yield
    finally:
        _turn.release()


# --- As HTML


def card(upload: Upload) -> str:
    """One dataset: its figures, what was found and skipped, and what can be done with it; nothing for one that is
    deleted meanwhile."""
    try:
        info, size = upload.info(), upload.bytes()
    except (UserError, OSError):
        return ""
    name, classes = html.escape(info["name"]), len(info["classes"])
    count = sum(sum(split.values()) for split in info["pictures"].values())
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info["created"]))
    figures = f"{count:,} pictures, {f'{classes} classes' if classes else 'no labels'}, {size / 1e6:,.1f} MB, brought "
    notes = "".join(f'<p class="kd-note">{html.escape(note)}</p>' for note in info["notes"])
    skipped = (
        f"<details><summary>{info['skipped']:,} skipped</summary>{named(info['examples'], info['skipped'])}</details>"
        if info["skipped"]
        else ""
    )
    return (
        f'<li data-id="{upload.id}" data-name="{name}"><h3>{name}</h3>'
        f'<p class="kd-note">{figures}<time datetime="{when}">{when}</time></p>{notes}'
        f"<details><summary>Pictures of each class</summary>{counts(info)}</details>{skipped}"
        f'<p><button type="button" class="kd-button" data-do="use" aria-label="Use in Distill: {name}">Use in Distill</button> '
        f'<button type="button" class="kd-button kd-danger" data-do="delete" aria-label="Delete {name}">Delete</button></p></li>'
    )


def counts(info: dict[str, Any]) -> str:
    """A table: a row for each class, a column for each split."""
    splits = [split for split in SPLIT_NAMES if split in info["pictures"]]
    head = "".join(f'<th scope="col">{split.capitalize()}</th>' for split in splits)

    def row(name: str, words: str) -> str:
        cells = "".join(f"<td>{info['pictures'][split].get(name, 0):,}</td>" for split in splits)
        return f'<tr><th scope="row">{html.escape(words)}</th>{cells}</tr>'

    body = "".join(row(name, name) for name in info["classes"]) or row("", "without labels")
    return (
        f'<table class="kd-table kd-counts"><thead><tr><th scope="col">Class</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def named(skipped: list[tuple[str, str]], of: int | None = None) -> str:
    """Skipped files with their reasons, as a list; how many more there are, if these are the first ``of`` so many."""
    of = of or len(skipped)
    items = "".join(
        f"<li><b>{html.escape(name)}</b> {html.escape(reason)}</li>" for name, reason in skipped[:MOST_NAMED]
    )
    more = f"<li>and {of - MOST_NAMED:,} more</li>" if of > MOST_NAMED else ""
    return f'<ul class="kd-skipped">{items}{more}</ul>' if items else ""


def hint() -> str:
    """The limits, in a sentence."""
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
    """The tab; its script uploads the files, asks for progress and for the list."""
    ways = "".join(
        f'<label><input type="radio" name="kd-way" value="{way}"{" checked" if way == "archive" else ""}> {words}</label>'
        for way, (words, _) in WAYS.items()
    )
    template = (FILES / "data.html").read_text().replace("@@ways", ways).replace("@@limits", html.escape(hint()))
    for way, (_, words) in WAYS.items():
        template = template.replace(f"@@{way}", html.escape(words))
    return gr.HTML(
        value={},
        html_template=template,
        js_on_load="distillery.data(element, props, server, watch, upload, dataset => trigger('use', {dataset}))",
        server_functions=[offered, begin, act],
        apply_default_css=False,
        elem_id="data",
    )
