"""What a run has made: ask it about pictures, export it, say where it is, download it."""

import asyncio
import hmac
from typing import Any
from urllib.parse import quote

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from kd import limits
from kd.errors import UserError
from kd.export.bundle import FOLDER, find_export, zip_size, zipped
from kd.export.job import is_exporting
from kd.runs.run import Run
from kd.ui import take_away
from kd.ui.access import find_by_id, own, readable, secret_key, shared
from kd.ui.api.endpoints import in_callers_names, wait_until
from kd.ui.api.files import received
from kd.ui.compare import MOST_PICTURES, side_by_side

# Where a student is downloaded; ``{run}`` is the run's id.
DOWNLOAD = "/student/{run}.zip"


def compare(run: str, pictures: list[str], token: str = "", request: gr.Request | None = None) -> dict[str, Any]:
    """Ask the teacher and the student of a finished run about pictures, and time both.

    Args:
        run: The run's id.
        pictures: Up to 64 pictures, each a data: URL (data:image/png;base64,...) or the address or path that an upload to this server answered with; with gradio_client, [handle_file("a.png")]. Addresses of other servers are refused.
        token: On a shared server, the token that start_run answered, or the key of a read-only link.

    Returns:
        pictures (each: name, number in the question, the top five of teacher and student as label and confidence, agree, disagreement; or error), the most disagreed on first; teacher and student (parameters, megabytes, flops, latency_ms with p50 and p95); agreement, speedup, size_ratio, and a note where another run slowed both down.
    """
    found = readable(run, token, token)
    if isinstance(pictures, str | dict):
        pictures = [pictures]
    if not isinstance(pictures, list):
        raise UserError("pictures are a list of data: URLs, or of addresses or paths of uploads.")
    if len(pictures) > MOST_PICTURES:
        raise UserError(f"{len(pictures)} pictures are too many at once; the most is {MOST_PICTURES}.")
    with received(pictures, request, limits.current().picture_mb, "picture") as paths:
        return side_by_side(found, paths)


async def export_student(
    run: str, token: str = "", timeout: float = 30, request: gr.Request | None = None
) -> dict[str, Any]:
    """Export the student of a finished or stopped run to ONNX and int8, score and time each file, and say where they are. It takes minutes: while status is queued or running, call again to wait on.

    Args:
        run: The run's id.
        token: On a shared server, the token that start_run answered.
        timeout: Seconds to wait for the end, 0 to 50.

    Returns:
        status (queued, running or done), line, share that is done, files (once done: name, what, accuracy, agreement with PyTorch, megabytes, latency_ms), notes, then as get_student.
    """
    found = await asyncio.to_thread(_exported, run, token)
    await wait_until(lambda: not is_exporting(found), timeout)
    state = take_away.progress_of(found)
    if state["status"] in ("queued", "running"):
        return {
            "run": found.id, **state, "next": "Call export_student with the same arguments to wait on; stop_run cancels it.",
        }  # fmt: skip
    if state["status"] in ("failed", "stopped", "died"):
        raise UserError(state["line"])
    results = find_export(found)
    if results is None:
        raise UserError(f"The export of run {found.id} is gone. Call export_student again.")
    return {
        "run": found.id, "status": "done", "line": "Done", "share": 1, "files": [_file(name, one) for name, one in results["files"].items()],
        "notes": [in_callers_names(note) for note in results["notes"]], **_place(found, request),
    }  # fmt: skip


def _exported(id: str, token: str) -> Run:
    """Return the run, whose export is there, is at work, or begins now."""
    run = own(id, token)
    results = find_export(run)
    if is_exporting(run) or results is None or take_away.lacks(run, results):
        return take_away.export(id, token)
    return run


def _file(name: str, one: dict[str, Any]) -> dict[str, Any]:
    return {
        "file": name,
        "what": take_away.CONTENTS[name],
        "accuracy": one["accuracy"],
        "same_as_pytorch": one["agreement"],
        "good": one["success"],
        "megabytes": one["megabytes"],
        "latency_ms": one["latency_ms"]["one_thread"]["p50"],
    }


def get_student(run: str, token: str = "", request: gr.Request | None = None) -> dict[str, Any]:
    """Say where the student of a run is: folders on your own machine, and the address of its download.

    Args:
        run: The run's id.
        token: On a shared server, the token that start_run answered.

    Returns:
        student (the folder that transformers loads, on your own machine), export (the folder of the ONNX files, on your own machine), download (address of a zip of the export, once there is one; it needs no token and opens nothing else), megabytes of it, use (how to load it), next.
    """
    found = own(run, token)
    if not (found.path / "student" / "config.json").exists():
        raise UserError(f"Run {found.id} is {found.status()} and has no student yet. wait_for_run says where it is.")
    return {"run": found.id, **_place(found, request)}


def _place(run: Run, request: Any) -> dict[str, Any]:
    """Say where a student and its export are."""
    exported = find_export(run) is not None
    here = not shared()
    return {
        "student": str(run.path / "student") if here else None,
        "export": str(run.path / FOLDER) if here and exported else None,
        "download": f"{address(request)}{DOWNLOAD.format(run=run.id)}?key={download_key(run)}" if exported else None,
        "megabytes": round(zip_size(run) / 1e6, 2) if exported else None,
        "use": "transformers: pipeline('image-classification', model=student). The export's README.md has code for onnxruntime and transformers.js.",
        "next": "compare asks both models about pictures." if exported else "export_student makes ONNX files and a download.",
    }  # fmt: skip


def address(request: Any) -> str:
    """Return the address of this server as the caller of ``request`` knows it, without a slash at its end."""
    if request is None:
        return ""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto") or getattr(getattr(request, "url", None), "scheme", "http")
    host = headers.get("x-forwarded-host") or headers.get("host") or ""
    return f"{scheme.split(',')[0]}://{host.split(',')[0]}" if host else ""


# --- The download


def download_key(run: Run) -> str:
    """Return the key in the address of a run's download: whoever has it can take that and do nothing else."""
    return secret_key(f"download {run.id}", run.path.parent)


def download(request: Request) -> Response:
    """Answer ``GET /student/RUN.zip``: the export as a zip, to its ``key`` or to the owner's token (``Authorization: Bearer``)."""
    id, key = request.path_params["run"], request.query_params.get("key", "")
    token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    try:
        run = _downloadable(id, key, token)
        return FileResponse(zipped(run), media_type="application/zip", filename=f"student-{quote(run.id)}.zip")
    except (UserError, OSError) as problem:
        words = str(problem) if isinstance(problem, UserError) else "The zip could not be made or read. Try again."
        return PlainTextResponse(words, status_code=404)


def _downloadable(id: str, key: str, token: str) -> Run:
    """Return the run whose export may be taken. ``UserError`` says the same of another's as of one that does not exist."""
    run = find_by_id(id)
    allowed = run is not None and hmac.compare_digest(key.encode(), download_key(run).encode())
    run = run if allowed else own(id, token)
    if find_export(run) is None:
        raise UserError(f"Run {run.id} has no export. export_student makes one.")
    return run


ROUTES = [Route(DOWNLOAD, download)]
