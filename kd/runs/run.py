"""A run is a folder: what was asked, what happened, what came out. Everything shown anywhere is read from it.

``config.json`` (settings, owner's hash), ``events.jsonl`` (append-only), ``lock`` (held by the process that works on the
run, for as long as it lives), ``STOP`` (an empty file that asks it to end), ``name`` (what its owner calls it), ``turn``
(touched when it gets its device),
``checkpoints/``, ``student/``,
``report.json``, ``stderr.txt``, ``logs/`` (TensorBoard).
"""

import errno
import functools
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd import limits
from kd.config import DistillConfig
from kd.errors import UserError
from kd.system import memory
from kd.system.files import SWEEPS, text_of, write_whole
from kd.system.ids import owner_hash

# Lifecycle event -> status. *died* is derived: the run is not closed, and nobody holds its lock.
LIFECYCLE = {
    "created": "queued",
    "queued": "queued",
    "started": "running",
    "resumed": "running",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "paused": "paused",
}

# The statuses of a run that nobody works on.
CLOSED = ("done", "failed", "stopped", "paused", "died")

# A process that has been started needs this long at most to take the run's lock.
START_SECONDS = 20

# Characters of a name at most.
LONGEST_NAME = 80

# A run at work keeps a file of this size and removes it at the end, so that the last event fits on a full disk.
RESERVE_BYTES = 64 * 1024


class RunDeleted(UserError):
    """The run's folder went away while something worked on it."""


class RunTaken(UserError):
    """Another process works on the run: this one must leave it alone."""


@dataclass(frozen=True)
class Run:
    """One run's folder; it holds nothing but the path."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def resume_command(self) -> str:
        return f"`python -m kd resume {self.id}`"

    @property
    def goes_on(self) -> str:
        """Return the sentence that says how the run is resumed."""
        return f"{self.resume_command} goes on with it."

    def settings(self) -> dict[str, Any]:
        """Return ``config.json``: ``id, created`` (Unix seconds), ``owner`` (hash), ``config``."""
        try:
            return json.loads((self.path / "config.json").read_text())
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} is gone: {self.path}") from None
        except ValueError as error:
            raise UserError(f"{self.path / 'config.json'} is damaged: {error}") from error

    def config(self) -> DistillConfig:
        """Return the settings. Raises ``UserError`` where they are damaged, or another version's."""
        try:
            return DistillConfig.from_dict(self.settings()["config"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"Run {self.id} has settings that this version does not take: {error}") from error

    def owner(self) -> str:
        """Return the hash of the owner's token. It is read once: a list of all runs needs each one's, every two seconds."""
        try:
            now = (self.path / "config.json").stat()
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} is gone: {self.path}") from None
        return _owner_of(self, now.st_mtime_ns, now.st_ino)

    def is_owned_by(self, token: str) -> bool:
        """Return whether ``token`` is the one that the run was created with; no for one that is damaged or gone.

        On one's own machine it may also be the one that owns all runs there: a folder that was copied from another machine
        belongs to whoever has put it beside the others.
        """
        try:
            return secrets.compare_digest(self.owner(), owner_hash(token)) or self._is_copied_to(token)
        except UserError:
            return False

    def check_owner(self, token: str) -> None:
        """Raise ``PermissionError`` unless ``is_owned_by``, and ``RunDeleted`` where the folder is gone."""
        self.owner()
        if not self.is_owned_by(token):
            raise PermissionError(f"Run {self.id} belongs to somebody else.")

    def _is_copied_to(self, token: str) -> bool:
        """Return whether ``token`` owns all that is in the folder of the runs (``kd.runs.store.local_owner``)."""
        folder = self.path.parent.parent if self.path.parent.name == SWEEPS else self.path.parent
        kept = text_of(folder / ".owner")
        return (
            bool(kept)
            and not limits.is_shared(dict(os.environ))
            and secrets.compare_digest(owner_hash(kept), owner_hash(token))
        )

    def name(self) -> str:
        """Return what its owner calls it, an empty text until it has been given a name."""
        return text_of(self.path / "name")

    def rename(self, name: str) -> str:
        """Give the run a name of one line, or with an empty one take it away; return the name as it is kept.

        Raises ``UserError`` for one that is too long or cannot be shown, ``RunDeleted`` where the folder is gone.
        """
        if not isinstance(name, str):
            raise UserError(f"A name is text, not {type(name).__name__}.")
        name = " ".join(name.split())
        if len(name) > LONGEST_NAME:
            raise UserError(f"The name has {len(name)} characters; the most is {LONGEST_NAME}. Give a shorter one.")
        if not name.isprintable():
            raise UserError("The name has characters that cannot be shown. Give one of letters, digits and signs.")
        self.settings()
        write_whole(self.path / "name", name)
        return name

    def append(self, event: str, **data: Any) -> None:
        """Add an event. Only the process that holds the lock appends; ``create_run`` writes the first.

        Raises ``RunDeleted`` where the folder is gone (it is not made again), ``RunTaken`` where the lock is another's.
        """
        self._check_lock()
        line = json.dumps({"event": event, "time": round(time.time(), 3), **data}, allow_nan=False) + "\n"
        try:
            handle = os.open(self.path / "events.jsonl", os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} was deleted while it ran: {self.path}") from None
        with os.fdopen(handle, "ab", buffering=0) as file:
            data = line.encode()
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / "events.jsonl"))

    def read(self, cursor: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the events from byte ``cursor`` on, and the cursor for the next call.

        A last line that is not ended yet is left for later; a cursor that is not at the beginning of a line counts as 0.
        Raises ``RunDeleted`` where the folder is gone.
        """
        lines, cursor = self._lines(cursor)
        return [json.loads(line) for line in lines], cursor

    def _lines(self, cursor: int = 0) -> tuple[list[bytes], int]:
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(max(0, cursor - 1))
                if cursor and file.read(1) != b"\n":
                    cursor = file.seek(0)
                block = file.read()
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} is gone: {self.path}") from None
        whole = block[: block.rfind(b"\n") + 1]
        return whole.splitlines(), cursor + len(whole)

    def events(self) -> list[dict[str, Any]]:
        return self.read()[0]

    def last(self, *names: str) -> dict[str, Any] | None:
        """Return the last event with one of these names.

        No other is parsed: this is called several times a second for runs that have written thousands.
        """
        starts = tuple(f'{{"event": "{name}",'.encode() for name in names)
        line = next((line for line in reversed(self._lines()[0]) if line.startswith(starts)), None)
        return line and json.loads(line)

    def status(self) -> str:
        """Return ``queued``, ``running``, ``done``, ``failed``, ``stopped``, ``paused`` or ``died``."""
        last = self.last(*LIFECYCLE)
        if last is None:
            return "died"
        status = LIFECYCLE[last["event"]]
        starting = last["event"] == "created" and time.time() - last["time"] < START_SECONDS
        if status in CLOSED or starting or self.is_locked():
            return status
        # The process may have closed the run after the events were read and before the lock was tried.
        again = self.last(*LIFECYCLE)
        return "died" if again == last else LIFECYCLE[again["event"]]

    def jobs(self) -> list["Run"]:
        """Return what else was begun with it in processes of their own, such as an export, at work or closed."""
        return [Run(file.parent) for file in self.path.glob("*/events.jsonl")]

    def is_locked(self) -> bool:
        """Return whether a living process works on this run. Nobody can where the folder is read-only."""
        if not self.path.is_dir():  # the lock would wait for its folder for ever
            raise RunDeleted(f"The folder of run {self.id} is gone: {self.path}")
        try:
            with FileLock(self.path / "lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES):
                return False
            raise

    def is_taken(self) -> bool:
        """Return whether the lock was removed under which this process works: then another process may hold one."""
        held = _held.get(self.path)
        try:
            now = held and (self.path / "lock").stat().st_ino
        except FileNotFoundError:
            now = None
        return held != now and (self.path / "config.json").exists()  # else the run was deleted

    def _check_lock(self) -> None:
        """Raise ``RunTaken`` where this process works on the run, but its lock was removed."""
        if self.is_taken():
            raise RunTaken(f"The lock of run {self.id} is not this process's any more; it leaves the run to others.")

    def explain_death(self) -> str:
        """Return what is known of a run that has died."""
        begun = self.last("started", "resumed")
        return memory.explain_death(begun and begun.get("oom_kills"))

    @contextmanager
    def work(self) -> Iterator[None]:
        """Hold the run's lock: only the process that holds it appends events.

        Raises ``UserError`` where another process works on the run, ``RunDeleted`` where the folder is gone.
        """
        self.settings()
        try:
            # Another process may hold it for a moment, to see whether this one lives.
            lock = FileLock(self.path / "lock").acquire(timeout=5)
        except Timeout:
            raise UserError(f"Run {self.id} is being worked on by another process already.") from None
        except OSError as error:
            raise UserError(self.not_writable(error)) from error
        with lock:
            _held[self.path] = (self.path / "lock").stat().st_ino
            self._drop_half_line()
            try:
                yield
            finally:
                del _held[self.path]
                (self.path / "reserve").unlink(missing_ok=True)

    def begin(self, resume: bool) -> None:
        """Append the event that work begins, or goes on."""
        self.append("resumed" if resume else "started", pid=os.getpid(), oom_kills=memory.kills())

    def not_writable(self, error: OSError) -> str:
        """Return the message for a run in whose folder nothing can be written."""
        return f"Run {self.id} cannot be worked on: nothing can be written to {self.path} ({error.strerror})."

    def keep_reserve(self) -> None:
        """Occupy the space that the last event will need if the disk is full by then."""
        (self.path / "reserve").write_bytes(b"\0" * RESERVE_BYTES)

    def close(self, event: str, **data: Any) -> None:
        """Append a closing event after removing the reserve, so that it can be written on a full disk too."""
        (self.path / "reserve").unlink(missing_ok=True)
        try:
            self._drop_half_line()
            self.append(event, **data)
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} was deleted while it ran: {self.path}") from None

    def _drop_half_line(self) -> None:
        """Remove a last line that a killed process, or a full disk, left incomplete."""
        with (self.path / "events.jsonl").open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def ask_to_stop(self) -> None:
        """Create the file ``STOP``, which the working process checks for at each step."""
        self.settings()
        (self.path / "STOP").touch()

    def stop_asked(self) -> bool:
        return (self.path / "STOP").exists()

    def forget_stop(self) -> None:
        """Remove ``STOP``, obeyed or not, because a closed run is to go on."""
        (self.path / "STOP").unlink(missing_ok=True)

    def forget_old_stop(self) -> None:
        """Remove a ``STOP`` that the run has obeyed already, not one that came since, before it is resumed."""
        closed, stop = self.last("done", "failed", "stopped", "paused"), self.path / "STOP"
        if closed and stop.exists() and stop.stat().st_mtime <= closed["time"]:
            stop.unlink()

    def labels(self) -> str:
        """Say whose the labels are: the ``dataset``'s, or the ``teacher``'s, whose answers stand for those that are not there."""
        return (self.last("data") or {}).get("labels", "dataset")

    def lambda_(self) -> float:
        """Return the teacher's weight as it is used: 1 where images have no labels, whatever was asked for."""
        plan = self.last("plan")
        return plan.get("lambda", self.config().lambda_) if plan else self.config().lambda_

    def report(self) -> dict[str, Any] | None:
        """Return ``report.json``, or ``None`` until the run is done."""
        try:
            return json.loads((self.path / "report.json").read_text())
        except FileNotFoundError:
            return None


# The runs that this process works on -> the inode of each one's lock.
_held: dict[Path, int] = {}


def events_by_trial(events: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Return the ``step`` and ``eval`` events of each trial, by (seed, arm), in the order of their ``nth``.

    A resumed trial goes on from a checkpoint, the ``step`` of ``training``: later events of before are left out.
    """
    arms: dict[tuple[int, str], list[dict[str, Any]]] = {}
    place: dict[tuple[int, str], int] = {}
    for event in events:
        if event["event"] == "training":
            key = event["seed"], event["arm"]
            arms[key] = [e for e in arms.get(key, []) if e["step"] <= event["step"]]
            place[key] = event["nth"]
        elif event["event"] in ("step", "eval"):
            arms[event["seed"], event["arm"]].append(event)
    return dict(sorted(arms.items(), key=lambda item: place[item[0]]))


@functools.lru_cache(maxsize=4096)
def _owner_of(run: Run, changed: int, file: int) -> str:
    """Return the owner's hash in ``config.json``; ``changed`` and ``file`` are its time and inode, for the cache."""
    return run.settings()["owner"]
