"""Load test: ``python -m kd load`` sends the requests of many visitors to a page of this machine and times the answers.

First a short run is made, whose models visitors compare, and a long one, which trains during the test. Then one
visitor compares alone. After that all visitors come at once: each polls the long run as an open page does; every fifth
also uploads an image and compares, again and again; every fifth starts runs of its own, which the limits must refuse
with a message.
"""

import asyncio
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil

from kd.errors import UserError
from kd.runs.run import CLOSED
from kd.system.files import ASSETS
from kd.system.memory import private_megabytes

HERE = ("127.0.0.1", "localhost", "::1")
EXAMPLE = ASSETS / "examples" / "coat-1.png"

# Between two polls of a visitor, as in the page's script, and between two starts of runs.
POLL_SECONDS = 0.5
START_SECONDS = 5.0
# Of so many visitors one compares, and one starts runs.
EVERY = 5
# How long the short run may take, and any answer.
TIMEOUT_SECONDS = 600
# The settings of the long run: more epochs than the test lasts, fewer steps than the limit of a shared server.
LONG = {"epochs": 300}

# What the page answers when it has too much to do, or when a visitor asks for too much.
BUSY = re.compile(r"queue is full|waiting or running|take [\d,]+ MB|Several others", re.IGNORECASE)

# The goals: milliseconds of a poll; comparisons a second, as a share of one visitor's alone; growth of memory in MB.
POLL_P95, COMPARE_SHARE, GROWTH_MB = 250.0, 0.8, 20.0


@dataclass
class Tally:
    """The results of the requests of each kind: milliseconds of those answered, the number of busy refusals, errors."""

    answered: dict[str, list[float]] = field(default_factory=dict)
    busy: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def of(self, kind: str, call: Awaitable[Any]) -> Any:
        """Await a call and count it; return its answer, or ``None`` where it was refused or failed."""
        began = time.perf_counter()
        self.answered.setdefault(kind, [])
        try:
            answer = await call
        except Refused as refusal:
            if BUSY.search(str(refusal)):
                self.busy[kind] += 1
            else:
                self.errors[kind, str(refusal)[:200]] += 1
            return None
        except httpx.HTTPError as error:
            self.errors[kind, type(error).__name__] += 1
            return None
        self.answered[kind].append(1000 * (time.perf_counter() - began))
        return answer


class Refused(Exception):
    """The server did not do what was asked; the message is its own."""


class Client:
    """A visitor with a token: the requests of the page's script, and those of the public API."""

    def __init__(self, http: httpx.AsyncClient, live: int, token: str) -> None:
        self.http, self.live, self.token = http, live, token
        self.session = secrets.token_hex(6)

    async def poll(self, run: str, owner: str, cursor: int) -> dict[str, Any]:
        """Ask what has happened in a run since ``cursor``, with the function that the page's script calls."""
        asked = {"run": run, "owner": owner, "cursor": cursor}
        body = {"session_hash": self.session, "component_id": self.live, "fn_name": "poll", "data": asked}
        answer = await self.http.post("/gradio_api/component_server", json=body)
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code} {answer.text}")
        if "refused" in answer.json():
            raise Refused(answer.json()["refused"])
        return answer.json()

    async def call(self, name: str, *data: Any) -> Any:
        """Call a public endpoint through the queue, as any other program does."""
        answer = await self.http.post(f"/gradio_api/call/{name}", json={"data": data})
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code} {answer.text}")
        url = f"/gradio_api/call/{name}/{answer.json()['event_id']}"
        async with self.http.stream("GET", url) as events:
            return outcome([line async for line in events.aiter_lines()])

    async def upload(self) -> str:
        """Upload an image and return its path on the server."""
        answer = await self.http.post("/gradio_api/upload", files={"files": (EXAMPLE.name, EXAMPLE.read_bytes())})
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code} {answer.text}")
        return answer.json()[0]

    async def compare(self, run: str, owner: str, path: str) -> dict[str, Any]:
        return await self.call("compare", run, [{"path": path, "meta": {"_type": "gradio.FileData"}}], owner)

    async def start(self, settings: dict[str, Any]) -> str:
        """Start a run of this visitor and return its id."""
        return (await self.call("start_run", "sample", settings, self.token))["run"]

    async def stop(self, run: str) -> None:
        await self.call("stop_run", run, self.token)


def outcome(lines: list[str]) -> Any:
    """Return the answer in the lines of an event stream. Raises ``Refused`` with the server's message for an error."""
    event = ""
    for line in lines:
        kind, _, text = line.partition(": ")
        event = text if kind == "event" else event
        if kind == "data" and event == "complete":
            return json.loads(text)[0]
        if kind == "data" and event == "error":
            error = json.loads(text)
            raise Refused(str(error.get("error")) if isinstance(error, dict) else str(error))
    raise Refused("the server ended its answer early")


# --- The visit


def check_here(url: str) -> str:
    """Return ``url`` without what follows the port.

    Raises ``ValueError`` unless it is a page of this machine: this is a load test, and others' servers are not ours to
    load.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in HERE or not parts.port:
        raise ValueError(f"url is {url!r}; expected a page of this machine, for example http://127.0.0.1:7860.")
    return f"http://{parts.netloc}"


def measure_load(
    url: str, clients: int, seconds: float, pid: int | None, tell: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Load the page at ``url``, whose process is ``pid``, with so many ``clients`` for so many ``seconds``.

    Returns:
        ``alone`` and ``together``: see ``summary``, with one visitor and with all; ``share``: comparisons a second,
        together divided by alone; ``memory``: MB before, half-way and after; ``clients``.

    Raises:
        UserError: where the page does not answer, or the short run is not done in time.
    """
    try:
        return asyncio.run(_visit(check_here(url), clients, seconds, pid, tell))
    except httpx.HTTPError as error:
        raise UserError(f"The page at {url} does not answer: {type(error).__name__} {error}".strip()) from error
    except Refused as refusal:
        raise UserError(f"The page at {url} refused what the test needs: {refusal}") from refusal


async def _visit(
    url: str, clients: int, seconds: float, pid: int | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(TIMEOUT_SECONDS), limits=limits) as http:
        live = live_component((await http.get("/config")).raise_for_status().json())
        first = Client(http, live, secrets.token_hex(16))
        tell("a run of one epoch, whose models are compared")
        compared = await first.start({"epochs": 1})
        await _until_done(first, compared)
        visit = Visit(first, compared)
        async with _training(first, visit):
            tell("one visitor compares alone, while a run trains")
            await visit.compare_once(first, Tally())  # loads the models
            memory = [page_memory(pid)]
            alone, took = await _for(max(seconds / 3, 5), [lambda tally, end: visit.comparing(first, tally, end)])
            tell(f"{clients} visitors, for {seconds:g} s")
            others = [Client(http, live, secrets.token_hex(16)) for _ in range(clients)]
            later = asyncio.create_task(_after(min(60, seconds / 2), pid))
            together, took_all = await _for(seconds, [visit.of(nth, client) for nth, client in enumerate(others)])
            memory += [await later, page_memory(pid)]
    found = {"alone": summary(alone, took), "together": summary(together, took_all), "memory": memory}
    rates = [found[when].get("compare", {}).get("rate", 0.0) for when in ("alone", "together")]
    return {"clients": clients, **found, "share": round(rates[1] / rates[0], 3) if rates[0] else None}


@dataclass
class Visit:
    """What visitors do: ``first`` is who owns the two runs, ``compared`` the short one, ``training`` the long one."""

    first: Client
    compared: str
    training: str = ""

    def of(self, nth: int, client: Client) -> "Doing":
        """Return what visitor number ``nth`` does: all poll, every fifth compares, every fifth starts runs."""
        also = {0: self.comparing, 1: self.starting}.get(nth % EVERY)

        async def do(tally: Tally, end: float) -> None:
            mine = [self.polling(client, tally, end), *([also(client, tally, end)] if also else [])]
            await asyncio.gather(*mine)

        return do

    async def polling(self, client: Client, tally: Tally, end: float) -> None:
        cursor, kind = 0, "first poll"  # its answer has the whole charts
        await asyncio.sleep(POLL_SECONDS * secrets.randbelow(1000) / 1000)
        while time.monotonic() < end:
            answer = await tally.of(kind, client.poll(self.training, self.first.token, cursor))
            cursor, kind = (answer["cursor"], "poll") if answer else (cursor, kind)
            await asyncio.sleep(POLL_SECONDS)

    async def comparing(self, client: Client, tally: Tally, end: float) -> None:
        while time.monotonic() < end:
            if not await self.compare_once(client, tally):
                await asyncio.sleep(POLL_SECONDS)

    async def compare_once(self, client: Client, tally: Tally) -> Any:
        path = await tally.of("upload", client.upload())
        return path and await tally.of("compare", client.compare(self.compared, self.first.token, path))

    async def starting(self, client: Client, tally: Tally, end: float) -> None:
        """Start one run after the other, also once the limits refuse, and stop them all in the end."""
        begun = []
        while time.monotonic() < end:
            begun.append(await tally.of("start", client.start(LONG)))
            await asyncio.sleep(START_SECONDS)
        for run in filter(None, begun):
            await tally.of("stop", client.stop(run))


Doing = Callable[[Tally, float], Awaitable[None]]


async def _for(seconds: float, visitors: list[Doing]) -> tuple[Tally, float]:
    """Let the visitors work for so many seconds; return the tally of their requests, and how long it took."""
    tally, began = Tally(), time.monotonic()
    await asyncio.gather(*(visitor(tally, began + seconds) for visitor in visitors))
    return tally, time.monotonic() - began


@asynccontextmanager
async def _training(client: Client, visit: Visit) -> AsyncIterator[None]:
    """Let the long run train for as long as the block lasts."""
    visit.training = await client.start(LONG)
    try:
        yield
    finally:
        await client.stop(visit.training)


async def _until_done(client: Client, run: str) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while (answer := await client.poll(run, client.token, 0))["status"] not in CLOSED and time.monotonic() < end:
        await asyncio.sleep(1)
    if answer["status"] != "done":
        raise UserError(f"The run whose models are to be compared is {answer['status']}: {' '.join(answer['line'])}")


async def _after(seconds: float, pid: int | None) -> float | None:
    await asyncio.sleep(seconds)
    return page_memory(pid)


# --- Memory and figures


def live_component(config: dict[str, Any]) -> int:
    """Find the number of the component whose script polls a run in the page's ``/config``. Raises ``UserError``."""
    for component in config.get("components", []):
        if component["props"].get("elem_id") == "live":
            return component["id"]
    raise UserError("The server there is not this page: it has no place that shows a run.")


def page_memory(pid: int | None) -> float | None:
    """Return the memory of the page and of the process that asks the models for it, MB; ``None`` where it is not known.

    That of runs does not count, nor what is mapped from files.
    """
    if pid is None:
        return None
    try:
        children = psutil.Process(pid).children()
    except psutil.Error:
        return None
    found = [private_megabytes(pid)]
    for child in children:
        with suppress(psutil.Error):  # ended meanwhile
            if "multiprocessing.spawn" in " ".join(child.cmdline()):
                found.append(private_megabytes(child.pid))
    return None if None in found else round(sum(found), 1)


def listener(port: int) -> int | None:
    """Return the process that listens on a port of this machine; ``None`` where it is another user's, or not told."""
    try:
        found = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return None
    return next((one.pid for one in found if one.status == psutil.CONN_LISTEN and one.laddr.port == port), None)


def summary(tally: Tally, seconds: float) -> dict[str, dict[str, Any]]:
    """Return ``n``, ``rate`` a second, percentiles in milliseconds, ``busy`` and ``errors`` of each kind of request."""
    found = {}
    for kind, times in tally.answered.items():
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).round(1).tolist() if times else [None] * 3
        errors = {words: count for (of, words), count in tally.errors.items() if of == kind}
        found[kind] = {
            "n": len(times), "rate": round(len(times) / seconds, 3), "p50": p50, "p95": p95, "p99": p99,
            "busy": tally.busy[kind], "errors": errors,
        }  # fmt: skip
    return found


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Format the figures of ``measure_load`` as a table, the head first."""
    head = ["", "answered", "a second", "p50 ms", "p95 ms", "p99 ms", "busy", "errors"]
    lines = [
        [
            f"{kind}, {'one alone' if when == 'alone' else 'all'}", str(one["n"]), f"{one['rate']:.2f}",
            *("" if one[p] is None else f"{one[p]:,.0f}" for p in ("p50", "p95", "p99")),
            str(one["busy"]), str(sum(one["errors"].values())),
        ]
        for when in ("alone", "together") for kind, one in found[when].items()
    ]  # fmt: skip
    return [head, *lines]


def goals(found: dict[str, Any]) -> list[tuple[str, bool | None]]:
    """Return each goal as a sentence, and whether it was met; ``None`` where it could not be measured."""
    errors = Counter()
    for one in (*found["alone"].values(), *found["together"].values()):
        errors.update(one["errors"])
    p95, share = found["together"].get("poll", {}).get("p95"), found["share"]
    before, minute, after = found["memory"]
    grown = None if minute is None or after is None else after - minute
    most = "; ".join(f"{count} x {words}" for words, count in errors.most_common(5)) or "none"
    return [
        (f"errors that are not a clear busy: {most}", not errors),
        (f"poll p95: {_figure(p95)} ms, below {POLL_P95:g}", None if p95 is None else p95 < POLL_P95),
        (
            f"compare throughput, all by one alone: {_figure(share)}, {COMPARE_SHARE} or more",
            None if share is None else share >= COMPARE_SHARE,
        ),
        (
            f"memory (RssAnon): {_figure(before)} MB before, {_figure(minute)} half-way, {_figure(after)} after; "
            f"it may grow by {GROWTH_MB:g} MB",
            None if grown is None else grown < GROWTH_MB,
        ),
    ]  # fmt: skip


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
