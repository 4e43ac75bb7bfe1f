"""An export in a process of its own, as the page starts it: it waits for the device, says where it is, can be cancelled.

Its folder, ``exporting`` in that of the run, is like that of a run: ``config.json``, ``events.jsonl`` (``queued``, ``started``,
``progress``; ``done``, ``failed`` or ``stopped``), ``lock``, ``STOP``, ``stderr.txt``. So a page that was closed finds it again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kd.errors import UserError
from kd.export.bundle import check_has_student, check_packages, export_student, find_export
from kd.runs.failures import failure_message
from kd.runs.process import niceness, open_log, training_environment
from kd.runs.queue import POLL_SECONDS, StopAsked, device_name, slot_path
from kd.runs.run import CLOSED, Run, RunDeleted
from kd.system.files import try_acquire
from kd.system.processes import start_kd

FOLDER = "exporting"
# At most one ``progress`` event in this time.
PROGRESS_SECONDS = 0.5
# Whoever starts one waits so long for another who does.
START_SECONDS = 5.0


def find_job(run: Run, folder: str) -> Run | None:
    """Return the last job of a run in a ``folder`` of its own, at work or closed; ``None`` for none."""
    job = Run(run.path / folder)
    return job if (job.path / "events.jsonl").exists() else None


def is_at_work(job: Run | None) -> bool:
    """Tell whether a job waits or works."""
    return job is not None and job.status() not in CLOSED


def job_of(run: Run) -> Run | None:
    """Return the last export of a run that was started by ``start_export``, at work or closed; ``None`` for none."""
    return find_job(run, FOLDER)


def is_exporting(run: Run) -> bool:
    """Tell whether an export of the run waits or works."""
    return is_at_work(job_of(run))


def check_not_exporting(run: Run, then: str) -> None:
    """Raise ``UserError`` while the run is being exported, with what to do ``then`` ("delete the run")."""
    if is_exporting(run):
        raise UserError(f"Run {run.id} is being exported. Cancel the export or wait until it is done, then {then}.")


def make_job(run: Run, job: Run, **asked: object) -> None:
    """Make the folder of a job of a run, in the place of the one before, with the run's settings and what was ``asked``.

    Raises ``OSError`` where nothing can be written.
    """
    shutil.rmtree(job.path, ignore_errors=True)
    job.path.mkdir()
    (job.path / "config.json").write_text(json.dumps({**run.settings(), "created": time.time(), **asked}))
    (job.path / "events.jsonl").write_text(json.dumps({"event": "created", "time": time.time()}) + "\n")


@contextmanager
def starting(run: Run, what: str) -> Iterator[None]:
    """Let only one caller at a time start ``what`` ("export", "push") of a run: two clicks may come at the same moment.

    Raises ``UserError`` where another takes long to, or where nothing can be written.
    """
    try:
        with FileLock(run.path / f"{what}.start.lock", timeout=START_SECONDS):
            yield
    except Timeout as busy:
        raise UserError(
            f"Another {what} of run {run.id} is being started at this moment. Look again in some seconds."
        ) from busy
    except OSError as error:
        raise UserError(
            f"The {what} of run {run.id} cannot be started: nothing can be written to {run.path} ({error.strerror or error})."
        ) from error


def start_export(run: Run) -> Run:
    """Start exporting a run's student, to all formats, in a process that outlives this one; return the job.

    One that is at work already is returned as it is. Raises ``UserError`` where there is no student, the run is at work, a
    package is missing, or nothing can be written.
    """
    check_packages()
    check_has_student(run)
    if run.is_locked():
        raise UserError(f"Run {run.id} is at work. Export its student once it is done or stopped.")
    job = Run(run.path / FOLDER)
    with starting(run, "export"):
        if is_exporting(run):
            return job
        make_job(run, job)
        with open_log(job) as log:
            start_kd(
                "export", str(run.path), "--job",
                environment=training_environment(run.config().device), nice=niceness(run), stdout=log, stderr=log,
            )  # fmt: skip
    return job


def work_on_export(run: Run, prepare: Callable[[], None] = lambda: None) -> None:
    """Export a run's student as its job says, holding the job's lock and the device; every ending is an event.

    ``prepare`` is called once the job's lock is held: what takes seconds to import must not look like a process that is gone.

    Raises what went wrong, after the ``failed`` event has said it in words.
    """
    job = Run(run.path / FOLDER)
    told = 0.0

    def progress(done: int, of: int) -> None:
        nonlocal told
        if job.stop_asked():
            raise StopAsked
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            job.append("progress", phase="export", done=done, of=of)

    with job.work():
        try:
            prepare()
            with _slot(job, slot_path(run.path.parent, device_name(run.config().device))):
                job.begin(resume=False)
                found = export_student(run, progress=progress)
            marked = [name for name, one in found["files"].items() if not one["success"]]
            job.close("done", seconds=found["seconds"], marked=marked)
        except (StopAsked, KeyboardInterrupt):
            earlier = " An earlier export is still there." if find_export(run) else ""
            job.close("stopped", message=f"Cancelled. Nothing of it was kept.{earlier}")
        except RunDeleted:
            raise
        except BaseException as error:
            if job.path.exists():  # else the run was deleted meanwhile
                kind = error.kind if isinstance(error, UserError) else ""
                job.close("failed", message=failure_message(error, job), error=type(error).__name__, kind=kind)
            raise


@contextmanager
def _slot(job: Run, path: Path) -> Iterator[None]:
    """Hold the device once no run has it. Raises ``StopAsked`` where the job is cancelled before."""
    lock = FileLock(path)
    if not try_acquire(lock):
        job.append("queued", place=1, device=job.config().device)
        while not try_acquire(lock):
            if job.stop_asked():
                raise StopAsked
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()
