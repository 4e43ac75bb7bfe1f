"""Take it away: export a run's student on the page, see what was measured of each file, download them all.

The export is a process (``kd.export.job``): it goes on when the page is closed, and is found again.
"""

import base64
import os
from typing import Any

from kd.errors import UserError
from kd.export.bundle import FILES, FOLDER, find_export, zip_size, zipped
from kd.export.job import is_exporting, job_of, start_export
from kd.export.push_job import check_not_pushing
from kd.runs.run import CLOSED, Run
from kd.system.browser_runtime import browser_runtime
from kd.ui.access import admitted, outcome, own, served
from kd.ui.rendering import render
from kd.ui.result import Table, percent

# A zip is sent in parts of so many bytes, so that its progress can be shown and none is held in memory whole.
PART_BYTES = 3_000_000

# What is in an export: file, what it is for.
CONTENTS = {
    "onnx/model.onnx": "ONNX, with the processor's work done before; transformers.js loads it",
    "student.onnx": "ONNX that takes a picture as it is, and knows its classes",
    "onnx/model_quantized.onnx": "the same in int8, a third of the size or less",
    "student_int8.onnx": "int8 that takes a picture as it is",
}


@served
def export_state(asked: dict[str, Any]) -> dict[str, Any]:
    """Say where the export of the visitor's ``run`` is; ``{}`` where there is nothing to take away (yet), a ``problem`` for a
    run that is not theirs.

    ``status`` is that of the export (``none`` before the first), ``line`` says it in words, ``share`` is how much is done.
    ``html`` is the table of the files that are there, ``bytes`` the size of their zip, ``missing`` whether a format lacks.
    """
    try:
        run = own(asked.get("run", ""), asked.get("owner", ""))
        if not (run.path / "student" / "config.json").exists() or run.status() not in CLOSED:
            return {}
        results = find_export(run)
        answer = {**progress_of(run), "missing": results is None or lacks(run, results)}
        if results:
            answer |= {"html": render("take_away_files", files=files_table(results), notes=notes_of(results)),
                       "bytes": zip_size(run)}  # fmt: skip
        return answer
    except (UserError, ValueError) as problem:
        return {"problem": str(problem)}
    except OSError:  # deleted meanwhile
        return {}


def lacks(run: Run, results: dict[str, Any]) -> bool:
    """Tell whether an export lacks a format, or the page for browsers that could be made here."""
    names = {name for names in FILES.values() for name in names}
    has_page = (run.path / FOLDER / "demo.html").exists() or browser_runtime() is None
    return not (names <= set(results["files"]) and has_page)


def progress_of(run: Run) -> dict[str, Any]:
    """Return ``status``, ``line`` and ``share`` of the last export that was started here."""
    job = job_of(run)
    if job is None:
        return {"status": "none", "line": "", "share": 0}
    status, last = job.status(), job.last("progress", "queued", "stopped", "failed", "done")
    share = last["done"] / max(last["of"], 1) if last and last["event"] == "progress" else 0
    line = {
        "queued": "Waiting for a run to end" if last else "Starting",
        "running": _running_words(last, share),
        "done": "",
        "died": "The export's process is gone: it ended without a word. Export again.",
    }.get(status, (last or {}).get("message", ""))
    if status not in CLOSED and job.stop_asked():
        line = "Cancelling"
    return {"status": status, "line": line, "share": 1 if status == "done" else round(share, 3)}


def _running_words(last: dict[str, Any] | None, share: float) -> str:
    if not share:
        return "Making the files"
    if share < 1:
        return f"Scoring the files on the test pictures, {last['done']:,} of {last['of']:,}"
    return "Timing the files"


def notes_of(results: dict[str, Any]) -> list[str]:
    """Return what is to be read below the table: of each file that answers too differently where it does, and more."""
    marked = [f"{name}: {one.get('others', '')}" for name, one in results["files"].items() if not one["success"]]
    return [*marked, *results["notes"]]


def files_table(results: dict[str, Any]) -> Table:
    """Return what was measured of each file of an export."""
    rows = []
    for name, one in results["files"].items():
        single = one["latency_ms"]["one_thread"]
        rows.append([
            name,
            CONTENTS[name],
            percent(one["accuracy"]),
            f"{one['agreement']:.2%}" + ("" if one["success"] else ": too few"),
            f"{one['megabytes']:.2f} MB",
            f"{single['p50']:.3f} ms",
        ])  # fmt: skip
    if results["teacher"]:
        teacher = results["teacher"]
        latency = f"{teacher['latency_ms']['one_thread']['p50']:.3f} ms"
        rows.append(
            ["teacher", "for comparison; it is not in the zip", "", "", f"{teacher['megabytes']:.2f} MB", latency]
        )
    right = "Test accuracy" if results["labels"] == "dataset" else "Agreement with the teacher"
    head = ["File", "What it is", right, "Same as PyTorch", "Size", "Latency p50"]
    caption = (
        f"Measured on all {results['test_pictures']:,} test pictures; ONNX Runtime, one picture, one thread's own time"
    )
    return Table(head, rows, caption, "kd-files")


@served
def export_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Start the export of the visitor's ``run``, or find the one that is at work; ``{}``, or a ``problem``."""
    return outcome(export, asked.get("run", ""), asked.get("owner", ""))


def export(id: str, token: str) -> Run:
    """Start exporting the student of one of the visitor's runs; it counts as one of the runs that they may have open.

    Raises ``UserError`` for any other run, and as ``start_export`` does.
    """
    run = own(id, token)
    if is_exporting(run):
        return run
    check_not_pushing(run, "export it")
    with admitted(token):
        start_export(run)
    return run


@served
def cancel_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Cancel the export of the visitor's ``run``; ``{}``, or a ``problem``."""
    return outcome(cancel, asked.get("run", ""), asked.get("owner", ""))


def cancel(id: str, token: str) -> None:
    """Ask the export of one of the visitor's runs to end. Raises ``UserError`` where there is none."""
    run = own(id, token)
    if not is_exporting(run):
        raise UserError(f"Run {run.id} is not being exported.")
    job_of(run).ask_to_stop()


@served
def zip_part(asked: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the zip of the visitor's ``run``'s export from the byte ``start`` on: ``data`` in base64, ``bytes`` of
    the whole, its ``name``, and ``mark``, which changes with it. Or there is a ``problem``."""
    try:
        run, start = own(asked.get("run", ""), asked.get("owner", "")), asked.get("start")
        if not isinstance(start, int) or start < 0:
            raise UserError("There is no such part of an export.")
        if find_export(run) is None:
            raise UserError("This run has no export any more. Export it again.")
        with zipped(run).open("rb") as file:
            now = os.fstat(file.fileno())
            file.seek(min(start, now.st_size))
            data = base64.b64encode(file.read(PART_BYTES)).decode()
        return {"data": data, "bytes": now.st_size, "name": f"student-{run.id}.zip", "mark": f"{now.st_mtime_ns}"}
    except OSError as problem:
        return {"problem": f"The zip could not be made or read ({problem.strerror}). Try again."}
    except (UserError, ValueError) as problem:
        return {"problem": str(problem)}


# What the script of the run's panel can call.
SERVED = (export_state, export_it, cancel_it, zip_part)
