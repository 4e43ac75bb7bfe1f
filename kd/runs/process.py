"""Work on a run in a process of its own: start it, follow it, and close it with an event whatever ends it."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from kd.errors import UserError
from kd.runs.failures import failure_message
from kd.runs.pieces import PauseAsked
from kd.runs.queue import POLL_SECONDS, StopAsked, device_name, devices_of, single_gpu_environment
from kd.runs.run import CLOSED, Run
from kd.system.processes import start_kd

# By so much a run that the page has started on a CPU is lower in priority than the page.
NICE = 10

# Settings of a process that trains on the CPU.
CPU_SETTINGS = {
    # The GNU allocator keeps freed memory. By default it hands large blocks back at once, and each step fills them with
    # zeros again, page by page, before anything is computed.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # A thread that has done its share of an operation waits for the others by spinning, by default for milliseconds.
    # Where another process has the core of one of them, that takes the time in which it would end. On two cores, beside a
    # page in a browser, resnet_8 trained on 299 images/s so, and on 5,877 where threads spin for microseconds and then
    # sleep; with nothing beside it no more than a tenth is lost. It is the count that GNU OpenMP takes by itself where it
    # knows of more threads than cores.
    "GOMP_SPINCOUNT": "1000",
}


def start_run(run: Run, resume: bool = False, behind: bool = False) -> subprocess.Popen:
    """Work on ``run`` in a detached process, which outlives this one; its output goes to ``stderr.txt``.

    ``behind``: on a CPU it has low priority, so that whoever waits for an answer of the page goes first. Raises
    ``UserError`` where nothing can be written to the run's folder.
    """
    config = run.config()
    environment = training_environment(config.device, config.processes)
    flags = ["--resume"] if resume else []
    with open_log(run) as log:
        if resume:
            run.forget_stop()
        return start_kd(
            "run", str(run.path), *flags,
            environment=environment, nice=niceness(run) if behind else 0, stdout=log, stderr=log,
        )  # fmt: skip


def open_log(run: Run) -> BinaryIO:
    """Open the file for the output of the run's process. Raises ``UserError`` where it cannot be written."""
    try:
        return (run.path / "stderr.txt").open("ab")
    except OSError as error:
        raise UserError(run.not_writable(error)) from error


def training_environment(device: str, processes: int = 1) -> dict[str, str]:
    """Return the variables for a process that trains on the ``device`` of a configuration, one of so many; what is set already
    stays."""
    settings = {name: os.environ.get(name, value) for name, value in CPU_SETTINGS.items()}
    return single_gpu_environment(*devices_of(device, processes)) | settings


def niceness(run: Run) -> int:
    """Return by how much a run (or a sweep: its runs inherit it) that gives way to the page is lower in priority."""
    return NICE if device_name(run.config().device) == "cpu" else 0


@contextmanager
def closed_by_an_event(run: Run) -> Iterator[None]:
    """Close a run or a sweep that this process works on, whatever ends the work: ``stopped``, ``paused`` or ``failed``.

    Being asked to stop or to pause is no error. Every error is raised again after the event has said it in words. Nothing is written
    where the lock was lost to another process. Raises ``RunDeleted`` where the folder is gone.
    """
    try:
        run.keep_reserve()
        yield
    except (StopAsked, KeyboardInterrupt):
        run.close("stopped", message=f"Stopped. {run.goes_on}")
    except PauseAsked as pause:
        if run.stop_asked():  # just now: nobody is to go on with it
            run.close("stopped", message=f"Stopped. {run.goes_on}")
        else:
            run.close("paused", reason=pause.reason, message=str(pause))
    except BaseException as error:
        if not run.is_taken():
            kind = error.kind if isinstance(error, UserError) else ""
            run.close("failed", message=failure_message(error, run), error=type(error).__name__, kind=kind)
        raise


def follow_run(
    run: Run, on_event: Callable[[dict], None], process: subprocess.Popen | None = None, cursor: int = 0
) -> str:
    """Hand every event from ``cursor`` on to ``on_event`` as it comes, until the run is closed; return its status.

    ``process`` is the one that was just started for it: it is waited for. Raises ``UserError`` with its last words where
    it ends without an event.
    """
    said = process is None
    while True:
        ended = process is None or process.poll() is not None
        status = run.status()
        events, cursor = run.read(cursor)
        for event in events:
            on_event(event)
        said = said or any(event["event"] != "created" for event in events)
        if ended and not said:
            words = (run.path / "stderr.txt").read_text(errors="replace").strip().splitlines()
            raise UserError(f"The run's process ended before it began: {words[-1] if words else 'it said nothing'}")
        if ended and status in CLOSED:
            return status
        time.sleep(POLL_SECONDS)


def finish_run(run: Run, on_event: Callable[[dict], None], new: bool = False) -> str:
    """Have ``run``, which is not done, worked on until it is closed; return its status.

    A ``new`` one is started. An older one is resumed, or only followed where a process works on it still.
    """
    if not new and run.status() not in CLOSED:
        status = follow_run(run, on_event, cursor=run.read()[1])
        if status != "died":
            return status
    events, cursor = run.read()
    # One that was stopped in the queue is no new one either.
    begun = any(event["event"] in ("started", "resumed", *CLOSED) for event in events)
    return follow_run(run, on_event, start_run(run, resume=begun), cursor)
