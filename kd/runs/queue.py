"""Let one run at a time have a device, and say whose turn it is."""

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd.errors import UserError
from kd.runs.run import LIFECYCLE, Run, RunDeleted
from kd.runs.store import list_runs
from kd.system.files import text_of, try_acquire
from kd.system.zerogpu import is_zerogpu

# The device of the runs that are worked on in pieces, while they have the GPU or wait for it (``kd.runs.pieces``).
LENT = "zerogpu"

# How often a process checks whether another has gone on.
POLL_SECONDS = 0.25

# How often a run that waits for a taken device determines its place.
PLACE_SECONDS = 3


class StopAsked(Exception):
    """The run was asked to stop."""


@contextmanager
def device_slot(run: Run, *devices: str) -> Iterator[None]:
    """Wait until it is ``run``'s turn and its device, or all of several, are free, then hold them.

    The system releases the lock when the process that holds it ends, however that happens. While the run waits, its place
    is an event (``queued``, ``place`` 1 for the next, and ``wait`` in seconds where it is known). Raises ``StopAsked`` if
    it is asked to stop before its turn.
    """
    locks = [FileLock(slot_path(run.path.parent, device)) for device in devices]
    looked, said = -math.inf, None
    while True:
        if run.stop_asked():
            raise StopAsked
        if free := _try_all(locks):  # to hold it while the queue is read would keep out the run whose turn it is
            free.close()
        if free or time.monotonic() - looked > PLACE_SECONDS:
            looked, (ahead, running) = time.monotonic(), line_before(run, *devices)
            if free and not ahead and (held := _try_all(locks)):
                break
            wait = None if LENT in devices else expected_wait(running, ahead, time.time())  # its runs take turns
            now = QueuePlace(time.time(), len(ahead) + 1, wait)
            if said is None or now.differs(said):
                said = now
                waits = {} if now.wait is None else {"wait": now.wait}
                run.append("queued", place=now.place, device=devices[0], **waits)
        time.sleep(POLL_SECONDS)
    (run.path / "turn").write_text(" ".join(devices))
    with held:
        yield


def _try_all(locks: list[FileLock]) -> ExitStack | None:
    """Take all locks if all are free now, else none; return what releases them."""
    with ExitStack() as held:
        for lock in locks:
            if not try_acquire(lock):
                return None
            held.callback(lock.release)
        return held.pop_all()


@dataclass(frozen=True)
class QueuePlace:
    """Where a run was in the queue at ``time`` (Unix seconds), and how long it was to wait from then on, if known."""

    time: float
    place: int
    wait: int | None

    def differs(self, said: "QueuePlace") -> bool:
        """Return whether this is worth another event: another place, or a wait that is off by a fifth and ten seconds."""
        if self.place != said.place or self.wait is None or said.wait is None:
            return (self.place, self.wait is None) != (said.place, said.wait is None)
        return abs(self.wait - (said.wait - (self.time - said.time))) > max(10, 0.2 * self.wait)


def device_name(asked: str) -> str:
    """Return the device that a run's process waits for, without torch: a process that waits should take little memory.

    On ZeroGPU a process has the CPU only; the pieces of a run that have the GPU wait for ``LENT``.
    """
    if is_zerogpu():
        return "cpu"
    has_gpu = Path("/dev/nvidia0").exists() and "+cpu" not in version("torch")
    if asked == "cuda" or (asked == "auto" and has_gpu):
        return "cuda:0"
    return "cpu" if asked == "auto" else asked


def devices_of(asked: str, processes: int) -> list[str]:
    """Return all devices that a run waits for: one GPU for each of its processes, from the one it asked for on."""
    first = device_name(asked)
    if not first.startswith("cuda:"):
        return [first]
    nth = int(first.removeprefix("cuda:"))
    return [f"cuda:{nth + more}" for more in range(processes)]


def gpu_count() -> int:
    """Return how many GPUs this process may use, without torch."""
    if device_name("auto") == "cpu":
        return 0
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])


def single_gpu_environment(*devices: str) -> dict[str, str]:
    """Return the variables with which a process sees the GPUs of its run only, from ``cuda:0`` on: `Trainer` uses all that
    it sees."""
    if not devices[0].startswith("cuda:"):
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    numbers = [int(device.removeprefix("cuda:")) for device in devices]
    named = [visible[nth] if nth < len(visible) and visible[nth] else str(nth) for nth in numbers]
    return {"CUDA_VISIBLE_DEVICES": ",".join(named), "KD_DEVICE": "cuda:0"}


def slot_path(folder: Path, device: str) -> Path:
    """Return the lock file of a device: one for the CPU, one for each GPU."""
    path = Path(folder) / ".slots" / f"{device.replace(':', '-')}.lock"
    path.parent.mkdir(exist_ok=True)
    return path


def queue_order(waiting: list[tuple[str, str]], turns: dict[str, float]) -> list[str]:
    """Return the ids of the runs that wait, given as (id, owner), in the order of their turns.

    Each visitor's oldest run comes first, then each one's second, and so on; among those, the run of the visitor who has
    had the device least recently (``turns``: owner -> the time of the last turn), then the oldest.
    """
    before: Counter[str] = Counter()
    ranks = []
    for id, owner in sorted(waiting):
        ranks.append((before[owner], turns.get(owner, 0.0), id))
        before[owner] += 1
    return [id for *_, id in sorted(ranks)]


def line_before(run: Run, *devices: str) -> tuple[list[Run], list[Run]]:
    """Return the runs that have one of the devices before ``run``: those that wait with a better place, and those that hold
    it."""
    waiting, running, turns = {run.id: run}, [], {}
    for other in list_runs(run.path.parent):
        try:
            if turn := _time_of(other.path / "turn"):
                turns[other.owner()] = max(turn, turns.get(other.owner(), 0.0))
            if other == run or not other.is_locked():
                continue
            status = LIFECYCLE[other.last(*LIFECYCLE)["event"]]
            if not set(_devices_of(other, status)).isdisjoint(devices):
                waiting |= {other.id: other} if status == "queued" else {}
                running += [other] if status == "running" else []
        except UserError:  # deleted since the listing, or damaged
            continue
    ids = queue_order([(id, one.owner()) for id, one in waiting.items()], turns)
    return [waiting[id] for id in ids[: ids.index(run.id)]], running


def _devices_of(run: Run, status: str) -> list[str]:
    """Return the devices that a run waits for, or has. It says so itself, since some wait for one after the other."""
    config = run.settings()["config"]
    asked = devices_of(config.get("device", "auto"), config.get("processes", 1))
    said = (run.last("queued") or {}).get("device") if status == "queued" else None
    if said and said not in asked:
        return [said]
    return text_of(run.path / "turn").split() or asked if status == "running" else asked


def _time_of(path: Path) -> float | None:
    """Return when a file was last touched; ``None`` where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def expected_wait(running: list[Run], ahead: list[Run], now: float) -> int | None:
    """Return the seconds until these runs are done, from their own progress; ``None`` unless that is known of each."""
    try:
        left = [seconds_left(one.events(), now) for one in (*running, *ahead)]
    except RunDeleted:
        return None
    return round(sum(left)) if running and None not in left else None


def seconds_left(events: list[dict[str, Any]], now: float) -> float | None:
    """Return how long a run will still have the device, ``None`` where that is not known.

    It follows from the speed of its training, or before that from the estimate when the run was created (``expected`` of
    ``created``). The measurement of latency at the end is not counted.
    """
    last = {event["event"]: event for event in events}
    training, step = last.get("training"), last.get("step")
    if training and step and step["step"] and step["time"] >= training["time"]:
        rounds = math.ceil((training["of"] - training["nth"] + 1) / training.get("at_once", 1))
        steps = training["steps"] * rounds - step["step"]
        return max(0.0, steps * step["seconds"] / step["step"] - (now - step["time"]))
    expected = last["created"].get("expected") if "created" in last else None
    if expected is None or training or "resumed" in last:
        return None
    return max(0.0, expected - (now - last["started"]["time"] if "started" in last else 0.0))


def is_any_run_training(folder: Path, but: Run | None = None) -> bool:
    """Return whether a run in ``folder`` (``but`` this one) trains now: what is timed meanwhile is slower than alone."""
    return any(_is_running(run) for run in list_runs(folder)[:20] if run != but)


def _is_running(run: Run) -> bool:
    try:
        return run.status() == "running"
    except RunDeleted:
        return False
