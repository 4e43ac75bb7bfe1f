"""Start the page as a process of its own, wait for its first answer, and end it and its runs."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kd.errors import UserError
from kd.runs.run import CLOSED, Run, RunDeleted
from kd.runs.store import list_runs
from kd.system.processes import is_alive, kd_environment

# What Python is told, to serve the page.
APP = ("-m", "kd", "app")

# Seconds that the page may take to answer, a run to stop, and its process to end after that.
ANSWER_SECONDS = 60
STOP_SECONDS = 60
EXIT_SECONDS = 10


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make an empty folder, and delete it in the end."""
    with tempfile.TemporaryDirectory(prefix="kd-bench-page-") as folder:
        yield Path(folder)


@contextmanager
def serve(folder: Path, *flags: str, **variables: str) -> Iterator[tuple[str, float]]:
    """Run ``python [flags] -m kd app`` over ``folder``, with these environment variables.

    Yields its address and the seconds until it answered; its output goes to ``page.txt``. In the end its runs are
    stopped, then the page itself. Raises ``UserError`` where it does not start.
    """
    port, log = free_port(), folder / "page.txt"
    began = time.perf_counter()
    process = start_page(folder, environment(folder, port) | variables, flags)
    try:
        wait_for_page(process, port, log)
        yield f"http://127.0.0.1:{port}/", time.perf_counter() - began
    finally:
        try:
            for run in list_runs(folder / "runs"):
                stop_and_wait(run)
        finally:
            end(process)


def start_page(folder: Path, variables: dict[str, str], flags: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start the page in ``folder`` with this environment; its output is added to ``page.txt``.

    It has a session of its own, so that Ctrl-C in a terminal ends us first, and we end the page in order.
    """
    with (folder / "page.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *flags, *APP],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def environment(folder: Path, port: int) -> dict[str, str]:
    """Return the environment of a page whose runs, cache and uploads are in ``folder``, apart from the user's own."""
    kept = {name: value for name, value in kd_environment().items() if name not in ("KD_SHARED", "SPACE_ID")}
    return {
        **kept,
        "KD_RUNS_DIR": str(folder / "runs"),
        "KD_CACHE_DIR": str(folder / "cache"),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for_page(process: subprocess.Popen, port: int, log: Path) -> None:
    """Wait until the page answers. Raises ``UserError`` if its process ends, or after ``ANSWER_SECONDS``."""
    end = time.monotonic() + ANSWER_SECONDS
    while not answers(port):
        if process.poll() is not None or time.monotonic() > end:
            lines = [line for line in log.read_text(errors="replace").splitlines() if "import time:" not in line]
            raise UserError(f"The page does not answer: {lines[-1] if lines else 'it printed nothing'}")
        time.sleep(0.02)


def answers(port: int) -> bool:
    """Tell whether ``GET /`` is answered with 200. urllib would ask a proxy, so it is not used."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def end(process: subprocess.Popen) -> None:
    """End the process of the page; kill it if that does not help."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_and_wait(run: Run) -> None:
    """Ask a run to stop, kill it after ``STOP_SECONDS``, and wait until its process has ended.

    A process ends a second after its run is closed, and would slow down what is measured next.
    """
    with suppress(RunDeleted):
        if run.status() not in CLOSED:
            run.ask_to_stop()
            if not until(lambda: run.status() in CLOSED and not run.is_locked(), STOP_SECONDS):
                kill(run)
        if started := run.last("started"):
            until(lambda: not is_alive(started["pid"]), EXIT_SECONDS)


def kill(run: Run) -> None:
    """Kill the process of a run and those that it started."""
    if started := run.last("started"):
        with suppress(ProcessLookupError):
            os.killpg(started["pid"], signal.SIGKILL)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until ``condition()`` is true, for at most so many seconds, and return whether it is."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met
