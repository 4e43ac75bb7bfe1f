"""A run that is worked on in pieces, because its GPU is lent for a while only: on ZeroGPU (``kd.ui.zerogpu`` asks for it).

An ordinary process prepares it without the GPU and leaves it ``paused`` for the reason ``gpu``. Then each piece that has
the GPU ends ``paused`` in time: for the reason ``time``, or at last ``cpu``, when all is trained. Another ordinary process
measures the students and writes the report. All of them work on the same folder, as a run that is resumed does.
"""

import time
from typing import Self

from kd.runs.run import Run
from kd.system.zerogpu import is_zerogpu

# Why a run is paused -> what its owner is told.
WORDS = {
    "gpu": "All is prepared, and training needs the GPU. Resume asks for it.",
    "time": "The time with the GPU was over; all that was trained is saved. Resume asks for more.",
    "cpu": "The training is done. Resume measures the student on the test split.",
    "quota": "Your GPU time of today is used up. Resume tomorrow, or sign in.",
    "pending": "Too much GPU time is lent to your other tasks at the moment. Resume when one of them is done.",
    "duration": "ZeroGPU lends a GPU for a shorter time only than a piece of this run needs. Choose the device cpu.",
    "queue": "No GPU was free. Resume asks again.",
    "worker": "The GPU was taken away before what was trained last could be saved. Resume goes on from the last checkpoint.",
    "closed": "The page was closed before there was a GPU. Resume asks for it.",
}

# With these the page that follows a run asks for the next piece by itself.
GOES_ON = ("gpu", "time", "closed")

# The time to save is kept free this many times, and twice as many after each time that it was not enough.
MARGIN = 1.5

# Seconds that the end of a piece takes besides.
CLOSING_SECONDS = 1.0


class PauseAsked(Exception):
    """The run's present process ends its piece here: ``reason`` is one of ``WORDS``."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or WORDS[reason])
        self.reason = reason


def is_in_pieces(run: Run) -> bool:
    """Tell whether a run is worked on in pieces here: on ZeroGPU, unless it is to train on the CPU or belongs to a sweep,
    whose runs no page follows one by one."""
    if not is_zerogpu():
        return False
    settings = run.settings()
    return "sweep" not in settings and settings["config"].get("device") != "cpu"


class Piece:
    """What one process does of such a run: what needs the GPU, until ``ends``, or without ``ends`` what does not.

    Args:
        ends: when the GPU is taken away, by ``time.monotonic()``.
        saving: seconds that saving a checkpoint of this run took at most, ``None`` before the first.
        evaluating: the same of the student on validation.
        margin: how many times both are kept free at the end.
    """

    def __init__(
        self,
        ends: float | None = None,
        saving: float | None = None,
        evaluating: float | None = None,
        margin: float = MARGIN,
    ) -> None:
        self.ends, self.saving, self.evaluating, self.margin = ends, saving, evaluating, margin

    @classmethod
    def with_gpu(cls, run: Run, ends: float) -> Self:
        """Return the piece of a run that has the GPU until ``ends``, with what was measured in those before it."""
        saved, killed = run.last("saved") or {}, 0
        for event in reversed(run.events()):
            if event["event"] == "paused" and event["reason"] != "worker":
                break
            killed += event["event"] == "paused"
        return cls(ends, saved.get("saving"), saved.get("evaluating"), MARGIN * 2**killed)

    @property
    def has_gpu(self) -> bool:
        return self.ends is not None

    def is_over(self, seconds: float) -> bool:
        """Tell whether the GPU is taken away before something of so many ``seconds`` is surely done."""
        return self.has_gpu and time.monotonic() + self.margin * seconds + CLOSING_SECONDS >= self.ends
