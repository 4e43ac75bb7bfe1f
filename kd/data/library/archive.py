"""Read a stranger's archive (zip, tar, or tar packed by gzip, bzip2 or xz) or folder, file by file.

Nothing is ever written under a name from an archive, nothing is unpacked to a disk. Sizes are counted on what comes
out of the decompressor, not on what the archive says of itself.
"""

import bz2
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from kd import limits
from kd.data.walk import files_below, is_left_behind
from kd.errors import UserError
from kd.text import shown

MB = 10**6

# Bytes that are read at once.
CHUNK = 64 * 1024

# An archive may unpack to so much, whatever its size.
FREE_BYTES = 100 * MB

TWICE = "has the same name as a file before it"

# The most bytes of a part of a name, characters of a name, and parts of a name.
LONGEST_PART, LONGEST_NAME, DEEPEST = 255, 1024, 32

# How the names of archives end.
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")

# How a packed tar begins -> what unpacks it.
UNPACKERS: dict[bytes, Callable] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}

# How archives begin that are not read.
NOT_READ = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstd"}

# What the standard library raises on damaged archives.
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    NotImplementedError, RuntimeError,
)  # fmt: skip

# Characters that turn the direction of what follows: a name would read as another.
UNSAFE = re.compile("[\u202a-\u202e\u2066-\u2069]")


class Refused(UserError):
    """An archive that cannot be taken at all."""


class Unreadable(UserError):
    """One file of an archive that cannot be read; the others can."""


@dataclass(frozen=True)
class Member:
    """A file of an archive: the ``parts`` of its name (NFC) and its ``size`` in bytes, as the archive says; or the
    ``reason`` why it is skipped. ``read`` gives its bytes, until the next member is asked for; it raises
    ``Unreadable``, or ``Refused`` for the whole archive."""

    name: str
    parts: tuple[str, ...] = ()
    size: int = 0
    reason: str = ""
    read: Callable[[], bytes] = bytes


def members(source: Path) -> Iterator[Member]:
    """Yield the files of an archive or a folder, without what systems leave behind (``__MACOSX``, dot files).

    Raises ``Refused`` where there are more than ``limits.files`` entries, where more comes out than may, or where it is
    damaged: an archive that is cut short would else be imported in part.
    """
    source = Path(source)
    if source.is_dir():
        yield from _distinct(_of_folder(source))
        return
    if not source.is_file():
        raise Refused(f"There is no archive {source}.")
    with source.open("rb") as file:
        kind = kind_of(source)
        if kind not in ("zip", "tar"):
            raise Refused(
                f"{source.name} is {kind or 'no archive'}. Expected a zip, a tar (also .tar.gz, .tar.bz2, .tar.xz) or a "
                "folder. Pack the folder of pictures as a zip."
            )
        with _explained(source.name):
            yield from _distinct((_of_zip if kind == "zip" else _of_tar)(file, source.name))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the standard library's errors into ``Refused``."""
    try:
        yield
    except MemoryError:
        raise Refused(f"{name} needs too much memory to be read. Pack it anew, as a zip.") from None
    except DAMAGE as error:
        raise Refused(f"{name} is damaged or cut short ({shown(str(error))}). Pack or upload it again.") from error


def kind_of(path: Path) -> str:
    """Return ``zip`` or ``tar`` by a file's content, the name of an archive that is not read, or ''."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if head[257:262] == b"ustar" or any(map(head.startswith, UNPACKERS)):
        return "tar"
    return next((f"a {name} archive" for magic, name in NOT_READ.items() if head.startswith(magic)), "")


def wrong_with(part: str) -> str:
    """Return why a name is not accepted, or ''."""
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in part):
        return "its name has control characters, or is in no known encoding"
    if UNSAFE.search(part):
        return "its name changes the direction of writing"
    return "its name is too long" if len(part.encode()) > LONGEST_PART else ""


# --- Names


def _named(name: str, size: int, what: str, read: Callable[[], bytes]) -> Member | None:
    """Return a member, with a reason if its name or ``what`` it is forbids it; ``None`` for what systems leave behind."""
    parts = tuple(unicodedata.normalize("NFC", part) for part in re.split(r"[/\\]", name) if part not in ("", "."))
    if any(part != ".." and is_left_behind(part) for part in parts):
        return None
    reason = _wrong_path(name, parts) or what or next(filter(None, map(wrong_with, parts)), "")
    if not reason and parts[-1].lower().endswith(ARCHIVES):
        reason = "is an archive inside the archive, which is not opened"
    if not reason and size > (most := limits.current().picture_mb) * MB:
        reason = f"is larger than {most:g} MB"
    return Member(shown(name), () if reason else parts, size, reason, read)


def _wrong_path(name: str, parts: tuple[str, ...]) -> str:
    if not parts:
        return "has no name"
    if ".." in parts:
        return "its path leaves the archive"
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        return "its path is absolute"
    return "its name is too long" if len(name) > LONGEST_NAME or len(parts) > DEEPEST else ""


def _distinct(found: Iterator[Member | None]) -> Iterator[Member]:
    """Yield the members, of those with the same name the first; the others are skipped.

    Names that differ in capitals only are different ones: nothing is ever written under them.
    """
    seen: set[tuple[str, ...]] = set()
    most = limits.current().files
    for nth, member in enumerate(found, start=1):
        if nth > most:
            raise _too_many(most)
        if member is None:
            continue
        if member.parts in seen:
            yield Member(member.name, reason=TWICE)
            continue
        if member.parts:
            seen.add(member.parts)
        yield member


def _too_many(most: float) -> Refused:
    return Refused(f"There are more than {most:,.0f} entries in it, which is the most that is read (KD_FILES).")


# --- Sizes


class _Meter:
    """Count what comes out of an archive of ``packed`` bytes, and stop a bomb."""

    def __init__(self, packed: int) -> None:
        allowed = limits.current()
        self.unpacked, self.most, self.ratio = 0, allowed.unpacked_mb, allowed.ratio
        self.packed = max(1, packed)

    def add(self, count: int) -> None:
        self.unpacked += count
        if self.unpacked > self.most * MB:
            raise Refused(f"It unpacks to more than {self.most:,.0f} MB, the most that is taken.")
        if self.unpacked > FREE_BYTES and self.unpacked > self.ratio * self.packed:
            raise Refused(
                f"It unpacks to more than {self.ratio:g} times its size, which photos never do: it is a bomb."
            )


# --- Folders


def _of_folder(folder: Path) -> Iterator[Member | None]:
    """Yield the files below a folder of this machine, also those that links lead to (``kd.data.walk``)."""
    for path, what in files_below(folder):
        size = path.stat().st_size if not what else 0
        yield _named(path.relative_to(folder).as_posix(), size, what, partial(from_folder, path))


def from_folder(path: Path) -> bytes:
    """Return a file's bytes. Raises ``Unreadable``."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error


# --- Zip


def _of_zip(file: BinaryIO, name: str) -> Iterator[Member | None]:
    packed = os.fstat(file.fileno()).st_size
    if _claimed(file, packed) > (most := limits.current().files):
        raise _too_many(most)
    meter = _Meter(packed)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) > most:
            raise _too_many(most)
        for info in infos:
            if info.orig_filename.endswith(("/", "\\")) or stat.S_ISDIR(info.external_attr >> 16):
                yield None
                continue
            read = partial(_from_zip, archive, info, meter)
            yield _named(_decoded(info), info.file_size, _kind_in_zip(info), read)


def _claimed(file: BinaryIO, size: int) -> int:
    """Return how many entries a zip says it has, before a million of them become objects."""
    file.seek(max(0, size - 2**16 - 100))
    tail = file.read()
    for magic, at, form in ((b"PK\6\6", 32, "<Q"), (b"PK\5\6", 10, "<H")):
        if (start := tail.rfind(magic)) >= 0 and len(tail) >= start + at + struct.calcsize(form):
            return struct.unpack_from(form, tail, start + at)[0]
    return 0


def _decoded(info: zipfile.ZipInfo) -> str:
    """Return a name as it was meant: many programs write UTF-8 without saying so, which the standard reads as cp437."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.orig_filename


def _kind_in_zip(info: zipfile.ZipInfo) -> str:
    """Return why an entry is no file that can be read, or ''."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link"
    if kind not in (0, stat.S_IFREG):
        return "is a device, a pipe or the like"
    return "is encrypted" if info.flag_bits & 0x41 else ""


def _from_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: _Meter) -> bytes:
    blocks = []
    try:
        with archive.open(info) as file:
            while block := file.read(CHUNK):
                meter.add(len(block))
                blocks.append(block)
    except DAMAGE as error:
        raise Unreadable(f"is damaged in the archive ({shown(str(error))})") from error
    return b"".join(blocks)


# --- Tar


class _Forward:
    """A stream for ``tarfile``, which goes forward only and counts what it reads.

    ``tarfile`` reads some headers whole, of whatever size they say they are, and Python before 3.11.10 searches them
    in quadratic time: those of more than 64 KB are refused, and so is going back, into which negative sizes lead.
    """

    def __init__(self, file: BinaryIO, meter: _Meter) -> None:
        self.file, self.meter, self.at, self.last = file, meter, 0, b""

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise Refused("It has a header of a size that no archive of pictures has.")
        block = self.file.read(size)
        self.at += len(block)
        self.meter.add(len(block))
        self.last = block
        return block

    def seek(self, to: int) -> None:
        if to < self.at:
            raise Refused("Its headers contradict each other.")
        while self.at < to and self.read(min(CHUNK, to - self.at)):
            pass

    def take(self, name: str, start: int, size: int) -> bytes:
        """Return ``size`` bytes from ``start`` on, of the archive ``name``."""
        blocks = []
        with _explained(name):
            self.seek(start)
            while size > 0 and (block := self.read(min(CHUNK, size))):
                blocks.append(block)
                size -= len(block)
            if size:
                raise EOFError("it ends in the middle of a file")
        return b"".join(blocks)


def _of_tar(file: BinaryIO, name: str) -> Iterator[Member | None]:
    head = file.read(8)
    file.seek(0)
    unpack = next((unpack for magic, unpack in UNPACKERS.items() if head.startswith(magic)), None)
    meter = _Meter(os.fstat(file.fileno()).st_size)
    stream = _Forward(unpack(file) if unpack else file, meter)
    with tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape") as archive:
        while info := archive.next():
            archive.members.clear()  # it would keep them all
            if info.isdir():
                yield None
            else:
                read = partial(stream.take, name, info.offset_data, info.size)
                yield _named(info.name, info.size, _kind_in_tar(info), read)
    if stream.last.strip(b"\0") or len(stream.last) < tarfile.BLOCKSIZE:
        raise EOFError("it has no end")


def _kind_in_tar(info: tarfile.TarInfo) -> str:
    """Return why an entry is no file that can be read, or ''."""
    if info.islnk() or info.issym():
        return "is a link"
    if not info.isreg():
        return "is a device, a pipe or the like"
    return "is a sparse file" if info.issparse() else ""
