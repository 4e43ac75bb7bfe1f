"""What was loaded last is kept, as much of it as a bound allows: ``functools.lru_cache`` counts values, not their size."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class _Kept:
    value: Any
    size: float
    stamp: Any
    now: Callable[[], Any]


class Cache:
    """Values by key, the least recently used dropped first. Safe in threads: who asks for what another loads waits for it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._lock = Lock()

    def get(
        self,
        key: Hashable,
        stamp: Callable[[], Any],
        load: Callable[[], Any],
        size: Callable[[Any], float],
        most: float,
    ) -> Any:
        """The value of ``key``, loaded unless it is kept and its ``stamp()`` is what it was then.

        All whose stamps have changed since, a deleted run's among them, leave; then the oldest until the sizes of the
        others are ``most`` together.
        """
        with self._lock:
            for other in [other for other, kept in self._kept.items() if kept.now() != kept.stamp]:
                del self._kept[other]
            if key not in self._kept:
                before, value = stamp(), load()
                self._kept[key] = _Kept(value, size(value), before, stamp)
            self._kept.move_to_end(key)
            value = self._kept[key].value
            while self.size() > most:
                self._kept.popitem(last=False)
            return value

    def size(self) -> float:
        """Of all that is kept."""
        return sum(kept.size for kept in self._kept.values())


def stamp(folder: Path) -> tuple:
    """The files of a folder, their sizes and when they were last written; nothing where there is no such folder."""
    try:
        found = [(file.name, file.stat()) for file in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, status.st_mtime_ns, status.st_size) for name, status in found))
