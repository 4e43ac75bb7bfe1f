"""Walk through a folder of one's own machine: links are followed, and what is left out is named."""

from collections.abc import Iterator
from pathlib import Path

from kd.errors import UserError

# What systems leave in folders, in lower case; names that begin with a dot as well.
SILENT = {"__macosx", "thumbs.db", "desktop.ini"}


def is_left_behind(name: str) -> bool:
    """Return whether a file or folder of this name is one that systems leave behind: nobody misses it."""
    return name.startswith(".") or name.lower() in SILENT


def files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each file below a folder, in the order of names, with the reason why it cannot be read, or ''.

    Links are followed. One that leads to a folder that it lies in would never end: it is given with that reason instead.
    Raises ``UserError`` for a folder that may not be read.
    """
    yield from _below(folder, frozenset(folder.resolve().parents))


def _below(folder: Path, holders: frozenset[Path]) -> Iterator[tuple[Path, str]]:
    holders = holders | {folder.resolve()}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}. Allow it, or remove the folder.") from error
    for entry in entries:
        if is_left_behind(entry.name):
            continue
        if not _is_encoded(entry.name):
            yield entry, "has a name in no known encoding"
        elif entry.is_dir():
            if entry.resolve() in holders:
                yield entry, "is a link to a folder that it lies in"
            else:
                yield from _below(entry, holders)
        else:
            yield entry, "" if entry.is_file() else "is a link to nothing, a pipe or a device"


def _is_encoded(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
