"""Keep values in memory within a bound on their sizes: ``functools.lru_cache`` counts values, and they never expire."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class _Entry:
    value: Any
    size: float
    stamp: Any
    now: Callable[[], Any]


def _always_same() -> None:
    """Return the stamp of what never changes."""


class Cache:
    """Values by key, the least recently used dropped first. It can be used by several threads.

    Args:
        most: the bound on the sizes of all values together, asked for whenever one is added.
        size: the size of a value; by default each counts as 1.

    A value is kept for as long as its ``stamp()`` is what it was when it was added.
    """

    def __init__(self, most: Callable[[], float], size: Callable[[Any], float] = lambda value: 1) -> None:
        self._most, self._size_of = most, size
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, load: Callable[[], Any], stamp: Callable[[], Any] = _always_same) -> Any:
        """Return the value of ``key``, loaded unless it is kept; whoever asks for what another loads waits for it."""
        with self._lock:
            if (entry := self._find(key)) is not None:
                return entry.value
            before, value = stamp(), load()
            self._add(key, _Entry(value, self._size_of(value), before, stamp))
            return value

    def put(self, key: Hashable, value: Any, stamp: Callable[[], Any] = _always_same) -> None:
        """Keep a value that is known already."""
        with self._lock:
            self._add(key, _Entry(value, self._size_of(value), stamp(), stamp))

    def find(self, key: Hashable) -> Any:
        """Return the value of ``key``, ``None`` where none is kept."""
        with self._lock:
            entry = self._find(key)
            return entry and entry.value

    def forget(self, key: Hashable) -> None:
        """Drop the value of ``key``, if one is kept."""
        with self._lock:
            self._entries.pop(key, None)

    def size(self) -> float:
        """Return the sizes of all values together."""
        return sum(entry.size for entry in self._entries.values())

    def _find(self, key: Hashable) -> _Entry | None:
        """Drop all whose stamps have changed, a deleted run's among them, and return the entry of ``key``."""
        for other in [other for other, entry in self._entries.items() if entry.now() != entry.stamp]:
            del self._entries[other]
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def _add(self, key: Hashable, entry: _Entry) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while self.size() > self._most():
            self._entries.popitem(last=False)


def folder_stamp(folder: Path) -> tuple:
    """Return the files of a folder, their sizes and when they were last written; nothing where there is no folder."""
    try:
        found = [(file.name, file.stat()) for file in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, status.st_mtime_ns, status.st_size) for name, status in found))
