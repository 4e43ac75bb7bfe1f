"""Copies of runs, sweeps and datasets in a folder that outlives the disk, such as a Space's bucket: ``KD_BUCKET``.

What is mounted there may know no append and no seek, and may lose what was being written when a server dies. So a copy is
two files, ``runs/ID-MARK.tar`` and ``runs/ID.json``, each written from beginning to end beside its place and renamed. The
second names the first with its size and hash, and is written last: without it there is no copy. It also holds the small
files that change in a closed run (its name, its owner), so that a rename sends some bytes and not the whole run again.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

from kd.errors import UserError
from kd.system.files import DATASETS, SWEEPS
from kd.system.ids import ID

# Name of a folder in the bucket -> the folder, beside the runs, of what is copied to it.
KINDS = {"runs": "", "sweeps": SWEEPS, "datasets": DATASETS}

# The files that change after a run, a sweep or a dataset is complete, and that are small.
SMALL = ("config.json", "dataset.json", "name")

# What says that somebody works on a folder now; nobody does in a copy.
OF_WORK = {"lock", "STOP", "reserve"}

# How the name of a folder begins that is being filled from a copy.
BACK = ".back-"

# Bytes that are read and written at a time.
BLOCK = 2**20

# Whoever deletes something waits so many seconds at most for the bucket to delete its copy.
FORGET_SECONDS = 10

log = logging.getLogger(__name__)


class NoCopy(UserError):
    """A copy is missing, or was cut, or is not what was written."""


def bucket_folder() -> Path | None:
    """Return the folder that ``KD_BUCKET`` names, ``None`` where it names none."""
    return Path(name) if (name := os.environ.get("KD_BUCKET")) else None


def forget(path: Path) -> None:
    """Delete the copy of a run, a sweep or a dataset that is about to be deleted, where there is a bucket.

    A bucket that fails, or that does not answer for ``FORGET_SECONDS``, keeps nobody from deleting: that is logged, and the
    server that keeps the copies tries again.
    """
    if (bucket := bucket_folder()) is None:
        return
    failed: list[str] = ["it does not answer"]

    def remove() -> None:
        try:
            Copy.of(path, bucket).remove()
            failed.clear()
        except OSError as error:
            failed[:] = [str(error.strerror or error)]

    thread = Thread(target=remove, daemon=True)
    thread.start()
    thread.join(FORGET_SECONDS)
    if failed:
        log.warning("The copy of %s could not be deleted from the bucket: %s.", path.name, failed[0])


def included(path: Path) -> list[tuple[str, os.stat_result]]:
    """Return the files of a folder that belong in the archive of its copy: relative names, sorted, and what is known of each.

    Left out are what can be made again (hidden files and folders, such as a dataset's cache), what belongs to a process
    that works, and ``SMALL``, which is in the other file of a copy.
    """
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(folder) / name
            small = Path(folder) == path and name in SMALL
            if not small and not _is_of_work(name) and not file.is_symlink():
                found.append((file.relative_to(path).as_posix(), file.stat()))
    return sorted(found)


def _is_of_work(name: str) -> bool:
    return name.startswith(".") or name in OF_WORK or name.endswith(".lock")


def mark_of(path: Path) -> str:
    """Return 16 hexadecimal digits that change when a file of the archive does; the same after a copy was brought back."""
    # An archive keeps a time as a decimal fraction, so finer than this it may come back changed.
    lines = [f"{name} {stat.st_size} {round(stat.st_mtime_ns / 1e6)}" for name, stat in included(path)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def glance(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what can be seen of a folder without walking through it: its entries, their sizes and times.

    In a closed run nothing changes deeper down without this changing too: whatever is made later is renamed to its place.
    """
    with os.scandir(path) as entries:
        seen = [(one.name, one.stat()) for one in entries if not _is_of_work(one.name)]
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in seen))


@dataclass(frozen=True)
class Copy:
    """The copy of one run, sweep or dataset; it holds only the folder in the bucket and the id."""

    folder: Path
    id: str

    @classmethod
    def of(cls, path: Path, bucket: Path) -> "Copy":
        """Return the copy of what is in the folder ``path``."""
        kinds = {place: kind for kind, place in KINDS.items()}
        return cls(bucket / kinds.get(path.parent.name, "runs"), path.name)

    @property
    def index(self) -> Path:
        return self.folder / f"{self.id}.json"

    def read(self) -> dict[str, Any] | None:
        """Return what the index says (``archive, bytes, sha256, mark, small``), ``None`` where there is none.

        Raises ``NoCopy`` where it is damaged.
        """
        try:
            found = json.loads(self.index.read_text(encoding="utf-8"))
            whole = re.fullmatch(r"[\w-]+\.tar", found["archive"]) and set(found["small"]) <= set(SMALL)
            if not whole or not {"bytes", "sha256", "mark"} <= set(found):
                raise ValueError("it lacks a part")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NoCopy(f"The copy {self.index} is damaged: {error}") from error
        return found

    def write(self, path: Path, is_still: Callable[[], bool], tick: Callable[[], None]) -> bool:
        """Bring the copy of the folder ``path`` up to date, and return whether it is.

        It is not where something changed meanwhile, or ``is_still()`` says that somebody works on it: then the copy from
        before stays as it was. ``tick`` is called after each block. Raises ``OSError`` where the bucket is full or away.
        """
        mark, small = mark_of(path), {name: text for name in SMALL if (text := _small(path / name)) is not None}
        try:
            old = self.read()
        except NoCopy:
            old = None
        if old and old["mark"] == mark:
            written = {name: old[name] for name in ("archive", "bytes", "sha256")}
        else:
            try:
                written = self._write_archive(path, mark, tick)
            except OSError:
                if not path.is_dir() or mark_of(path) != mark:  # somebody works on it, or has deleted it
                    return False
                raise
        if not path.is_dir() or mark_of(path) != mark or not is_still():
            if old is None or old["archive"] != written["archive"]:
                (self.folder / written["archive"]).unlink(missing_ok=True)
            return False
        new = {**written, "mark": mark, "small": small}
        if new != old:
            with written_whole(self.index) as file:
                file.write(json.dumps(new, indent=2).encode())
        self._tidy(keep=written["archive"])
        return True

    def _write_archive(self, path: Path, mark: str, tick: Callable[[], None]) -> dict[str, Any]:
        place = self.folder / f"{self.id}-{mark}.tar"
        with written_whole(place) as file:
            counted = _Counted(file, tick)
            with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT, copybufsize=BLOCK) as archive:
                for name, _ in included(path):
                    archive.add(path / name, arcname=name, recursive=False)
        return {"archive": place.name, "bytes": counted.bytes, "sha256": counted.hash.hexdigest()}

    def restore(self, path: Path, tick: Callable[[], None]) -> None:
        """Bring the copy back as the folder ``path``, whole or not at all.

        Raises ``NoCopy`` where it is not what was written, ``OSError`` where this disk is full or the bucket is away.
        """
        found = self.read()
        if found is None:
            raise NoCopy(f"There is no copy {self.index}.")
        half = path.with_name(BACK + self.id)
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        try:
            self._unpack(found, half, tick)
            for name, text in found["small"].items():
                (half / name).write_text(text, encoding="utf-8")
            os.replace(half, path)
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _unpack(self, found: dict[str, Any], half: Path, tick: Callable[[], None]) -> None:
        place = self.folder / found["archive"]
        try:
            with place.open("rb") as file:
                counted = _Counted(file, tick)
                with tarfile.open(fileobj=counted, mode="r|", copybufsize=BLOCK) as archive:
                    archive.extractall(half, filter="data")
                while counted.read(BLOCK):  # what comes after the last file
                    pass
        except (tarfile.TarError, EOFError, FileNotFoundError) as error:
            raise NoCopy(f"The copy {place} was cut, or is gone: {error}") from error
        if (counted.bytes, counted.hash.hexdigest()) != (found["bytes"], found["sha256"]):
            raise NoCopy(f"The copy {place} is not what was written: {counted.bytes:,} of {found['bytes']:,} bytes.")

    def remove(self) -> None:
        """Delete the copy; the index first, without which there is none."""
        self.index.unlink(missing_ok=True)
        self._tidy(keep="")

    def _tidy(self, keep: str) -> None:
        """Delete archives of before, and what a server that died has left half written."""
        for pattern in (f"{self.id}-*.tar", f".{self.id}*"):
            for file in self.folder.glob(pattern):
                if file.name != keep:
                    file.unlink(missing_ok=True)


def copies(bucket: Path) -> Iterator[tuple[str, Copy]]:
    """Return the copies in a bucket, the newest first, each with the folder beside the runs that it belongs in.

    Raises ``OSError`` where it cannot be read; ``Path.glob`` would call it empty then.
    """
    found = [
        (place, Copy(bucket / kind, name.removesuffix(".json")))
        for kind, place in KINDS.items()
        for name in os.listdir(bucket / kind)
        if name.endswith(".json") and ID.fullmatch(name.removesuffix(".json"))
    ]
    return iter(sorted(found, key=lambda one: one[1].id, reverse=True))


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file beside ``path`` that takes its place at the end; it is written from its beginning to its end.

    Nobody else on this machine may read it: the secret of all accounts is among what is kept so.
    """
    temporary = path.with_name(f".{path.name}.{time.time_ns():x}")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            yield file
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # not every mount has it
                    raise
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # of a bucket that has gone away; the error that says so is on its way
            temporary.unlink(missing_ok=True)


def _small(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


class _Counted:
    """A file that counts and hashes what is written to it, or read from it, in order."""

    def __init__(self, file: BinaryIO, tick: Callable[[], None]) -> None:
        self.file, self.tick = file, tick
        self.bytes, self.hash = 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._count(data)
        return self.file.write(data)

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self._count(data)
        return data

    def _count(self, data: bytes) -> None:
        self.bytes += len(data)
        self.hash.update(data)
        self.tick()
