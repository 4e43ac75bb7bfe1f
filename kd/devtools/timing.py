"""What is measured in each process of the benchmark: seconds by stage, memory, and turns of a few steps."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

# Steps before the first turn: they allocate memory and fill caches, so they are not counted.
WARM_UP_STEPS = 1


class Stages:
    """Seconds by stage. Where stages are nested, a moment counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = [0.0]

    def synchronise(self) -> None:
        """Wait for the device at the end of a stage: does nothing unless a row replaces it."""

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        self.inner.append(0.0)
        try:
            yield
        finally:
            self.synchronise()
            spent = time.perf_counter() - started
            self.seconds[stage] += spent - self.inner.pop()
            self.inner[-1] += spent

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Count the time of each call of ``owner.name`` for a stage from now on."""
        call = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.time(stage):
                return call(*arguments, **options)

        setattr(owner, name, timed)


class PeakMemory(threading.Thread):
    """The most memory, in MB (10^6 bytes), that this process had of its own, sampled twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.now()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.05)

    @staticmethod
    def now() -> float:
        """Return the resident memory without mapped files, which the system can take back (Linux: ``RssAnon``)."""
        found = psutil.Process().memory_info()
        return (found.rss - getattr(found, "shared", 0)) / 1e6


class Enough(Exception):
    """The benchmark needs no further step of a row."""


class Turns:
    """The turns of one row: it trains while it has the turn, and waits at the end of a step while it has not."""

    def __init__(self, connection: Any, stages: Stages, synchronise: Callable[[], None], turn_seconds: float) -> None:
        self.connection, self.stages, self.synchronise = connection, stages, synchronise
        self.turn_seconds = turn_seconds
        self.steps = -WARM_UP_STEPS

    def step(self, images: int) -> None:
        """Count a step on so many images, and wait if the turn is over. Raises ``Enough`` after the last turn."""
        self.steps += 1
        if self.steps < 0:
            return
        self.synchronise()
        seconds = time.perf_counter() - self.started if self.steps else 0.0
        if 0 < seconds < self.turn_seconds:
            return
        self.connection.send((self.steps * images, seconds, dict(self.stages.seconds)))
        try:
            order = self.connection.recv()
        except EOFError:  # the benchmark itself has ended
            raise SystemExit(1) from None
        if order == "enough":
            raise Enough
        # On a GPU a stage ends when its kernels do. Waiting for them costs speed, so only the last turn does.
        self.stages.synchronise = self.synchronise if order == "stages" else lambda: None
        self.stages.seconds.clear()
        self.steps, self.started = 0, time.perf_counter()


@dataclass
class Cost:
    """A part of the whole recipe: ``count`` times ``seconds``, counted for a stage.

    ``shared`` names what a later run with the same images and teacher need not do again: ``decode`` or ``teacher``.
    """

    stage: str
    what: str
    count: float
    seconds: float
    shared: str = ""

    @property
    def total(self) -> float:
        return self.count * self.seconds

    def __str__(self) -> str:
        unit = f"{self.seconds * 1000:,.1f} ms" if self.seconds < 1 else f"{self.seconds:,.2f} s"
        return f"{self.what}: {self.count:,.0f} x {unit} = {self.total:,.1f} s"


def seconds_of(call: Callable[[], Any], synchronise: Callable[[], None] = lambda: None) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - started
