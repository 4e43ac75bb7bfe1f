"""The column "In this browser": a run's student on the visitor's own device, on pictures and live from the camera.

The page's script runs the file that an export has made (``student.onnx``: pixels in, probabilities out). The teacher stays
on the server: it is asked about one frame of the camera at a time.
"""

import base64
import os
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote

import gradio as gr

from kd.errors import UserError
from kd.evaluation import worker
from kd.export.bundle import FILES, FOLDER, find_export
from kd.runs.run import Run
from kd.runs.store import check_teacher_exists
from kd.system.browser_runtime import HOW_TO_GET_IT, SCRIPT, WASM, browser_runtime
from kd.ui.access import own, readable, served, uploaded
from kd.ui.rendering import render

# The files of an export that take pictures as they are.
NAMES = tuple(name for _, name in FILES.values())

# A file is sent in parts of so many bytes, so that its progress can be shown and none is held in memory whole.
PART_BYTES = 3_000_000

# One frame of one visitor's camera is shown to the teacher at a time.
_asking = Lock()


def file_address(path: Path | str) -> str:
    """Return where the page finds a file that gradio serves: one of ``gr.set_static_paths``, or an upload."""
    return f"gradio_api/file={quote(str(path))}"


def serve_runtime() -> None:
    """Let the page load the engine's two files, where they are installed."""
    if folder := browser_runtime():
        gr.set_static_paths([folder / SCRIPT, folder / WASM])


# --- What the script calls


@served
def offered(asked: dict[str, Any]) -> dict[str, Any]:
    """Say what of the ``run`` can be opened: ``files`` (each ``name, words, bytes``), ``classes`` and the ``engine``'s
    addresses (``script``, ``wasm``); or a ``problem``."""
    try:
        run = _own_student(asked)
        folder = browser_runtime()
        if folder is None:
            raise UserError(
                f"ONNX Runtime Web, which runs a student in a browser, is not on this server. {HOW_TO_GET_IT}"
            )
        results = find_export(run)
        files = [_file(run, name, one) for name, one in results["files"].items() if name in NAMES] if results else []
        if not files:
            raise UserError(
                "This run has no file that a browser can run yet. Open the run on the tab Distill, and Export under Take it away makes it; or "
                f"`python -m kd export {run.id}` does. Then open this again."
            )
        addresses = {"script": file_address(folder / SCRIPT), "wasm": file_address(folder / WASM)}
        return {"files": files, "classes": results["classes"], "engine": addresses}
    except (UserError, OSError, ValueError) as problem:
        return {"problem": str(problem)}


@served
def part(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the exported file ``name`` of the visitor's ``run``, from the byte ``start`` on.

    ``data`` is in base64; ``bytes`` is the size of the whole and ``mark`` changes with the file. Or there is a ``problem``.
    """
    try:
        run, start = _own_student(asked), asked.get("start")
        if asked.get("name") not in NAMES or not isinstance(start, int) or start < 0:
            raise UserError("There is no such part of a student.")
        with (run.path / FOLDER / asked["name"]).open("rb") as file:
            now = os.fstat(file.fileno())
            file.seek(min(start, now.st_size))
            data = base64.b64encode(file.read(PART_BYTES)).decode()
        return {"data": data, "bytes": now.st_size, "mark": f"{now.st_mtime_ns}"}
    except FileNotFoundError:
        return {"problem": "The student's file is gone. Open this again."}
    except OSError as problem:
        return {"problem": f"The student's file cannot be read ({problem.strerror}). Open this again."}
    except (UserError, ValueError) as problem:
        return {"problem": str(problem)}


@served
def ask_teacher(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask the teacher of a ``run`` about an uploaded frame (``path``), which is deleted afterwards.

    Returns ``teacher``, its top five (``label, confidence``), and its median latency ``ms``; or a ``problem``, also where
    the server is answering somebody else.
    """
    try:
        run = readable(asked.get("run", ""), asked.get("owner", ""), asked.get("view", ""))
        frame = uploaded(asked.get("path"))
        try:
            return _teacher_says(run, frame)
        finally:
            Path(frame).unlink(missing_ok=True)
    except (UserError, OSError, ValueError) as problem:
        return {"problem": str(problem)}


def _teacher_says(run: Run, frame: str) -> dict[str, Any]:
    if worker.ask.is_busy() or not _asking.acquire(blocking=False):
        raise UserError("The server is busy with other pictures. Ask again in a moment.")
    try:
        check_teacher_exists(run)
        found = worker.ask(worker.side_by_side, run.path, [frame], False)
    finally:
        _asking.release()
    return {"teacher": found["pictures"][0]["teacher"], "ms": found["teacher"]["latency_ms"]["p50"]}


def _file(run: Run, name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Describe an exported file for the list of the weights; one that answers too differently is marked."""
    words = measured["kind"]
    if not measured["success"]:
        words += f" (agrees on {measured['agreement']:.1%} only)"
    return {"name": name, "words": words, "bytes": (run.path / FOLDER / name).stat().st_size}


def _own_student(asked: dict[str, Any]) -> Run:
    """Return the run whose student may go to the visitor: one of their own. Raises ``UserError`` for any other."""
    id, token = asked.get("run", ""), asked.get("owner", "")
    if not id:
        raise UserError("Choose a finished run first. The Distill tab makes one.")
    try:
        run = own(id, token)
    except UserError:
        readable(id, token, asked.get("view", ""))  # else the same words as for a run that does not exist
        raise UserError(
            "This run was shared with you to look at. Its student stays with its owner, so only they can run it in a browser."
        ) from None
    if not (run.path / "student" / "config.json").is_file():
        raise UserError(f"Run {run.id} ({run.status()}) has no student yet.")
    return run


# --- The panel


def build(live: gr.HTML, run: gr.Dropdown) -> gr.HTML:
    """Return the panel, which opens the column for the chosen ``run``; ``live`` knows the visitor's token."""
    panel = gr.HTML(
        value={"run": "", "owner": "", "view": ""},
        html_template=render("in_browser"),
        js_on_load="distillery.inBrowser({ element, props, server, upload, watch })",
        server_functions=[offered, part, ask_teacher],
        apply_default_css=False,
        elem_id="in-browser",
    )
    gr.on(
        [live.change, run.change], None, [live, run], panel,
        js="(live, run) => ({ run: run ?? '', owner: live?.owner ?? '', view: live?.view ?? '' })",
        api_visibility="private", queue=False, show_progress="hidden",
    )  # fmt: skip
    return panel
