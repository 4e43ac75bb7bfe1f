"""Measure the page in a real browser on this machine.

How soon it answers, how soon a click on Distill draws its first point and where that time goes, what a poll costs, and
what an open page costs the training. It needs Playwright and Chromium, as the tests do. The page and its runs are in a
temporary folder.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.devtools.server import ANSWER_SECONDS, serve, stop_and_wait, temporary_folder
from kd.errors import UserError
from kd.runs.run import Run
from kd.runs.store import list_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserType, Page, Request

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

# What the page's process should not import.
HEAVY = ("torch", "transformers")

# What happens between the click and the first point: events of a run, ``loaded`` (when decoding begins) and ``page``.
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

ROUNDS = 3

# Epochs of the run that trains while the page is opened and closed: more than it has time for.
EPOCHS = 1000

# Throughput is measured over windows of this length.
WINDOW_SECONDS = 8.0
# Left out after the page was opened or closed: to draw all points so far costs more than to stay open.
SETTLE_SECONDS = 2.0
# How long the first point may take.
POINT_SECONDS = 180

# JavaScript: how many points the chart of losses has, which is not the example's, and whether the run has ended before its time.
POINTS = "(document.querySelector('#live .kd-run:not([data-example]) [data-figure=losses]')?.data?.[0].x.length ?? 0)"
ENDED = "['failed', 'died', 'stopped'].includes(document.querySelector('#live .kd-run')?.dataset.status)"


def measure_page(rounds: int = ROUNDS, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure everything, in about two minutes on two cores. ``tell`` is called with each step as it begins.

    Returns:
        ``start_seconds``: from process start to the first answer (median of ``rounds``). ``imports``: whether the
        page's process imported torch and transformers, up to the end of the measurement. ``first_point_seconds``:
        ``cold`` (no pixels or targets in the cache) and ``warm``; ``stages``: the same times in parts, by the names
        in ``STAGES``. ``poll``: medians of ``asked_bytes`` and ``answered_bytes`` (bodies), ``header_bytes`` (both
        ways) and ``milliseconds`` as the browser sees them, over ``n`` polls of a run that trains. ``watching``: see
        ``throughput``. ``machine``: ``system``, ``cores``, ``python``, ``chromium``.

    Raises:
        UserError: where Playwright or a Chromium is missing, or the page or a run fails.
    """
    with browser() as chromium, temporary_folder() as folder:
        tell(f"starting the page {rounds} times")
        started = start_seconds(rounds)
        with serve(folder, "-X", "importtime") as (url, _):
            tell("first click on Distill, nothing in the cache")
            page, run, cold = first_point(chromium, url, folder)
            page.context.close()
            stop_and_wait(run)
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
    """Format what ``measure_page`` returned as rows: what was measured, the figure, and a note."""
    poll, watching, imports = found["poll"], found["watching"], found["imports"]
    speed, seconds = watching["images_per_second"], found["first_point_seconds"]
    words = {True: "imported", False: "not imported", None: "unknown"}
    return [
        ["the page answers", f"{found['start_seconds']:.1f} s", ", ".join(f"{n} {words[imports[n]]}" for n in HEAVY)],
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


def start_seconds(rounds: int) -> float:
    """Return the seconds from the start of ``python -m kd app`` to its first answer: the median of ``rounds`` starts."""
    seconds = []
    for _ in range(rounds):
        with temporary_folder() as folder, serve(folder) as (_, took):
            seconds.append(took)
    return statistics.median(seconds)


def imported(log: str) -> dict[str, bool | None]:
    """Tell which of ``HEAVY`` a process imported, from what ``python -X importtime`` printed.

    ``None`` where it printed nothing.
    """
    names = {line.rsplit("|", 1)[1].strip() for line in log.splitlines() if line.startswith("import time:")}
    return {name: name in names if names else None for name in HEAVY}


# --- The browser


@contextmanager
def browser() -> "Iterator[Browser]":
    """Start Chromium. Raises ``UserError`` where it or Playwright is missing, or the browser fails."""
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
        raise UserError(f"The browser failed: {problem.message.splitlines()[0]}") from problem


def open_chromium(kind: "BrowserType") -> "Browser":
    """Start the system's Chromium, or else Playwright's own. Raises ``UserError`` where there is neither."""
    from playwright.sync_api import Error

    path = CHROMIUM if CHROMIUM.exists() else None
    try:
        # With Playwright's own handler, Ctrl-C would end the browser before we have ended the page.
        return kind.launch(executable_path=path, args=FLAGS, handle_sigint=False)
    except Error as problem:
        raise UserError(
            f"No Chromium could be started: {problem.message.splitlines()[0]}. Install one: apt-get install chromium, "
            "or python -m playwright install chromium"
        ) from problem


def first_point(
    chromium: "Browser", url: str, folder: Path, epochs: int | None = None
) -> "tuple[Page, Run, dict[str, float]]":
    """Open the page as a new visitor and click on Distill; return the page, the run and the seconds of each stage until
    the first point is drawn.

    If ``epochs`` are given they are set first, which changes nothing before the first step. Raises ``UserError``
    where the run ends too early.
    """
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(ANSWER_SECONDS * 1000)
    page.goto(url)
    if epochs:
        page.locator("#set-epochs input").fill(str(epochs))
    page.locator("#live [data-example]").wait_for()  # the page knows now that there is no run of one's own to show
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
    """Return the seconds of each of ``STAGES``, from the click until the first point is drawn (both Unix seconds)."""
    first = {event["event"]: event for event in reversed(events)}
    moments = {name: first[name]["time"] for name in STAGES if name in first}
    moments |= {"loaded": first["data"]["time"] - first["data"]["seconds"], "page": drawn}
    seconds, before = {}, clicked
    for name in STAGES:
        seconds[name], before = round(moments[name] - before, 3), moments[name]
    return seconds


def watch(page: "Page", url: str, run: Run, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open the page on a run that trains and close it again, ``rounds`` times; return ``poll`` and ``watching``.

    One run is measured with and without the page: on a machine with other users, two runs differ by more than an open
    page costs. The browser stays open on an empty page. The figure includes what Playwright itself costs, which is
    little.
    """
    windows: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    polls: list[dict[str, float]] = []
    for _ in range(rounds):
        page.goto(url)
        page.wait_for_function(f"{POINTS} > 0", polling=100)
        requests, window = record(page)
        windows["with"].append(window)
        polls += [poll_of(request) for request in requests if '"poll"' in (request.post_data or "")]
        page.goto("about:blank")
        windows["without"].append(record(page)[1])
    return medians(polls), throughput(run.events(), windows)


def record(page: "Page") -> "tuple[list[Request], tuple[float, float]]":
    """Wait ``SETTLE_SECONDS``, then one window; return the requests answered in it, and its ends (Unix seconds)."""
    requests: list[Request] = []

    def note(request: "Request") -> None:
        requests.append(request)

    page.wait_for_timeout(SETTLE_SECONDS * 1000)
    page.on("requestfinished", note)
    began = time.time()
    page.wait_for_timeout(WINDOW_SECONDS * 1000)
    window = began, time.time()
    page.remove_listener("requestfinished", note)
    return requests, window


def poll_of(request: "Request") -> dict[str, float]:
    """Return the bytes of a request, and the milliseconds from its start to the last byte of its answer."""
    sizes = request.sizes()
    return {
        "asked_bytes": sizes["requestBodySize"],
        "answered_bytes": sizes["responseBodySize"],
        "header_bytes": sizes["requestHeadersSize"] + sizes["responseHeadersSize"],
        "milliseconds": request.timing["responseEnd"],
    }


# --- From events and windows to figures


def medians(polls: list[dict[str, float]]) -> dict[str, Any]:
    """Return the median of each figure and the number of polls (``n``). Raises ``UserError`` if there was none."""
    if not polls:
        raise UserError("The page did not poll the run while it was open.")
    middle = {name: statistics.median(poll[name] for poll in polls) for name in polls[0]}
    return {name: round(value, 1) if name == "milliseconds" else round(value) for name, value in middle.items()} | {
        "n": len(polls)
    }


def throughput(events: list[dict[str, Any]], windows: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Compare the throughput of training ``with`` a page open and ``without``; ``windows`` are in Unix seconds.

    Returns:
        ``images_per_second``: the medians over the step events wholly inside a window, ``with`` and ``without``;
        ``ratio``: the first divided by the second, below 1 where an open page slows training; ``rounds``: the ratio of
        each round, which shows the noise; ``events``: how many step events there were.

    Raises:
        UserError: where a window has no step event wholly inside.
    """
    speeds = {name: [speeds_inside(events, window) for window in spans] for name, spans in windows.items()}
    if not all(found for spans in speeds.values() for found in spans):
        raise UserError("The run reported no step in a window: it ended early, or a step takes seconds.")
    middle = {name: statistics.median(chain(*spans)) for name, spans in speeds.items()}
    pairs = zip(speeds["with"], speeds["without"], strict=True)
    return {
        "images_per_second": {name: round(value, 1) for name, value in middle.items()},
        "ratio": round(middle["with"] / middle["without"], 3),
        "rounds": [round(statistics.median(one) / statistics.median(other), 3) for one, other in pairs],
        "events": {name: sum(map(len, spans)) for name, spans in speeds.items()},
    }


def speeds_inside(events: list[dict[str, Any]], window: tuple[float, float]) -> list[float]:
    """Return ``images_per_second`` of the step events that lie wholly in a window.

    A step event is about the time since the event before it.
    """
    return [
        event["images_per_second"]
        for before, event in pairwise(events)
        if event["event"] == "step" and window[0] <= before["time"] and event["time"] <= window[1]
    ]
