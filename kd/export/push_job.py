"""A push in a process of its own, as the page starts it: it waits for the export, says where it is, can be cancelled.

Its folder, ``pushing`` in that of the run, is like that of a run: ``config.json`` (with what was asked in ``push``),
``events.jsonl`` (``queued``, ``started``, ``progress``, ``hub``; ``done``, ``failed`` or ``stopped``), ``lock``, ``STOP``,
``stderr.txt``. The token comes on standard input and is nowhere else: not in the arguments, the environment or a file.
"""

import dataclasses
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from kd.errors import UserError
from kd.export.bundle import check_has_student, find_export
from kd.export.job import PROGRESS_SECONDS, find_job, is_at_work, is_exporting, job_of, make_job, start_export, starting
from kd.export.push import PushSettings, check_push, push_student
from kd.runs.failures import failure_message
from kd.runs.process import open_log
from kd.runs.queue import POLL_SECONDS, StopAsked
from kd.runs.run import Run, RunDeleted
from kd.system.hub import listening
from kd.system.processes import start_kd

FOLDER = "pushing"
# A process that is to export may need so long until it says so.
SLOW_START_SECONDS = 120
# The variables in which the server's own token may be, which the process of a push does not get; nor does it look for one.
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def push_of(run: Run) -> Run | None:
    """Return the last push of a run that was started by ``start_push``, at work or closed; ``None`` for none."""
    return find_job(run, FOLDER)


def is_pushing(run: Run) -> bool:
    """Tell whether a push of the run waits or works."""
    return is_at_work(push_of(run))


def check_not_pushing(run: Run, then: str) -> None:
    """Raise ``UserError`` while the run is being pushed, with what to do ``then`` ("delete the run")."""
    if is_pushing(run):
        raise UserError(f"Run {run.id} is being pushed. Cancel the push or wait until it is done, then {then}.")


def asked_of(job: Run) -> dict[str, Any]:
    """Return what a push was asked for: ``repo`` and the fields of ``PushSettings``."""
    return job.settings()["push"]


def start_push(run: Run, repo: str | None, token: str, settings: PushSettings) -> Run:
    """Start pushing a run's student in a process that outlives this one; return the job.

    Where there is no export yet, that is started too, as a process of its own, and the push waits for it. A push that is at
    work already is returned as it is. Raises ``UserError`` where the student, the name or the licence will not do, or nothing
    can be written.
    """
    check_has_student(run)
    if run.is_locked():
        raise UserError(f"Run {run.id} is at work. Push its student once it is done or stopped.")
    check_push(repo, settings)
    job = Run(run.path / FOLDER)
    with starting(run, "push"):
        if is_pushing(run):
            return job
        if find_export(run) is None:
            start_export(run)
        make_job(run, job, push={"repo": repo, **dataclasses.asdict(settings)})
        with open_log(job) as log:
            without = {**dict.fromkeys(SECRETS), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
            process = start_kd(
                "push", str(run.path), "--job",
                environment=without, stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        with suppress(BrokenPipeError), process.stdin as pipe:  # a process that has ended has said why
            pipe.write(token.encode())
    return job


def work_on_push(run: Run) -> None:
    """Push a run's student as its job says, with the token on standard input; every ending is an event.

    Raises what went wrong, after the ``failed`` event has said it in words.
    """
    token, job = sys.stdin.read(), Run(run.path / FOLDER)
    asked, told, at = asked_of(job), 0.0, ""

    def progress(stage: str, done: int, of: int) -> None:
        nonlocal told, at
        if stage != at or time.monotonic() - told > PROGRESS_SECONDS:  # a new stage is told at once
            told, at = time.monotonic(), stage
            job.append("progress", phase=stage, done=done, of=of)

    with job.work():
        try:
            _wait_for_export(run, job)
            job.begin(resume=False)
            if not token:  # else it would be looked for, and that of the server's owner may be found
                raise UserError("No token came with the push: what started it ended at that moment. Push again.")
            settings = PushSettings(**{name: value for name, value in asked.items() if name != "repo"})
            with listening(lambda words: job.append("hub", message=words), job.stop_asked):
                found = push_student(run, asked["repo"], token, settings, progress)
            job.close("done", **found)
        except (StopAsked, KeyboardInterrupt):
            job.close("stopped", message="Cancelled. What was sent by then is kept by the Hub for a while.")
        except RunDeleted:
            raise
        except BaseException as error:
            if job.path.exists():  # else the run was deleted meanwhile
                kind = error.kind if isinstance(error, UserError) else ""
                job.close("failed", message=failure_message(error, job), error=type(error).__name__, kind=kind)
            raise


def _wait_for_export(run: Run, job: Run) -> None:
    """Wait for the export that was started with the push. Raises ``UserError`` where it fails, ``StopAsked`` when cancelled."""
    if _may_come(run):
        job.append("queued", place=1, device="export")
    while _may_come(run):
        if job.stop_asked():
            raise StopAsked
        time.sleep(POLL_SECONDS)
    if find_export(run) is not None:
        return
    last = job_of(run).last("failed", "stopped") or {"message": "Its process is gone: it ended without a word."}
    if last.get("kind") != "not exportable":
        raise UserError(f"Nothing was pushed, because the export did not come to its end. {last['message']}")


def _may_come(run: Run) -> bool:
    """Tell whether an export is at work, or its process may still be starting, which takes long on a busy machine."""
    export = job_of(run)
    if is_exporting(run) or export is None:
        return export is not None
    is_new = time.time() - export.settings()["created"] < SLOW_START_SECONDS
    return is_new and export.last("started", "queued", "done", "failed", "stopped") is None
