"""Start a run in a process of its own, and let one run at a time have a device."""

import subprocess
import time
from collections.abc import Callable

from kd.errors import UserError
from kd.runs.queue import POLL_SECONDS, device_name, single_gpu_environment
from kd.runs.run import CLOSED, Run
from kd.system.processes import kd_command, kd_environment

NICE = 10
"""By so much a run that the page has started on a CPU lets others go first."""

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""The GNU allocator's settings for a process that trains on the CPU: it keeps freed memory. By default it hands large
blocks back at once, and each step fills them with zeros again, page by page, before anything is computed."""


def start_run(run: Run, resume: bool = False, behind: bool = False) -> subprocess.Popen:
    """Work on ``run`` in a detached process, which outlives this one. Its output goes to ``stderr.txt``. On a CPU it
    trains with low priority if it is to stand ``behind`` whoever waits for an answer of the page.

    Raises ``UserError`` where nothing can be written to the run's folder.
    """
    environment = kd_environment() | single_gpu_environment(device_name(run.config().device)) | KEEP_MEMORY
    going_on = ["--resume"] if resume else []
    command = kd_command("run", str(run.path), *going_on, *niceness(run, behind))
    try:
        log = (run.path / "stderr.txt").open("ab")
    except OSError as error:
        raise UserError(run.not_writable(error)) from error
    if resume:
        run.forget_stop()
    with log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )


def niceness(run: Run, behind: bool) -> list[str]:
    """The flag of ``kd run`` for the priority of a run (or a sweep: its runs inherit it) that is ``behind`` the page."""
    return [f"--nice={NICE}"] if behind and device_name(run.config().device) == "cpu" else []


def follow_run(
    run: Run, on_event: Callable[[dict], None], process: subprocess.Popen | None = None, cursor: int = 0
) -> str:
    """Hand every event from ``cursor`` on to ``on_event`` as it comes, until the run is closed; return its status.

    ``process`` is the one that was just started for it: it is waited for, and if it ends without an event, that is a
    ``UserError`` with its last words, not a long silence.
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
    """Have ``run``, which is not done, worked on until it is closed; return its status. A ``new`` one is started, an
    older one resumed, unless its process has outlived the one that started it: then it is only followed."""
    if not new and run.status() not in CLOSED:
        status = follow_run(run, on_event, cursor=run.read()[1])
        if status != "died":
            return status
    events, cursor = run.read()
    # One that was stopped in the queue is no new one either.
    begun = any(event["event"] in ("started", "resumed", *CLOSED) for event in events)
    return follow_run(run, on_event, start_run(run, resume=begun), cursor)
