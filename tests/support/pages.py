"""A server and a browser for the tests of the page: the real ones, started once."""

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock
from playwright.sync_api import Page, expect, sync_playwright

from kd.config import DistillConfig
from kd.devtools.page import CHROMIUM, FLAGS
from kd.experiments.sweep import list_sweeps
from kd.runs.queue import slot_path
from kd.runs.run import CLOSED, Run
from kd.runs.store import create_run, delete_run, list_runs, local_owner
from tests.support.paths import ROOT

AXE = Path(sys.prefix) / "axe.min.js"

expect.set_options(timeout=120_000)

NOT_OURS = ["#pictures", ".toast-header"]
"""gradio's own upload box: a file input inside a button, and a name that differs from its words; and the head of its
messages, a button inside a button."""


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


AS_USER_1000 = [
    "setpriv",
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
]
"""Who a Space runs as. It may read everything, for an interpreter that lies in root's home, and write its own only."""


class Site:
    """``app.py`` over a folder of runs, on a port of its own; with ``root`` that of another folder than this checkout."""

    root = ROOT

    def __init__(self, folder: Path, prefix: tuple | list = (), flags: tuple = (), **environment: str) -> None:
        self.folder, self.prefix, self.flags, self.port = folder, list(prefix), flags, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ, "KD_RUNS_DIR": str(folder), "GRADIO_SERVER_PORT": str(self.port), **environment,
        }  # fmt: skip
        self.process: subprocess.Popen | None = None
        atexit.register(self.stop)

    def start(self) -> float:
        """Seconds until the page answers."""
        started = time.monotonic()
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, str(self.root / "app.py"), *self.flags],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
        )
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).read()
                return time.monotonic() - started
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, "app.py ended"
                assert time.monotonic() - started < 180
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)
            self.process = None

    def memory(self) -> int:
        """Bytes of the server's own memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))

    def config(self) -> dict:
        return json.loads(urllib.request.urlopen(f"{self.url}/config", timeout=10).read())

    def call(self, element: str, function: str, data: dict) -> dict:
        """A raw POST to a function of the page's script; ``element`` is the id of the component that has it."""
        component = next(c["id"] for c in self.config()["components"] if c["props"].get("elem_id") == element)
        body = {"session_hash": "raw", "component_id": component, "fn_name": function, "data": data}
        request = urllib.request.Request(
            f"{self.url}/gradio_api/component_server", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.loads(urllib.request.urlopen(request, timeout=20).read())


@functools.cache
def site() -> Site:
    """One's own machine: a server that all tests share."""
    made = Site(Path(tempfile.mkdtemp(prefix="kd-page-")))
    atexit.register(clean_up, made.folder)
    made.seconds = made.start()
    return made


@functools.cache
def shared_site() -> Site:
    """The same runs, served to strangers."""
    made = Site(site().folder, flags=("--shared",), KD_OPEN_RUNS="2")
    made.start()
    return made


@contextmanager
def something_trains(folder: Path) -> Iterator[Run]:
    """A run that is being worked on, as far as the page can tell, which measures no times beside one.

    Each measurement takes ten seconds of the CPU, and only some tests are about it.
    """
    run = create_run(DistillConfig(), folder, local_owner(folder))
    run.append("started", pid=os.getpid())
    with run.work():
        yield run
        run.close("stopped", message="")
    delete_run(run)


def taken_device(folder: Path) -> FileLock:
    """Hold the CPU as a run does, for as long as the context lasts: a run that is started waits, without torch."""
    return FileLock(slot_path(folder, "cpu"))


def clean_up(folder: Path) -> None:
    """Stop what still runs, and remove the folder."""
    for run in [*list_sweeps(folder), *list_runs(folder)]:
        if run.status() not in CLOSED:
            run.ask_to_stop()
    shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def playwright():
    started = sync_playwright().start()
    atexit.register(started.stop)
    return started


@functools.cache
def browser():
    chromium = playwright().chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    atexit.register(chromium.close)
    return chromium


_left: dict[tuple, list[Page]] = {}
"""Tabs whose visitors have gone, by browser and server."""


def visit(url: str, width: int = 1280, context=None, height: int = 900, chromium=None) -> Page:
    """A new visitor (or, with a page's ``context``, another tab of the same one) opens the page.

    A new one takes a tab that another has left, where there is one: the browser still has the page's files, which takes a
    quarter of the time.
    """
    chromium = chromium or browser()
    if context is None and (tabs := _left.get((chromium, urlsplit(url).netloc))):
        page = tabs.pop()
        page.set_viewport_size({"width": width, "height": height})
    else:
        page = (context or chromium.new_context(viewport={"width": width, "height": height})).new_page()
        page.set_default_timeout(120_000)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(url)
    page.get_by_role("tab", name="Runs").wait_for()
    return page


def leave(page: Page) -> None:
    """A visitor goes, and with them all that the page has kept in the browser; the next one may have the tab."""
    server = urlsplit(page.url).netloc
    page.goto(f"http://{server}/robots.txt")  # of the same server, without the page's scripts
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.context.clear_cookies()
    page.context.clear_permissions()
    _left.setdefault((page.context.browser, server), []).append(page)


def points(page: Page, figure: str = "losses") -> int:
    """How many points the first curve of a figure has."""
    return page.evaluate(f"document.querySelector('#live [data-figure={figure}]').data?.[0].x.length ?? 0")


def until(what, seconds: float = 120, every: float = 0.1):
    """Wait for ``what()`` to be true and return it."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f"waited {seconds} s for nothing"
        time.sleep(every)
    return value


def serious(page: Page) -> list[str]:
    """What axe-core finds serious on the open page and is ours to fix; nothing where there is no axe-core."""
    if not AXE.exists():
        return []
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate("no => axe.run({ exclude: no }, { resultTypes: ['violations'] })", NOT_OURS)["violations"]
    return [
        f"{one['id']}: {[node['target'] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
