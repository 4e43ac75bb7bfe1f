"""Start a run in a process of its own, and let one run at a time have a device."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from kd.runs import CLOSED, LIFECYCLE, Run, RunDeleted, RunError, list_runs

POLL_SECONDS = 0.25
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""The GNU allocator's settings for a process that trains on the CPU: it keeps freed memory. By default it hands large
blocks back at once, and each step fills them with zeros again, page by page, before anything is computed."""


class StopAsked(Exception):
    """The run was asked to stop."""


def start(run: Run, resume: bool = False) -> subprocess.Popen:
    """Work on ``run`` in a detached process, which outlives this one. Its output goes to ``stderr.txt``.

    Raises ``RunError`` where nothing can be written to the run's folder.
    """
    environment = dict(os.environ)
    home = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environment.get("PYTHONPATH")]))
    environment |= gpu_of_its_own(device_name(run.config().device)) | KEEP_MEMORY
    command = [sys.executable, "-m", "kd", "run", str(run.path), *(["--resume"] if resume else [])]
    try:
        log = (run.path / "stderr.txt").open("ab")
    except OSError as error:
        raise RunError(run.not_writable(error)) from error
    with log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )


@contextmanager
def slot(run: Run, device: str) -> Iterator[None]:
    """Wait until ``run`` is the oldest that waits and the device is free, then hold the device.

    The lock dies with the process that holds it. While it waits, the run's place is an event (``queued``, ``place``
    1 for the next). Raises ``StopAsked`` if the run is asked to stop before its turn.
    """
    lock = FileLock(slot_path(run.path.parent, device))
    said = None
    while True:
        if run.stop_asked():
            raise StopAsked
        ahead = waiting_before(run, device)
        if not ahead and taken(lock):
            break
        if said != len(ahead):
            said = len(ahead)
            run.append("queued", place=said + 1, device=device)
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def taken(lock: FileLock) -> bool:
    """Take a lock if it is free now; whether it was."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def device_name(asked: str) -> str:
    """The device that a run waits for, found without importing torch: a waiting run should be small."""
    has_gpu = Path("/dev/nvidia0").exists() and "+cpu" not in version("torch")
    if asked == "cuda" or (asked == "auto" and has_gpu):
        return "cuda:0"
    return "cpu" if asked == "auto" else asked


def gpu_of_its_own(device: str) -> dict[str, str]:
    """The environment in which a process sees one GPU only, as ``cuda:0``: `Trainer` would spread over all it sees."""
    if not device.startswith("cuda:"):
        return {}
    nth = int(device.removeprefix("cuda:"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {
        "CUDA_VISIBLE_DEVICES": visible[nth] if nth < len(visible) and visible[nth] else str(nth),
        "KD_DEVICE": "cuda:0",
    }


def slot_path(folder: Path, device: str) -> Path:
    """The lock file of a device: one for the CPU, one for each GPU."""
    path = Path(folder) / ".slots" / f"{device.replace(':', '-')}.lock"
    path.parent.mkdir(exist_ok=True)
    return path


def waiting_before(run: Run, device: str) -> list[Run]:
    """The older runs that wait for the same device and are alive."""

    def waits(other: Run) -> bool:
        try:
            queued = other.is_locked() and LIFECYCLE[other.last(*LIFECYCLE)["event"]] == "queued"
            return queued and device_name(other.config().device) == device
        except RunDeleted:  # between the listing and the look
            return False

    return [other for other in list_runs(run.path.parent) if other.id < run.id and waits(other)]


def busy(folder: Path, but: Run | None = None) -> bool:
    """Whether a run in ``folder`` (``but`` this one) trains now: what is timed meanwhile is slower than it would be."""
    return any(_is_running(run) for run in list_runs(folder)[:20] if run != but)


def _is_running(run: Run) -> bool:
    try:
        return run.status() == "running"
    except RunDeleted:
        return False


def follow(run: Run, on_event: Callable[[dict], None], process: subprocess.Popen | None = None, cursor: int = 0) -> str:
    """Hand every event from ``cursor`` on to ``on_event`` as it comes, until the run is closed; return its status.

    ``process`` is the one that was just started for it: it is waited for, and if it ends without an event, that is a
    ``RunError`` with its last words, not a long silence.
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
            raise RunError(f"The run's process ended before it began: {words[-1] if words else 'it said nothing'}")
        if ended and status in CLOSED:
            return status
        time.sleep(POLL_SECONDS)


def finish(run: Run, on_event: Callable[[dict], None], new: bool = False) -> str:
    """Have ``run``, which is not done, worked on until it is closed; return its status. A ``new`` one is started, an
    older one resumed, unless its process has outlived the one that started it: then it is only followed."""
    if not new and run.status() not in CLOSED:
        status = follow(run, on_event, cursor=run.read()[1])
        if status != "died":
            return status
    events, cursor = run.read()
    begun = any(event["event"] in ("started", "resumed") for event in events)
    return follow(run, on_event, start(run, resume=begun), cursor)
