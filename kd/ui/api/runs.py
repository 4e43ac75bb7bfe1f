"""Start runs, wait for them, read them, stop, resume and delete them."""

import asyncio
import json
import time
from typing import Any

from kd.config import NO_TEACHER, RUN_TEACHER, DistillConfig
from kd.data.library.store import UPLOAD_PREFIX, short_name
from kd.errors import UserError
from kd.export.job import is_exporting
from kd.runs.run import CLOSED, LIFECYCLE, Run
from kd.runs.store import delete_dataset
from kd.runs.summary import Summary, status_of, summarize
from kd.ui import distill, take_away
from kd.ui import runs as listed
from kd.ui.access import own, own_runs, own_upload, readable, valid_cursor
from kd.ui.api.endpoints import LONGEST_WAIT, in_callers_names, token_for, wait_until
from kd.ui.progress import STAGES, progress_line, seconds_left
from kd.ui.result import is_labelled, mean_accuracy, sentence

# How many events an answer has at most, the newest of them; and how many runs.
MOST_EVENTS = 5000
MOST_RUNS = 50

WAIT = "Call wait_for_run with this run (and token) until its status is done, failed, stopped, paused or died."

NEXT = {
    "queued": WAIT,
    "running": WAIT,
    "done": "compare asks both models about pictures; export_student makes ONNX files; get_student says where the student is.",
    "failed": "line says why. Mend that and start anew; or resume_run goes on from the last checkpoint.",
    "stopped": "resume_run goes on from the last checkpoint; get_student says where the student so far is.",
    "died": "resume_run goes on from the last checkpoint.",
    "paused": "line says why. A run whose GPU is lent for a while goes on while its page is open in a browser (this server's address with ?run=ID); any other with resume_run. Then call wait_for_run again.",
}


def start_run(preset: str = "sample", settings: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
    """Start distilling a student from a teacher, in the background, and return at once.

    Args:
        preset: Settings to start from: sample (built in, offline), beans or custom (your own pictures).
        settings: Settings to change, by name, for example {"dataset": "upload:ID", "teacher": "run:ID", "temperature": 4, "lambda": 0.7, "epochs": 10}; list_options has all.
        token: On a shared server, the token of an earlier answer, to own this run too; empty for a new one.

    Returns:
        run (its id), token (keep it: it owns the run on a shared server), status, config (every setting of the run), next.
    """
    return _started(DistillConfig.preset(preset, **_named(settings)), token)


def make_teacher(base: str, dataset: str, settings: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
    """Start fine-tuning a pretrained model on your pictures, in the background, where no teacher knows their classes yet. Once that run is done, run:ID is a teacher for start_run.

    Args:
        base: A pretrained image classifier: a Hub id such as google/vit-base-patch16-224 or, on your own machine, a folder.
        dataset: upload:ID of import_pictures, a Hub id or, on your own machine, a folder.
        settings: Settings to change, by name, for example {"epochs": 5}.
        token: On a shared server, the token that owns the dataset.

    Returns:
        run (its id), token, status, config, next.
    """
    if not isinstance(base, str):
        raise UserError(f"base is {str(base)[:40]!r}; expected a Hub id.")
    started = _started(DistillConfig.finetune(base, **{**_named(settings), "dataset": dataset}), token)
    run = started["run"]
    return {**started, "next": f"{WAIT} Then start_run with the same dataset and the teacher {RUN_TEACHER}{run}."}


def _named(settings: Any) -> dict[str, Any]:
    """Return settings by name; some callers write an object as JSON text. Raises ``ValueError`` for anything else."""
    found = settings or {}
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = None
    if not isinstance(found, dict):
        raise ValueError(f'settings are {settings!r}; expected names and values, as in {{"epochs": 10}}.')
    return found


def _started(config: DistillConfig, token: str) -> dict[str, Any]:
    token = token_for(token)
    run = distill.start(config, token)
    return {"run": run.id, "token": token, "status": run.status(), "config": config.to_dict(), "next": WAIT}


async def wait_for_run(run: str, token: str = "", timeout: float = 30) -> dict[str, Any]:
    """Wait until a run has ended, for some seconds at most, and say in short where it is. Call it again until it has; with timeout 0 it answers at once.

    Args:
        run: The run's id.
        token: On a shared server, the token that start_run answered, or the key of a read-only link.
        timeout: Seconds to wait for the end, 0 to 50.

    Returns:
        status (queued, running, done, failed, stopped, paused or died), line (in words), stage, share of the stage that is done, epoch of epochs, training (number of how many), loss (total, soft of the teacher, hard of the labels), validation (accuracy, agreement with the teacher), images_per_second, seconds_left of training, warnings, result (once done), next (what to do now).
    """
    found = readable(run, token, token)
    await wait_until(lambda: status_of(found, summarize(found)) in CLOSED, timeout)
    return state_of(found)


def state_of(run: Run) -> dict[str, Any]:
    """Return where a run is, in short: what ``wait_for_run`` answers."""
    summary = summarize(run)
    status = status_of(run, summary)
    step, left, report = run.last("step"), seconds_left(summary), run.report() if status == "done" else None
    state = {
        "run": run.id,
        "name": run.name(),
        "status": status,
        "line": in_callers_names(", ".join(filter(None, progress_line(summary, status)))),
        "stage": STAGES[summary.stage],
        "share": round(summary.share(), 3),
        "epoch": round(summary.epoch, 2),
        "epochs": summary.epochs,
        "training": {"number": summary.nth, "of": summary.trials, "with_teacher": summary.arm == "distilled"},
        "loss": step and {name: step[name] for name in ("total", "soft", "hard")},
        "validation": {"accuracy": summary.accuracy, "agreement": summary.agreement},
        "images_per_second": summary.images_per_second and round(summary.images_per_second, 1),
        "seconds_left": None if left is None or status in CLOSED else round(left, 1),
        "warnings": [in_callers_names(text) for text in summary.warnings],
        "next": NEXT[status],
    }
    if report:
        state |= {"result": result_of(report), "next": _next_of(run)}
    return state


def _next_of(run: Run) -> str:
    """Say what can be done with a run that is done."""
    if run.config().teacher != NO_TEACHER:
        return NEXT["done"]
    return f'This model can teach now: start_run("custom", {{"teacher": "{RUN_TEACHER}{run.id}", "dataset": ...}}).'


def result_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return the main figures of a report. Accuracies are on the test split, means over the seeds for the student."""
    teacher, onnx, labelled = report["teacher"], report.get("onnx"), is_labelled(report)
    accuracy = {
        "student": mean_accuracy(report, "distilled"),
        "teacher": teacher and teacher["accuracy"],
        "student_without_teacher": mean_accuracy(report, "baseline"),
    }
    return {
        "sentence": sentence(report),
        "accuracy": accuracy if labelled else None,  # without labels, nobody knows how often either is right
        "agreement": report["agreement"],
        "verdict": report["verdict"] and report["verdict"]["sentence"],
        "megabytes": {"student": report["student"]["megabytes"], "teacher": teacher and teacher["megabytes"]},
        "size_ratio": report["size_ratio"],
        "speedup": report["speedup"],
        "speedup_in_onnx_runtime": onnx and onnx["speedup"],
    }


def list_runs(token: str = "") -> dict[str, Any]:
    """List your runs, the newest first.

    Args:
        token: On a shared server, the token that owns them.

    Returns:
        runs, each with run (its id), name, status, line, started, teacher, dataset, student, accuracy and accuracy_on (test or validation).
    """
    rows = []
    for run in own_runs(token)[:MOST_RUNS]:
        try:
            rows.append(_row(run))
        except UserError:  # deleted meanwhile, or of another version
            continue
    return {"runs": rows}


def _row(run: Run) -> dict[str, Any]:
    summary, config, report = summarize(run), run.config(), run.report()
    status, accuracy, on = status_of(run, summary), summary.accuracy, "validation"
    if report:
        accuracy, on = (report["student"]["accuracy"] if is_labelled(report) else None), "test"
    return {
        "run": run.id,
        "name": run.name(),
        "status": status,
        "line": in_callers_names(_line(summary, status)),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.settings()["created"])),
        "teacher": short_name(config.teacher),
        "dataset": short_name(config.dataset),
        "student": short_name(config.student),
        "accuracy": accuracy,
        "accuracy_on": None if accuracy is None else on,
    }


def _line(summary: Summary, status: str) -> str:
    return ", ".join(filter(None, progress_line(summary, status)))


def get_run(run: str, token: str = "", cursor: int = 0) -> dict[str, Any]:
    """Return the whole record of a run, which is long: its settings, every event since the last call (each loss and accuracy), and the full report. wait_for_run says in short where a run is.

    Args:
        run: The run's id.
        token: On a shared server, the token that start_run answered, or the key of a read-only link.
        cursor: The cursor of the last answer, to get only the events since; 0 for all.

    Returns:
        run, status, config, events, cursor for the next call, and report once the run is done.
    """
    found = readable(run, token, token)
    status = status_of(found, summarize(found))
    events, cursor = found.read(valid_cursor(cursor))
    return {
        "run": found.id, "status": status, "config": shown_config(found), "events": events[-MOST_EVENTS:], "cursor": cursor,
        "report": found.report(),
    }  # fmt: skip


def shown_config(run: Run) -> dict[str, Any]:
    """Return a run's settings with names for the folders of this server, as pages show them."""
    config = run.config()
    return {
        **config.to_dict(),
        **{name: short_name(getattr(config, name)) for name in ("teacher", "dataset", "student")},
    }


def stop_run(run: str, token: str = "") -> dict[str, Any]:
    """Ask a run to stop. It ends after the step it is at; the student so far is kept. Of a run that is done, the export of its student is cancelled.

    Args:
        run: The run's id.
        token: On a shared server, the token that start_run answered.

    Returns:
        run, status as it was when the run was asked, and next.
    """
    found = own(run, token)
    if found.status() in CLOSED and is_exporting(found):
        take_away.cancel(run, token)
        return {"run": found.id, "status": found.status(), "next": "The export of its student is being cancelled."}
    found = distill.stop(run, token)
    return {"run": found.id, "status": found.status(), "next": "wait_for_run says when it has stopped."}


async def resume_run(run: str, token: str = "") -> dict[str, Any]:
    """Let a run go on that was stopped, has failed or has died, from its last checkpoint. It answers once the run has begun again.

    Args:
        run: The run's id.
        token: On a shared server, the token that start_run answered.

    Returns:
        run, status and next.
    """
    found = own(run, token)
    before = found.last(*LIFECYCLE)
    await asyncio.to_thread(distill.resume, found.id, token)
    # Until its process says so, the run is closed as before: whoever waited for its end would be told that it has come.
    await wait_until(lambda: found.last(*LIFECYCLE) != before, LONGEST_WAIT)
    return {"run": found.id, "status": found.status(), "next": WAIT}


def delete(what: str, token: str = "") -> dict[str, Any]:
    """Delete a run with its student, or a dataset, for good. Nothing can bring it back.

    Args:
        what: A run's id, or upload:ID for a dataset.
        token: On a shared server, the token that owns it.

    Returns:
        deleted: what was deleted.
    """
    if isinstance(what, str) and what.startswith(UPLOAD_PREFIX):
        delete_dataset(own_upload(what, token))
        return {"deleted": what}
    id = own(what, token).id
    listed.delete(id, token)
    return {"deleted": id}
