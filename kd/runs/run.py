"""A run is a folder: what was asked, what happened, what came out. Everything shown anywhere is read from it.

``config.json`` (settings, owner's hash), ``events.jsonl`` (append-only), ``lock`` (held by the process that works on
the run, for as long as it lives), ``STOP`` (an empty file that asks it to end), ``name`` (what its owner calls it), ``turn`` (touched when it gets its device),
``checkpoints/``, ``student/``,
``report.json``, ``stderr.txt``, ``logs/`` (TensorBoard).
"""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from kd.config import NO_TEACHER, RUN_TEACHER, DistillConfig
from kd.system import memory

LIFECYCLE = {
    "created": "queued",
    "queued": "queued",
    "started": "running",
    "resumed": "running",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
}
"""Lifecycle event -> status. *died* is derived: not closed, and nobody holds the lock."""
CLOSED = ("done", "failed", "stopped", "died")
SWEEPS = ".sweeps"
"""The folder of the sweeps, beside the runs."""
GONE = ".gone-"
"""How a folder begins that is being deleted."""
START_SECONDS = 20
"""A process that has been started needs this long at most to take the run's lock."""
ID = re.compile(r"\d{8}-\d{12}-[0-9a-f]{4}")
"""The time of creation to the microsecond, so that names sort by age, and four random digits."""
LONGEST_NAME = 80
RESERVE_BYTES = 64 * 1024
"""Kept by a working run and given back when the disk is full, so that the last event can still be written."""

Made = TypeVar("Made")
"""What has an ``id`` as ``ID`` has it: a run, a sweep, a dataset."""


class RunError(Exception):
    """Something the user can act on: what was found, what was expected, what to do next."""


class RunDeleted(RunError):
    """The run's folder went away while something worked on it."""


class RunTaken(RunError):
    """Another process works on the run: this one must leave it alone."""


def default_folder() -> Path:
    """Where runs are kept: ``KD_RUNS_DIR``, or ``runs`` in the working folder."""
    return Path(os.environ.get("KD_RUNS_DIR") or "runs")


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """One run's folder. Cheap: holds nothing but the path."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def settings(self) -> dict[str, Any]:
        """``config.json`` whole: ``id, created`` (Unix seconds), ``owner`` (hash), ``config``."""
        try:
            return json.loads((self.path / "config.json").read_text())
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} is gone: {self.path}") from None
        except ValueError as error:
            raise RunError(f"{self.path / 'config.json'} is damaged: {error}") from error

    def config(self) -> DistillConfig:
        """The settings. Raises ``RunError`` where they are damaged, or another version's."""
        try:
            return DistillConfig.from_dict(self.settings()["config"])
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"Run {self.id} has settings that this version does not take: {error}") from error

    def owner(self) -> str:
        """The hash of the owner's token: read once, since a list of all runs asks for each one's, every two seconds."""
        try:
            now = (self.path / "config.json").stat()
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} is gone: {self.path}") from None
        return _owner_of(self, now.st_mtime_ns, now.st_ino)

    def check_owner(self, token: str) -> None:
        """Raises ``PermissionError`` unless ``token`` is the one that the run was created with."""
        if not secrets.compare_digest(self.owner(), owner_hash(token)):
            raise PermissionError(f"Run {self.id} belongs to somebody else.")

    def name(self) -> str:
        """What its owner calls it; nothing until it has been given a name."""
        return _text_of(self.path / "name")

    def rename(self, name: str) -> str:
        """Give the run a name of one line, or with an empty one take it away; return the name as it is kept.

        Raises ``RunError`` for one that is too long or cannot be shown, ``RunDeleted`` where the folder is gone.
        """
        if not isinstance(name, str):
            raise RunError(f"A name is text, not {type(name).__name__}.")
        name = " ".join(name.split())
        if len(name) > LONGEST_NAME:
            raise RunError(f"The name has {len(name)} characters; the most is {LONGEST_NAME}. Give a shorter one.")
        if not name.isprintable():
            raise RunError("The name has characters that cannot be shown. Give one of letters, digits and signs.")
        self.settings()
        write_whole(self.path / "name", name)
        return name

    def append(self, event: str, **data: Any) -> None:
        """Add an event. Only the process that holds the lock appends; ``create`` writes the first.

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
        """The events from byte ``cursor`` on, and the cursor for the next call. A last line that is not ended yet is
        left for later; a cursor that is not at the beginning of a line counts as 0. Raises ``RunDeleted`` where the
        folder is gone."""
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
        """The last event with one of these names. No other is parsed: this is asked several times a second of runs that
        have written thousands."""
        starts = tuple(f'{{"event": "{name}",'.encode() for name in names)
        line = next((line for line in reversed(self._lines()[0]) if line.startswith(starts)), None)
        return line and json.loads(line)

    def status(self) -> str:
        """``queued``, ``running``, ``done``, ``failed``, ``stopped`` or ``died``."""
        last = self.last(*LIFECYCLE)
        if last is None:
            return "died"
        status = LIFECYCLE[last["event"]]
        starting = last["event"] == "created" and time.time() - last["time"] < START_SECONDS
        if status in CLOSED or starting or self.is_locked():
            return status
        # Between the look at the events and the look at the lock the process may have ended as it should.
        again = self.last(*LIFECYCLE)
        return "died" if again == last else LIFECYCLE[again["event"]]

    def is_locked(self) -> bool:
        """Whether a living process works on this run. Nobody can where the folder is read-only."""
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

    def _check_lock(self) -> None:
        """Raises ``RunTaken`` where this process works on the run, but its lock was removed: then another may hold one."""
        held = _held.get(self.path)
        try:
            now = held and (self.path / "lock").stat().st_ino
        except FileNotFoundError:
            now = None
        if held != now and self.path.is_dir():
            raise RunTaken(f"The lock of run {self.id} is not this process's any more; it leaves the run to others.")

    def epitaph(self) -> str:
        """What can honestly be said of a run that has died."""
        begun = self.last("started", "resumed")
        return memory.epitaph(begun and begun.get("oom_kills"))

    @contextmanager
    def work(self) -> Iterator[None]:
        """Hold the run's lock: who holds it, and only who holds it, appends events.

        Raises ``RunError`` where another process works on the run, ``RunDeleted`` where the folder is gone.
        """
        self.settings()
        try:
            # Another process may hold it for a moment, to see whether this one lives.
            lock = FileLock(self.path / "lock").acquire(timeout=5)
        except Timeout:
            raise RunError(f"Run {self.id} is being worked on by another process already.") from None
        except OSError as error:
            raise RunError(self.not_writable(error)) from error
        with lock:
            _held[self.path] = (self.path / "lock").stat().st_ino
            self._drop_half_line()
            try:
                yield
            finally:
                del _held[self.path]
                (self.path / "reserve").unlink(missing_ok=True)

    def not_writable(self, error: OSError) -> str:
        """Words for a run whose folder takes no file."""
        return f"Run {self.id} cannot be worked on: nothing can be written to {self.path} ({error.strerror})."

    def keep_reserve(self) -> None:
        """Take the room that the last event will need if the disk is full by then."""
        (self.path / "reserve").write_bytes(b"\0" * RESERVE_BYTES)

    def close(self, event: str, **data: Any) -> None:
        """Append a closing event, giving back the reserve first: it must be written on a full disk too."""
        (self.path / "reserve").unlink(missing_ok=True)
        try:
            self._drop_half_line()
            self.append(event, **data)
        except FileNotFoundError:
            raise RunDeleted(f"The folder of run {self.id} was deleted while it ran: {self.path}") from None

    def _drop_half_line(self) -> None:
        """Cut what a killed process, or a full disk, left of a last line."""
        with (self.path / "events.jsonl").open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def ask_to_stop(self) -> None:
        """Leave the file that the working process looks for at each step."""
        self.settings()
        (self.path / "STOP").touch()

    def stop_asked(self) -> bool:
        return (self.path / "STOP").exists()

    def forget_stop(self) -> None:
        """Whoever wants a run that is closed to go on takes back that it should stop, obeyed or not."""
        (self.path / "STOP").unlink(missing_ok=True)

    def forget_old_stop(self) -> None:
        """Before a resume: drop the ``STOP`` that the run obeyed already, not one that came since."""
        closed, stop = self.last("done", "failed", "stopped"), self.path / "STOP"
        if closed and stop.exists() and stop.stat().st_mtime <= closed["time"]:
            stop.unlink()

    def labels(self) -> str:
        """Whose the labels are: the ``dataset``'s, or the ``teacher``'s, whose answers stand for those that are not there."""
        return (self.last("data") or {}).get("labels", "dataset")

    def lambda_(self) -> float:
        """The teacher's weight as it is used: without labels 1, whatever was asked for."""
        return 1.0 if self.labels() == "teacher" else self.config().lambda_

    def report(self) -> dict[str, Any] | None:
        """``report.json``, or ``None`` until the run is done."""
        try:
            return json.loads((self.path / "report.json").read_text())
        except FileNotFoundError:
            return None

    def delete(self) -> None:
        """Remove the folder. Raises ``RunError`` while a process works on it, or another run learns from its student."""
        if self.is_locked():
            raise RunError(f"Run {self.id} is still running. Stop it first, then delete it.")
        if run := user_of(self.path / "student", self.path.parent):
            raise RunError(f"Run {run} learns from run {self.id}. Stop that first, or wait until it is done.")
        gone = self.path.with_name(GONE + self.id)
        os.replace(self.path, gone)  # at once: nobody finds half of it
        for left in self.path.parent.glob(GONE + "*"):  # this one, and what a killed deletion has left
            shutil.rmtree(left, ignore_errors=True)  # another deletion may be at the same
        shutil.rmtree(gone, ignore_errors=True)
        if gone.exists():
            raise RunError(f"Run {self.id} is deleted, but some of its files could not be removed from the disk.")


_held: dict[Path, int] = {}
"""The runs that this process works on, and the inode of each one's lock."""


def by_arm(events: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """(seed, arm) -> the ``step`` and ``eval`` events of that training, in the order in which they were begun.

    A resume goes on from a checkpoint, ``training``'s ``step``: what came after it before is taken back.
    """
    arms: dict[tuple[int, str], list[dict[str, Any]]] = {}
    key = None
    for event in events:
        if event["event"] == "training":
            key = event.get("seed", 0), event.get("arm", "distilled")
            arms[key] = [e for e in arms.pop(key, []) if e["step"] <= event["step"]]
        elif event["event"] in ("step", "eval") and key:
            arms[key].append(event)
    return arms


def create(config: DistillConfig, folder: Path, owner: str, **known: Any) -> Run:
    """Make the folder of a new run, with its settings and its first event, which has what is ``known`` of it beforehand:
    ``expected``, the seconds that it will take. Raises ``RunError`` where it cannot."""
    created = time.time()
    run = Run(Path(folder).resolve() / new_id(created))
    settings = {
        "id": run.id,
        "created": created,
        "owner": owner_hash(owner),
        "config": resolved(config, folder).to_dict(),
    }
    try:
        run.path.mkdir(parents=True)
        (run.path / "events.jsonl").touch()
        run.append("created", **known)
        write_whole(run.path / "config.json", json.dumps(settings, indent=2))
    except OSError as error:
        shutil.rmtree(run.path, ignore_errors=True)
        raise RunError(
            f"Runs cannot be kept in {folder}: {error.strerror}. Name another place with --runs-dir."
        ) from error
    return run


def resolved(config: DistillConfig, folder: Path) -> DistillConfig:
    """``config`` as a run in ``folder`` keeps it: with absolute paths, also of a teacher that is another run's student.

    Raises ``RunError`` as ``with_run_as_teacher``.
    """
    return with_run_as_teacher(config, lambda id: find(folder, id)).with_absolute_paths()


def with_run_as_teacher(config: DistillConfig, find: Callable[[str], Run]) -> DistillConfig:
    """``config`` with the student's folder of a run in the place of ``run:ID``; ``find`` gives the run with an id.

    Raises ``RunError`` where there is no such run, or it has no student yet.
    """
    if not config.teacher.startswith(RUN_TEACHER):
        return config
    id = config.teacher.removeprefix(RUN_TEACHER)
    try:
        run = find(id)
    except RunError as problem:
        if not ID.fullmatch(id):
            raise
        raise RunError(
            f"The teacher {config.teacher} is gone: there is no such run among yours any more. Choose another teacher, or "
            "make it again. The students that it has taught stay as they are."
        ) from problem
    status = run.status()
    if status not in CLOSED or not (run.path / "student" / "config.json").exists():
        raise RunError(f"Run {run.id} ({status}) cannot teach: it has no finished student. Wait until it is done.")
    return dataclasses.replace(config, teacher=str(run.path / "student"))


def run_of(teacher: str) -> Run | None:
    """The run whose student this ``teacher`` is, a folder as ``with_run_as_teacher`` gives it."""
    folder = Path(teacher)
    is_run = folder.is_absolute() and folder.name == "student" and ID.fullmatch(folder.parent.name)
    return Run(folder.parent) if is_run else None


def lost_teacher(teacher: str) -> str | None:
    """The id of the run whose student this ``teacher`` was, if its folder is gone; else ``None``."""
    run = run_of(teacher)
    return run.id if run and not Path(teacher).is_dir() else None


def check_teacher(run: Run) -> None:
    """Raises ``RunError`` where a run's student cannot be compared with its teacher: there was none, or it is gone."""
    teacher = run.config().teacher
    if teacher == NO_TEACHER:
        raise RunError(
            f"Run {run.id} learned from the labels alone: it has no teacher to be compared with. Distil from it with the "
            f"teacher run:{run.id}, and compare that."
        )
    if lost := lost_teacher(teacher):
        raise RunError(
            f"The teacher of run {run.id} is gone: it was the student of run {lost}, which has been deleted or moved. So the "
            "two cannot be compared any more. The student alone still works, and the run keeps its report and where they "
            "differed on the test pictures. To compare, make the teacher again, then distil from it once more."
        )


def new_id(created: float) -> str:
    """A name for what was made at ``created`` (Unix seconds), as ``ID`` has it."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created)) + f"{int(created * 1e6) % 1_000_000:06d}"
    return f"{stamp}-{secrets.token_hex(2)}"


def user_of(made: Path, folder: Path) -> str | None:
    """The id of a run or a sweep in ``folder`` that waits or works, with ``made`` as its dataset or its teacher."""
    for run in [*list_runs(folder), *list_runs(folder / SWEEPS)]:
        try:
            config = run.config()
            if str(made) in (config.dataset, config.teacher) and run.status() not in CLOSED:
                return run.id
        except (RunError, ValueError):  # deleted meanwhile, damaged, or of another version
            continue
    return None


def find(folder: Path, id: str) -> Run:
    """The run with this id, the start of one, or ``last``. Raises ``RunError`` where there is none, or several.

    An id from outside never becomes a path: it is only compared with the names that are there.
    """
    return one_of(list_runs(folder), id, "run", folder, "There are no runs yet.")


def one_of(every: list[Made], id: str, kind: str, folder: Path, none: str) -> Made:
    """The one of ``every`` (newest first, all in ``folder``) with this ``id``, the start of one, or ``last``.

    Raises ``RunError`` where there are several, or none, with ``none`` as a hint where there are none at all.
    """
    if id == "last" and every:
        return every[0]
    exact = [one for one in every if one.id == id]
    matches = exact or [one for one in every if id and one.id.startswith(id)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        named = ", ".join(one.id for one in matches[:5])
        raise RunError(f"{len(matches)} {kind}s start with {id!r}: {named}. Say more of it.")
    hint = f"The newest are {', '.join(one.id for one in every[:3])}." if every else none
    raise RunError(f"There is no {kind} {id!r} in {Path(folder).resolve()}. {hint}")


def list_runs(folder: Path) -> list[Run]:
    """The runs in a folder, newest first."""
    if not Path(folder).is_dir():
        return []
    names = sorted((path.name for path in Path(folder).iterdir() if ID.fullmatch(path.name)), reverse=True)
    runs = [Run(Path(folder).resolve() / name) for name in names]
    return [run for run in runs if (run.path / "config.json").exists()]


def local_owner(folder: Path) -> str:
    """The one token that owns all runs made on this machine by hand; made when first asked for."""
    path = Path(folder) / ".owner"
    if token := _text_of(path):
        return token
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"Runs cannot be kept in {folder}: {error.strerror}. Name another place with --runs-dir."
        ) from error
    with FileLock(path.with_name(".owner.lock")):
        if not _text_of(path):  # an empty one is from a kill between its making and its filling
            fresh = path.with_name(f".owner.{secrets.token_hex(4)}")
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_hex(16))
            fresh.replace(path)
        return path.read_text()


def _text_of(path: Path) -> str:
    """A file's text; nothing of one that is not there."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def owner_hash(token: str) -> str:
    """What is kept of a token: it cannot be made from this again."""
    return hashlib.sha256(token.encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _owner_of(run: Run, changed: int, file: int) -> str:
    """The owner's hash in ``config.json`` as it was written at ``changed``, in ``file``."""
    return run.settings()["owner"]
