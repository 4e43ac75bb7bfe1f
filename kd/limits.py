"""What this server takes from a visitor: one frozen dataclass, each field of which an environment variable can change.

A server that strangers share (a Space, or ``KD_SHARED=1``) has stricter ones than one's own machine.
"""

import dataclasses
import functools
import math
import os
from dataclasses import dataclass
from typing import Self


def limit(own: float, shared: float, help: str):
    """Return a field with what holds on one's own machine, and where strangers share it; infinity is no limit."""
    return dataclasses.field(default=own, metadata={"shared": shared, "help": help})


@dataclass(frozen=True)
class Limits:
    """What one process takes. ``KD_`` and a field's name in capitals is its environment variable; ``none`` is no limit.

    Raises ``ValueError``, in words, for a value that is not a number of 0 or more.
    """

    upload_mb: float = limit(4000, 500, "size of an uploaded file, MB")
    unpacked_mb: float = limit(16000, 2000, "size of an archive's files once unpacked, MB")
    ratio: float = limit(200, 200, "how many times its size an archive may unpack to, beyond the first 100 MB")
    files: float = limit(500_000, 50_000, "entries of an archive")
    pictures: float = limit(math.inf, 20_000, "pictures of a dataset")
    classes: float = limit(1000, 200, "classes of a dataset")
    picture_mb: float = limit(64, 32, "size of one picture's file, MB")
    megapixels: float = limit(64, 64, "size of one picture once decoded, millions of pixels")
    unreadable_share: float = limit(0.1, 0.1, "share of pictures that may be unreadable before an import is refused")
    decoder_mb: float = limit(2000, 2000, "memory of the process that decodes a visitor's files, MB")
    steps: float = limit(math.inf, 50_000, "training steps of a run, over all its trainings")
    processes: float = limit(math.inf, 1, "processes of a run that train together")
    open_runs: float = limit(math.inf, 3, "runs that one visitor may have running or waiting")
    queue: float = limit(math.inf, 20, "runs that may be running or waiting in all")
    quota_mb: float = limit(math.inf, 3000, "disk that one visitor's runs and datasets may take, MB")
    disk_mb: float = limit(math.inf, 30_000, "disk that all runs and datasets may take, MB")
    idle_days: float = limit(math.inf, 7, "days after which the data of a visitor who does not come back is deleted")
    compare_mb: float = limit(3000, 3000, "memory that models kept for Compare may take, MB")

    @classmethod
    def from_environment(cls, environment: dict[str, str]) -> Self:
        """Return the limits as ``environment`` has them."""
        strict = is_shared(environment)
        values = {}
        for field in dataclasses.fields(cls):
            text = environment.get(variable(field.name), "").strip()
            default = field.metadata["shared"] if strict else field.default
            values[field.name] = number(variable(field.name), text) if text else default
        return cls(**values)


def variable(name: str) -> str:
    """Return the environment variable of a limit."""
    return f"KD_{name.upper()}"


def is_shared(environment: dict[str, str]) -> bool:
    """Return whether this server has visitors who are strangers to each other."""
    return bool(environment.get("SPACE_ID")) or environment.get("KD_SHARED") == "1"


def current() -> Limits:
    """Return the limits of this process. They are read anew only when the environment has changed: each image asks."""
    return _of(tuple(map(os.environ.get, VARIABLES)))


@functools.lru_cache(maxsize=8)
def _of(values: tuple[str | None, ...]) -> Limits:
    return Limits.from_environment({name: value for name, value in zip(VARIABLES, values, strict=True) if value})


# The environment variables that decide.
VARIABLES = ("SPACE_ID", "KD_SHARED", *(variable(field.name) for field in dataclasses.fields(Limits)))


def table() -> list[tuple[str, str, str, str]]:
    """Return for each limit its variable, its value on one's own machine and on a shared server, and its meaning."""
    return [
        (variable(f.name), _words(f.default), _words(f.metadata["shared"]), f.metadata["help"])
        for f in dataclasses.fields(Limits)
    ]


def markdown() -> str:
    """Return the same with the values that hold here, as a Markdown table."""
    head = ("Variable", "One's own machine", "Shared server", "Here", "Limit")
    here = [_words(value) for value in dataclasses.astuple(current())]
    rows = [head, ("---",) * len(head), *((*row[:3], now, row[3]) for row, now in zip(table(), here, strict=True))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def check_pictures(pictures: int, classes: int) -> None:
    """Raise ``ValueError``, in words, for a dataset of more images or classes than the limits allow.

    An import is refused earlier; a dataset from the Hub is counted once it is here.
    """
    for count, most, what in (
        (pictures, current().pictures, "pictures"),
        (classes, current().classes, "classes"),
    ):
        if count > most:
            raise ValueError(
                f"The dataset has {count:,} {what}; this server takes {most:,.0f} at most. Choose a smaller one."
            )


def check_steps(epochs: int, pictures: int, batch: int, trainings: int) -> None:
    """Raise ``ValueError``, in words, for a run of more training steps than the limit allows."""
    each, most = epochs * math.ceil(pictures / batch), current().steps
    if each * trainings > most:
        several = f" in each of {trainings} trainings" if trainings > 1 else ""
        raise ValueError(
            f"The run would take {each * trainings:,} training steps: {epochs} epochs of {pictures:,} pictures, {batch} at a "
            f"time{several}. This server takes {most:,.0f} at most. Choose fewer epochs or a larger batch."
        )


def check_processes(count: int) -> None:
    """Raise ``ValueError``, in words, for a run of more processes than the limit allows."""
    if count > current().processes:
        raise ValueError(
            f"The run would take {count} processes; this server takes {current().processes:,.0f} at most. Choose fewer."
        )


def _words(value: float) -> str:
    return "none" if value == math.inf else f"{value:,g}" if value < 1e6 else f"{value:,.0f}"


def number(name: str, text: str) -> float:
    """Return a limit from its text: a number of 0 or more, or ``none``, which is infinity.

    Raises ``ValueError``, in words with ``name``.
    """
    if text.lower() == "none":
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {text!r}; expected a number, 0 or more, or none.")
    return value
