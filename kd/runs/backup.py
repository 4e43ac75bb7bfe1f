"""Keep a server's closed runs, sweeps and datasets in a bucket, and bring them back after its disk was lost.

A Space loses its disk at each restart. A thread of the server copies there what nobody works on any more, a few seconds
after it has changed, with the secret of the folder of runs, from which accounts' tokens are made, and when each visitor was
last seen. A run that works is never copied. ``kd.runs.bucket`` says what a copy is.
"""

import json
import logging
import math
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from kd.errors import UserError
from kd.runs import visitors
from kd.runs.bucket import BACK, KINDS, Copy, NoCopy, bucket_folder, copies, glance, mark_of, written_whole
from kd.runs.run import CLOSED, Run
from kd.runs.store import local_owner
from kd.system.files import DATASETS, text_of
from kd.system.ids import ID

# How often what has changed is looked for, and how long to wait after something could not be written.
POLL_SECONDS = 3.0
RETRY_SECONDS = 20.0

# A server that starts waits so long at most for the secret that is in the bucket.
SECRET_SECONDS = 20.0

# How often the times are written at which visitors were seen.
SEEN_SECONDS = 60.0

# A copy that could not be read at the start is tried again after so long.
AGAIN_SECONDS = 300.0

# A bucket that has finished nothing for so long is said not to answer.
SILENT_SECONDS = 120.0

log = logging.getLogger(__name__)

RESTORED = "What was closed before the last restart is being brought back: {done} of {of} are here."
KEPT = "What is closed is kept when this Space restarts. What waits or runs then is lost."
MISSED = "Of what was kept from before the last restart, {n} could not be brought back. The server's log says why."
LOST = (
    "When this Space restarts, which can happen at any time, all runs and pictures on it are lost. Take away what you want to "
    "keep: its owner has given it no bucket."
)


class OtherBucket(UserError):
    """The bucket has the copies of another server."""


@dataclass
class Backup:
    """The copies in ``bucket`` of what is in ``folder``, and how far they are."""

    folder: Path
    bucket: Path
    # Kind and id -> how it looked when it was last the same as its copy.
    copied: dict[str, tuple] = field(default_factory=dict)
    # How many copies are to be brought back, and how many were.
    of: int = 0
    done: int = 0
    # What went wrong last, and since when; empty where all is well.
    problem: str = ""
    since: float = 0.0
    # The copies that were not brought back, and when that is tried again.
    missed: list[str] = field(default_factory=list)
    again: float = math.inf
    is_open: bool = False
    is_restored: bool = False
    tried: Event = field(default_factory=Event)
    alive: float = field(default_factory=time.monotonic)
    saved: tuple[float, dict[str, float]] = (0.0, {})

    def tick(self) -> None:
        """Note that the bucket answers."""
        self.alive = time.monotonic()

    # --- At the start

    def open(self) -> None:
        """Have the same secret here and there, and know when visitors were last seen.

        Raises ``OtherBucket`` where the bucket has another secret than the folder, ``UserError`` where one of the two is in the
        other, ``OSError`` where the bucket is away.
        """
        runs, bucket = self.folder.resolve(), self.bucket.resolve()
        if runs.is_relative_to(bucket) or bucket.is_relative_to(runs):
            raise UserError(
                f"it and the folder of runs, {runs}, are not apart, so that both would be lost together, or runs would work in "
                "the bucket. Name another folder in KD_BUCKET or KD_RUNS_DIR"
            )
        if not self.bucket.is_dir():
            raise FileNotFoundError(2, "there is no such folder", str(self.bucket))
        for kind in KINDS:
            (self.bucket / kind).mkdir(exist_ok=True)
        kept = text_of(self.bucket / "owner").strip()
        token = local_owner(self.folder, kept)
        if kept and token != kept:
            raise OtherBucket(
                "it has the copies of another server, or could not be read when this one started. Restart this server with "
                "an empty folder of runs, or name another folder in KD_BUCKET"
            )
        if not kept:
            with written_whole(self.bucket / "owner") as file:
                file.write(token.encode())
        with suppress(ValueError, AttributeError, TypeError):  # damaged: then everybody was seen when it was copied
            visitors.note_seen(self.folder, json.loads(text_of(self.bucket / "visitors.json") or "{}"))
        self.is_open = True

    def restore(self) -> None:
        """Bring back, newest first, what is in the bucket and not here. What cannot be is logged, and stays there."""
        for place in KINDS.values():
            for left in (self.folder / place).glob(BACK + "*"):
                shutil.rmtree(left, ignore_errors=True)
        # What was here and is gone was deleted; its copy is only still to be.
        missing = [
            (place, copy)
            for place, copy in copies(self.bucket)
            if not (path := self.folder / place / copy.id).exists() and key_of(path) not in self.copied
        ]
        self.done, self.of, self.missed, self.again = 0, len(missing), [], math.inf
        updated = time.monotonic()
        for place, copy in missing:
            if time.monotonic() - updated > RETRY_SECONDS:  # what is closed meanwhile does not wait for all
                self.update()
                updated = time.monotonic()
            path = (self.folder / place / copy.id).resolve()
            try:
                copy.restore(path, self.tick)
                if mark_of(path) == copy.read()["mark"]:
                    self.copied[key_of(path)] = glance(path)
            except (NoCopy, OSError) as problem:
                log.warning("%s was not brought back: %s", copy.id, problem)
                self.missed.append(copy.id)
                if not isinstance(problem, NoCopy):  # a full disk, or a bucket that is away: neither need last
                    self.again = time.monotonic() + AGAIN_SECONDS
            self.done += 1
        self.is_restored = True
        if self.of:
            log.warning("%d of %d copies were brought back from the bucket.", self.of - len(self.missed), self.of)

    # --- While the server runs

    def update(self) -> bool:
        """Copy what has changed and is closed, delete the copies of what is gone, and return whether all of it worked."""
        self.tick()
        if text_of(self.folder / ".owner") != text_of(self.bucket / "owner").strip():
            self.fail("the folder of runs, or the bucket, is not the one of before")  # else all would count as deleted
            return False
        found, failed = self.things(), ""
        for key in set(self.copied) - set(found):
            try:
                Copy.of(self.folder / KINDS[key.split("/")[0]] / key.split("/")[1], self.bucket).remove()
                del self.copied[key]
            except OSError as error:
                failed = f"{key} is deleted, and its copy could not be: {error.strerror or error}"
        for key, path in found.items():
            try:
                self._copy(key, path)
            except FileNotFoundError as error:
                if path.exists():  # else it has just been deleted
                    failed = f"{key} could not be copied: {error.strerror or error}"
            except OSError as error:
                failed = f"{key} could not be copied: {error.strerror or error}"
        try:
            self._save_seen()
        except OSError as error:
            failed = failed or f"nothing can be written: {error.strerror or error}"
        if failed:
            self.fail(failed)
        else:
            self.problem = ""
        return not failed

    def things(self) -> dict[str, Path]:
        """Return what is here: kind and id -> its folder."""
        found = {}
        for kind, place in KINDS.items():
            folder = (self.folder / place).resolve()
            if folder.is_dir():
                found |= {f"{kind}/{path.name}": path for path in folder.iterdir() if ID.fullmatch(path.name)}
        return found

    def _copy(self, key: str, path: Path) -> None:
        seen = glance(path)
        if self.copied.get(key) == seen or not is_closed(path):
            return
        if Copy.of(path, self.bucket).write(path, lambda: is_closed(path), self.tick):
            self.copied[key] = seen

    def _save_seen(self) -> None:
        when, before = self.saved
        if time.time() - when < SEEN_SECONDS or (now := visitors.last_seen(self.folder)) == before:
            return
        with written_whole(self.bucket / "visitors.json") as file:
            file.write(json.dumps(now).encode())
        self.saved = time.time(), now

    # --- What is said of it

    def fail(self, problem: str) -> None:
        """Note what went wrong, and log it once."""
        if problem != self.problem:
            log.warning("The bucket %s: %s.", self.bucket, problem)
            self.since = self.since if self.problem else time.time()
        self.problem = problem

    def words(self) -> str:
        """Say what would be lost at a restart; nothing on one's own machine where all is well."""
        problem = self.problem
        if time.monotonic() - self.alive > SILENT_SECONDS:
            problem = "it does not answer"
        if problem:
            clock = time.strftime("%H:%M UTC", time.gmtime(self.since or time.time()))
            return f"The bucket that keeps copies has had trouble since {clock}: {problem}. What was closed since may be lost at a restart."
        if self.done < self.of:
            return RESTORED.format(done=self.done, of=self.of)
        if self.missed:
            return MISSED.format(n=len(self.missed))
        return KEPT if self.is_restored and os.environ.get("SPACE_ID") else ""

    def work(self) -> None:
        """Restore, then copy for as long as the server lives."""
        while True:
            fine = self.step()
            self.tried.set()
            self.tick()
            time.sleep(POLL_SECONDS if fine else RETRY_SECONDS)

    def step(self) -> bool:
        """Do what has not been done of the start, then ``update``; return whether all of it worked."""
        try:
            if not self.is_open:
                self.open()
                self.tried.set()
            if not self.is_restored or time.monotonic() > self.again:
                self.restore()
            return self.update()
        except (OSError, UserError) as error:
            self.fail(str(getattr(error, "strerror", None) or error))
        except Exception:
            log.exception("the copies in the bucket")  # a thread that ended would keep nothing, and say nothing
            self.fail("an error of this program, which its log tells")
        return False


def key_of(path: Path) -> str:
    """Return the kind and the id of what is in a folder."""
    return f"{Copy.of(path, Path()).folder.name}/{path.name}"


def is_closed(path: Path) -> bool:
    """Tell whether nobody works on a run, a sweep or a dataset, nor on a job inside of it, such as an export."""
    if path.parent.name == DATASETS:
        return (path / "dataset.json").exists()
    try:
        run, whole = Run(path), (path / "config.json").exists()
        return whole and all(one.status() in CLOSED and not one.is_locked() for one in (run, *run.jobs()))
    except UserError:  # deleted meanwhile
        return False


# The copies of this process's server.
_server: Backup | None = None


def begin(folder: Path) -> None:
    """Bring back what is in the bucket, where ``KD_BUCKET`` names one, and keep copying, in the background.

    It waits for the secret, ``SECRET_SECONDS`` at most: the first visitor may need it.
    """
    global _server
    if (bucket := bucket_folder()) is None:
        return
    _server = Backup(Path(folder), bucket)
    Thread(target=_server.work, daemon=True).start()
    _server.tried.wait(SECRET_SECONDS)


def what_is_lost() -> str:
    """Say in a sentence what visitors would lose at a restart; nothing on one's own machine where all is well."""
    if _server is not None:
        return _server.words()
    return LOST if os.environ.get("SPACE_ID") else ""
