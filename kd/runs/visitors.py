"""What each visitor has in the runs' folder, how much disk it takes, and when the visitor was last seen.

Runs are in the folder itself, sweeps in ``.sweeps``, datasets in ``.datasets`` (each with its owner's hash in
``dataset.json``); ``.visitors`` has an empty file for each owner's hash, touched when the owner comes.
"""

import json
import math
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kd import limits
from kd.errors import UserError
from kd.runs.bucket import forget
from kd.runs.run import CLOSED, Run
from kd.runs.store import list_runs, local_owner
from kd.system.files import DATASETS, SWEEPS, VISITORS, folder_size, write_whole
from kd.system.ids import owner_hash

# A visitor's file is touched no more often.
SEEN_SECONDS = 60

# How often a server deletes the data of visitors who do not come back.
CLEAN_SECONDS = 3600

# Seconds of a day.
DAY = 24 * 3600

# A token's hash.
OWNER = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Belonging:
    """A run, a sweep or a dataset, and the hash of its owner's token."""

    path: Path
    owner: str

    def size(self) -> int:
        """Return the bytes of its files."""
        return folder_size(self.path)

    def touched(self) -> float:
        """Return when something last happened in it, Unix seconds."""
        return max(_time_of(self.path / name) for name in ("events.jsonl", "dataset.json", "config.json"))

    def is_at_work(self) -> bool:
        """Return whether it is a run or a sweep that waits or runs, or of which something is exported or pushed."""
        run = Run(self.path)
        try:
            return (self.path / "config.json").exists() and any(
                one.status() not in CLOSED for one in (run, *run.jobs())
            )
        except UserError:  # deleted meanwhile
            return False

    def give(self, owner: str) -> None:
        """Let it belong to another, ``owner`` (a token's hash); a run that works goes on."""
        is_dataset = (self.path / "dataset.json").exists()
        path = self.path / ("dataset.json" if is_dataset else "config.json")
        write_whole(path, json.dumps({**json.loads(path.read_text()), "owner": owner}, indent=2))


def belongings(folder: Path) -> list[Belonging]:
    """Return everything that has an owner."""
    folder = Path(folder)
    return [*_runs(folder), *_runs(folder / SWEEPS), *_datasets(folder / DATASETS)]


def _runs(folder: Path) -> Iterator[Belonging]:
    for run in list_runs(folder):
        with suppress(UserError, KeyError):  # deleted meanwhile, or damaged: nobody's
            yield Belonging(run.path, run.owner())


def _datasets(folder: Path) -> Iterator[Belonging]:
    for path in sorted(folder.glob("*/dataset.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            yield Belonging(path.parent, json.loads(path.read_text())["owner"])


def hand_over(folder: Path, old: str, new: str) -> None:
    """Give whatever belongs to ``old`` (a token's hash) to ``new``."""
    for one in belongings(folder):
        if one.owner == old:
            with suppress(FileNotFoundError):  # deleted meanwhile
                one.give(new)


def check_room(folder: Path, owner: str) -> None:
    """Raise ``UserError`` where the data of ``owner`` (a token's hash), or of all, take more disk than the limits allow."""
    allowed, (own, every) = limits.current(), room(folder, owner)
    if own < 0:
        raise UserError(
            f"Your runs and datasets take {allowed.quota_mb - own / 1e6:,.0f} MB; the most is {allowed.quota_mb:,.0f} MB. "
            "Delete some of them, then try again."
        )
    if every < 0:
        raise UserError(
            f"The runs and datasets of all visitors take the {allowed.disk_mb:,.0f} MB that there are for them. Delete some of "
            "yours, or try again another day."
        )


def room(folder: Path, owner: str) -> tuple[float, float]:
    """Return the bytes that ``owner`` (a token's hash) may still take, and all visitors together; infinite without a limit.

    Sizes are counted each time: this is called at the start of a run or an import only.
    """
    allowed = limits.current()
    if allowed.quota_mb == allowed.disk_mb == math.inf:
        return math.inf, math.inf
    sizes: defaultdict[str, int] = defaultdict(int)
    for one in belongings(folder):
        sizes[one.owner] += one.size()
    own, every = allowed.quota_mb, allowed.disk_mb
    return own * 1e6 - sizes[owner], every * 1e6 - sum(sizes.values())


# --- Visitors who do not come back


def seen(folder: Path, owner: str) -> None:
    """Note that ``owner`` (a token's hash) is here."""
    path = Path(folder) / VISITORS / owner
    if time.time() - _time_of(path) > SEEN_SECONDS:
        with suppress(OSError):  # on a full or read-only disk a visitor may still look
            path.parent.mkdir(exist_ok=True)
            path.touch()


def idle(folder: Path, days: float, now: float) -> list[Belonging]:
    """Return what belongs to owners who have not been seen, and in whose runs nothing has happened, for so many days.

    What was made on this machine by hand is not among it, nor anything of an owner who has a run that waits or runs.
    """
    by_owner: defaultdict[str, list[Belonging]] = defaultdict(list)
    for one in belongings(folder):
        by_owner[one.owner].append(one)
    by_owner.pop(owner_hash(local_owner(folder)), None)

    def is_idle(owner: str, theirs: list[Belonging]) -> bool:
        last = max(_time_of(Path(folder) / VISITORS / owner), *(one.touched() for one in theirs))
        return now - last > days * DAY and not any(one.is_at_work() for one in theirs)

    return [one for owner, theirs in by_owner.items() if is_idle(owner, theirs) for one in theirs]


def clean(folder: Path, days: float) -> list[Belonging]:
    """Delete what is ``idle`` now and return it. Raises ``OSError`` where something cannot be deleted."""
    gone = idle(folder, days, time.time())
    for one in gone:
        forget(one.path)
        with suppress(FileNotFoundError):  # its owner has just deleted it
            shutil.rmtree(one.path)
        (Path(folder) / VISITORS / one.owner).unlink(missing_ok=True)
    return gone


def clean_if_due(folder: Path) -> list[Belonging]:
    """Call ``clean`` as the limits say, at most once an hour, also where the server is restarted."""
    days, mark = limits.current().idle_days, Path(folder) / VISITORS / ".cleaned"
    if days == math.inf or time.time() - _time_of(mark) < CLEAN_SECONDS:
        return []
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return clean(folder, days)


def last_seen(folder: Path) -> dict[str, float]:
    """Return when each owner (a token's hash) was last here, Unix seconds."""
    marks = (Path(folder) / VISITORS).glob("[!.]*")
    return {path.name: _time_of(path) for path in marks}


def note_seen(folder: Path, when: dict[str, float]) -> None:
    """Note that owners (a token's hash) were here at these times, unless they have been here since."""
    for owner, seconds in when.items():
        path = Path(folder) / VISITORS / owner
        if OWNER.fullmatch(owner) and _time_of(path) < seconds:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (seconds, seconds))


def _time_of(path: Path) -> float:
    """Return when a file was last written; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
