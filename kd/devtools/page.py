"""The page as its user meets it, measured on this machine in a real browser: how soon it answers, how soon a click on
Distill draws its first point and where that time goes, what a poll costs, and what watching costs the training.

It needs Playwright and a Chromium, as the tests do. The page and its runs live in a temporary folder.
"""

import http.client
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.errors import UserError
from kd.runs.run import CLOSED, Run, RunDeleted
from kd.runs.store import list_runs
from kd.system.processes import is_alive

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserType, Page, Request

APP = Path(__file__).resolve().parent.parent.parent / "app.py"

CHROMIUM = Path("/usr/bin/chromium")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

HEAVY = ("torch", "transformers")
"""What the page's process should not import."""

STAGES = {
    "created": "the click reaches the server, the run's folder is made",
    "started": "the run's process begins and takes the device",
    "loaded": "libraries, dataset, teacher and student are loaded",
    "data": "pictures are decoded, or found in the cache",
    "models": "parameters and FLOPs are counted",
    "teacher": "the teacher is checked on validation",
    "targets": "the teacher answers for every view, or the cache does",
    "training": "the trainer is built",
    "step": "the first step",
    "page": "the page asks, and draws the point",
}
"""What lies between the click and the first point: a run's events, ``loaded`` (when decoding began) and ``page``."""

ROUNDS = 3

EPOCHS = 1000
"""Of the run that is watched: more than it will have time for."""

WINDOW_SECONDS = 8.0

SETTLE_SECONDS = 2.0
"""After the page is opened or closed this long is left out: drawing all that was missed costs more than watching."""

ANSWER_SECONDS = 60

POINT_SECONDS = 180

STOP_SECONDS = 60

LEAVE_SECONDS = 10

POINTS = "(document.querySelector('#live [data-figure=losses]')?.data?.[0].x.length ?? 0)"

ENDED = "['failed', 'died', 'stopped'].includes(document.querySelector('#live .kd-run')?.dataset.status)"


def measure_page(rounds: int = ROUNDS, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Everything, in about two minutes on two cores; ``rounds`` is 1 or more, ``tell`` is called with what is begun.

    Returns:
        ``start_seconds``: from process start to the first answer (median of ``rounds``).
        ``imports``: whether the page's process imported torch and transformers, up to the end of the measurement.
        ``first_point_seconds``: ``cold`` (nothing in the cache of pixels and targets) and ``warm``; ``stages``: the
        same times in parts, by the names in ``STAGES``.
        ``poll``: medians of ``asked_bytes`` and ``answered_bytes`` (bodies), ``header_bytes`` (both ways) and
        ``milliseconds`` as the browser sees them, over ``n`` polls of a run that trains.
        ``watching``: see ``throughput``.
        ``machine``: ``system``, ``cores``, ``python``, ``chromium``.

    Raises:
        UserError: where Playwright, a Chromium or ``app.py`` is missing, or the page or a run fails.
    """
    with browser() as chromium, temporary_folder() as folder:
        tell(f"starting the page {rounds} times")
        started = start_seconds(rounds)
        with serve(folder, "-X", "importtime") as (url, _):
            tell("first click on Distill, nothing in the cache")
            page, run, cold = first_point(chromium, url, folder)
            page.context.close()
            stop(run)
            tell("second click")
            page, run, warm = first_point(chromium, url, folder, EPOCHS)
            tell(f"{rounds} times {WINDOW_SECONDS:g} s of training with the page open, then closed")
            polls, watching = watch(page, f"{url}?run={run.id}", run, rounds)
        clicks = {"cold": cold, "warm": warm}
        return {
            "start_seconds": round(started, 2),
            "imports": imported((folder / "page.txt").read_text(errors="replace")),
            "first_point_seconds": {name: round(sum(parts.values()), 2) for name, parts in clicks.items()},
            "stages": clicks,
            "poll": polls,
            "watching": watching,
            "machine": {
                "system": platform.platform(terse=True),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "chromium": chromium.version,
            },
        }


def rows(found: dict[str, Any]) -> list[list[str]]:
    """What ``measure`` returned, a row each: what, how much, and how it was found."""
    poll, watching, imports = found["poll"], found["watching"], found["imports"]
    speed, seconds = watching["images_per_second"], found["first_point_seconds"]
    said = {True: "imported", False: "not imported", None: "unknown"}
    return [
        ["the page answers", f"{found['start_seconds']:.1f} s", ", ".join(f"{n} {said[imports[n]]}" for n in HEAVY)],
        ["click to first point, cold", f"{seconds['cold']:.1f} s", "nothing in the cache"],
        ["click to first point, warm", f"{seconds['warm']:.1f} s", "pixels and targets in the cache"],
        *(
            [f"  {name}", f"{found['stages']['cold'][name]:.1f}, {found['stages']['warm'][name]:.1f} s", meaning]
            for name, meaning in STAGES.items()
        ),
        ["a poll asks", f"{poll['asked_bytes']} bytes", f"and {poll['header_bytes']} bytes of headers, both ways"],
        ["a poll answers", f"{poll['answered_bytes']} bytes", f"median of {poll['n']} polls while a run trains"],
        ["a poll takes", f"{poll['milliseconds']:.0f} ms", "as the browser sees it"],
        ["training, page open", f"{speed['with']:,.0f} images/s", f"{watching['events']['with']} step events"],
        ["training, page closed", f"{speed['without']:,.0f} images/s", f"{watching['events']['without']} step events"],
        ["open against closed", f"{watching['ratio']:.3f}", f"by round: {', '.join(map(str, watching['rounds']))}"],
    ]


# --- The page


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kd-bench-page-") as folder:
        yield Path(folder)


def start_seconds(rounds: int) -> float:
    """Seconds from the start of ``python app.py`` to its first answer, each time in a new folder; the median."""
    seconds = []
    for _ in range(rounds):
        with temporary_folder() as folder, serve(folder) as (_, took):
            seconds.append(took)
    return statistics.median(seconds)


@contextmanager
def serve(folder: Path, *flags: str, **variables: str) -> Iterator[tuple[str, float]]:
    """``python [flags] app.py`` over ``folder``, with these environment variables: its address, and the seconds until it
    answered. Its output goes to ``page.txt``. In the end its runs are stopped, and it too.

    Raises ``UserError`` where it does not come up.
    """
    if not APP.exists():
        raise UserError(f"There is no {APP}. The page is measured from a checkout of the project.")
    port = free_port()
    with (folder / "page.txt").open("wb") as log:
        began = time.perf_counter()
        # In a session of its own: Ctrl-C is for us, and we end it in order.
        process = subprocess.Popen(
            [sys.executable, *flags, str(APP)], cwd=folder, env=environment(folder, port) | variables, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_page(process, port, folder / "page.txt")
        yield f"http://127.0.0.1:{port}/", time.perf_counter() - began
    finally:
        try:
            for run in list_runs(folder / "runs"):
                stop(run)
        finally:
            end(process)


def environment(folder: Path, port: int) -> dict[str, str]:
    """The environment of a page that touches nothing of the user's: its runs, cache and uploads are in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if name not in ("KD_SHARED", "SPACE_ID")}
    return {
        **kept,
        "KD_RUNS_DIR": str(folder / "runs"),
        "KD_CACHE_DIR": str(folder / "cache"),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for_page(process: subprocess.Popen, port: int, log: Path) -> None:
    """Until ``GET /`` is answered with 200. Raises ``UserError`` if the process ends, or after ``ANSWER_SECONDS``."""
    end = time.monotonic() + ANSWER_SECONDS
    while not answers(port):
        if process.poll() is not None or time.monotonic() > end:
            lines = [line for line in log.read_text(errors="replace").splitlines() if "import time:" not in line]
            raise UserError(f"{APP} does not answer: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.02)


def answers(port: int) -> bool:
    """Whether ``GET /`` is answered with 200. Not through urllib, which would ask a proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def imported(log: str) -> dict[str, bool | None]:
    """Which of ``HEAVY`` a process imported, from what ``python -X importtime`` printed; ``None`` where it printed
    nothing."""
    names = {line.rsplit("|", 1)[1].strip() for line in log.splitlines() if line.startswith("import time:")}
    return {name: name in names if names else None for name in HEAVY}


def end(process: subprocess.Popen) -> None:
    """End the page's process, kindly first."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop(run: Run) -> None:
    """Ask a run to stop, kill it after ``STOP_SECONDS``, and wait until its process has gone: it takes a second to
    leave once the run is closed, and would slow what is measured next."""
    with suppress(RunDeleted):
        if run.status() not in CLOSED:
            run.ask_to_stop()
            if not until(lambda: run.status() in CLOSED and not run.is_locked(), STOP_SECONDS):
                kill(run)
        begun = run.last("started")
        if begun:
            until(lambda: not is_alive(begun["pid"]), LEAVE_SECONDS)


def until(what: Callable[[], bool], seconds: float) -> bool:
    """Wait for ``what()`` to be true, so long at most; whether it was."""
    end = time.monotonic() + seconds
    while not (true := what()) and time.monotonic() < end:
        time.sleep(0.1)
    return true


def kill(run: Run) -> None:
    """Kill the process of a run and those that it started."""
    begun = run.last("started")
    if begun:
        with suppress(ProcessLookupError):
            os.killpg(begun["pid"], signal.SIGKILL)


# --- The browser


@contextmanager
def browser() -> "Iterator[Browser]":
    """A Chromium. Raises ``UserError`` where it or Playwright is missing, or it gives up."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as problem:
        raise UserError(
            "The page is measured in a browser, and Playwright is not installed: pip install 'playwright>=1.60,<2'"
        ) from problem
    try:
        with sync_playwright() as playwright:
            chromium = open_chromium(playwright.chromium)
            try:
                yield chromium
            finally:
                with suppress(Error):
                    chromium.close()
    except Error as problem:
        raise UserError(f"The browser did not get on: {problem.message.splitlines()[0]}") from problem


def open_chromium(kind: "BrowserType") -> "Browser":
    """The system's Chromium, or else Playwright's own. Raises ``UserError`` where there is neither."""
    from playwright.sync_api import Error

    path = CHROMIUM if CHROMIUM.exists() else None
    try:
        # Left to Playwright, a Ctrl-C would take the browser away from under us.
        return kind.launch(executable_path=path, args=FLAGS, handle_sigint=False)
    except Error as problem:
        raise UserError(
            f"No Chromium could be started: {problem.message.splitlines()[0]}. Install one: apt-get install chromium, "
            "or python -m playwright install chromium"
        ) from problem


def first_point(
    chromium: "Browser", url: str, folder: Path, epochs: int | None = None
) -> "tuple[Page, Run, dict[str, float]]":
    """A new visitor clicks on Distill, and nothing else unless ``epochs`` are given (which change nothing before the
    first step): the page, the run, and seconds by stage until the first point is drawn.

    Raises ``UserError`` where the run ends before that.
    """
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(ANSWER_SECONDS * 1000)
    page.goto(url)
    if epochs:
        page.locator("#set-epochs input").fill(str(epochs))
    page.locator("#live .kd-empty").wait_for()  # the page has asked whether there is a run to show
    page.evaluate("addEventListener('click', () => { window.clicked = Date.now() }, { capture: true })")
    page.locator("#distill").click()
    drawn = page.wait_for_function(
        f"{POINTS} ? Date.now() : {ENDED} ? -1 : 0", polling=50, timeout=POINT_SECONDS * 1000
    ).json_value()
    run = list_runs(folder / "runs")[0]
    if drawn < 0:
        raise UserError(f"The run ended before its first step: {page.locator('#live [role=status]').inner_text()}")
    return page, run, stages(run.events(), page.evaluate("window.clicked") / 1000, drawn / 1000)


def stages(events: list[dict[str, Any]], clicked: float, drawn: float) -> dict[str, float]:
    """Seconds of each of ``STAGES`` between the click and the drawing of the first point (Unix seconds)."""
    first = {event["event"]: event for event in reversed(events)}
    moments = {name: first[name]["time"] for name in STAGES if name in first}
    moments |= {"loaded": first["data"]["time"] - first["data"]["seconds"], "page": drawn}
    seconds, before = {}, clicked
    for name in STAGES:
        seconds[name], before = round(moments[name] - before, 3), moments[name]
    return seconds


def watch(page: "Page", url: str, run: Run, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """``poll`` and ``watching``: the page is opened on a run that trains and closed again, ``rounds`` times.

    Both in one run, side by side: on a machine with other users, two runs one after the other differ by more than
    watching costs. Chromium stays, on an empty page; only the watching comes and goes. Playwright's own share in the
    watching, a small one, is in the figure.
    """
    windows: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    polls: list[dict[str, float]] = []
    for _ in range(rounds):
        page.goto(url)
        page.wait_for_function(f"{POINTS} > 0", polling=100)
        asked, window = look(page)
        windows["with"].append(window)
        polls += [poll_of(request) for request in asked if '"poll"' in (request.post_data or "")]
        page.goto("about:blank")
        windows["without"].append(look(page)[1])
    return medians(polls), throughput(run.events(), windows)


def look(page: "Page") -> "tuple[list[Request], tuple[float, float]]":
    """One window, after a while for settling: the requests that were answered in it, its ends (Unix seconds)."""
    asked: list[Request] = []

    def note(request: "Request") -> None:
        asked.append(request)

    page.wait_for_timeout(SETTLE_SECONDS * 1000)
    page.on("requestfinished", note)
    began = time.time()
    page.wait_for_timeout(WINDOW_SECONDS * 1000)
    window = began, time.time()
    page.remove_listener("requestfinished", note)
    return asked, window


def poll_of(request: "Request") -> dict[str, float]:
    """What one request cost: bytes, and milliseconds from its start to the last byte of its answer."""
    sizes = request.sizes()
    return {
        "asked_bytes": sizes["requestBodySize"],
        "answered_bytes": sizes["responseBodySize"],
        "header_bytes": sizes["requestHeadersSize"] + sizes["responseHeadersSize"],
        "milliseconds": request.timing["responseEnd"],
    }


# --- From events and windows to figures


def medians(polls: list[dict[str, float]]) -> dict[str, Any]:
    """The median of each figure, and how many polls there were (``n``). Raises ``UserError`` if there was none."""
    if not polls:
        raise UserError("The page did not ask for news of the run while it was open.")
    middle = {name: statistics.median(poll[name] for poll in polls) for name in polls[0]}
    return {name: round(value, 1) if name == "milliseconds" else round(value) for name, value in middle.items()} | {
        "n": len(polls)
    }


def throughput(events: list[dict[str, Any]], windows: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """What watching costs: ``windows`` are the spans (Unix seconds) ``with`` a page open and ``without``, in turns.

    Returns:
        ``images_per_second``: the medians over the step events wholly inside a window, ``with`` and ``without``;
        ``ratio``: the first through the second, below 1 where watching slows training; ``rounds``: the ratio in each
        round alone, for an idea of the noise; ``events``: how many there were.

    Raises:
        UserError: where a window has no step event wholly inside.
    """
    speeds = {name: [speeds_inside(events, window) for window in spans] for name, spans in windows.items()}
    if not all(found for spans in speeds.values() for found in spans):
        raise UserError("The run told of no step while it was looked at: it ended early, or a step takes seconds.")
    middle = {name: statistics.median(chain(*spans)) for name, spans in speeds.items()}
    pairs = zip(speeds["with"], speeds["without"], strict=True)
    return {
        "images_per_second": {name: round(value, 1) for name, value in middle.items()},
        "ratio": round(middle["with"] / middle["without"], 3),
        "rounds": [round(statistics.median(one) / statistics.median(other), 3) for one, other in pairs],
        "events": {name: sum(map(len, spans)) for name, spans in speeds.items()},
    }


def speeds_inside(events: list[dict[str, Any]], window: tuple[float, float]) -> list[float]:
    """``images_per_second`` of the step events that lie wholly in a window. Each tells of the time since the event
    before it, at most."""
    return [
        event["images_per_second"]
        for before, event in pairwise(events)
        if event["event"] == "step" and window[0] <= before["time"] and event["time"] <= window[1]
    ]
