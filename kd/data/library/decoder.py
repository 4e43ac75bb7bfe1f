"""Decode images of strangers in a process of their own, which may crash, hang or run out of memory."""

import math
import sys
from collections.abc import Callable

from kd import limits
from kd.data.images import BadPicture, NoPicture, open_picture
from kd.errors import UserError
from kd.system.processes import Worker, WorkerTimeout

# Seconds that decoding one image may take; it takes a tenth of a second.
SECONDS = 60.0

# Sides of so many pixels are enough: a JPEG's data are read whole in any case, and an eighth of its size shows whether
# they are sound.
LEAST_SIDE = 64

# (a file's bytes, its name) -> ``{}``, or ``reason`` and ``picture`` as ``judge`` has them.
Judge = Callable[[bytes, str], dict]


def judge(data: bytes, name: str) -> dict:
    """Return ``{}`` for an image that can be decoded, else the ``reason``, and ``picture``: whether it began like one."""
    try:
        open_picture(data, name, LEAST_SIDE)
    except BadPicture as problem:
        return {"reason": str(problem).removeprefix(f"{name} "), "picture": not isinstance(problem, NoPicture)}
    return {}


class Decoder(Worker):
    """Judge images in a process of bounded memory, which is started again when an image was its end.

    ``judge`` is what it does to one, ``seconds`` how long that may take.
    """

    def __init__(self, judge: Judge = judge, seconds: float = SECONDS) -> None:
        # A spawned process would begin with the imports of this one again, which takes a second.
        super().__init__(bound_memory, seconds, method="fork" if sys.platform == "linux" else "spawn")
        self.judge = judge

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __call__(self, data: bytes, name: str) -> dict:
        """Return what ``judge`` says of an image, or what the image did to the process."""
        try:
            return super().__call__(self.judge, data, name)
        except WorkerTimeout:
            return {"reason": f"takes longer than {self.seconds:g} s to decode", "picture": True}
        except (UserError, RuntimeError):
            return {"reason": "makes the decoder crash, or takes more memory than it has", "picture": True}


def bound_memory() -> None:
    """Let this process, and those that it starts, have ``limits.decoder_mb`` at most (where Linux can tell)."""
    most = limits.current().decoder_mb
    if sys.platform == "linux" and most < math.inf:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(most * 1e6), int(most * 1e6)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
