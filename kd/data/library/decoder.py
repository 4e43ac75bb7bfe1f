"""Pictures of strangers are decoded in a process of their own, which may crash, hang or run out of memory."""

import json
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from kd import limits
from kd.data.images import BadPicture, NoPicture, open_picture

SECONDS = 60.0
"""One picture may take so long to decode; it takes a tenth of a second."""

LEAST = 64
"""A JPEG's data are read whole in any case; an eighth of its size is enough to see whether they are sound."""

Judge = Callable[[bytes, str], dict]


def judge(data: bytes, name: str) -> dict:
    """``{}`` for a picture that can be decoded, else ``reason``, and ``picture``: whether it began like one."""
    try:
        open_picture(data, name, LEAST)
    except BadPicture as problem:
        return {"reason": str(problem).removeprefix(f"{name} "), "picture": not isinstance(problem, NoPicture)}
    return {}


class Decoder:
    """Asks a process about pictures, and starts another when a picture was the end of it.

    ``judge`` is what it does to one, ``seconds`` how long that may take.
    """

    def __init__(self, judge: Judge = judge, seconds: float = SECONDS) -> None:
        self.judge, self.seconds = judge, seconds
        self.process: multiprocessing.Process | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, data: bytes, name: str) -> dict:
        """What ``judge`` says of a picture, or what it did to the process."""
        if self.process is None:
            self._begin()
        try:
            self.pipe.send_bytes(name.encode())
            self.pipe.send_bytes(data)
            if not self.pipe.poll(self.seconds):
                self._end()
                return {"reason": f"takes longer than {self.seconds:g} s to decode", "picture": True}
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._end()
            return {"reason": "makes the decoder crash, or takes more memory than it has", "picture": True}

    def _begin(self) -> None:
        # A spawned process would begin with the imports of this one again, which takes a second.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.pipe, self.judge, self.seconds), daemon=True)
        self.process.start()
        theirs.close()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def bound_memory() -> None:
    """Let this process, and those it starts, have ``limits.decoder_mb`` at most (where Linux can tell)."""
    most = limits.current().decoder_mb
    if sys.platform == "linux" and most < math.inf:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(most * 1e6), int(most * 1e6)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(pipe: Connection, others: Connection, judge: Judge, seconds: float) -> None:
    """The process: answers until nobody asks any more."""
    bound_memory()
    if sys.platform == "linux":  # forked, it has both ends, and would not see that nobody holds the other any more
        others.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            name, data = pipe.recv_bytes().decode(), pipe.recv_bytes()
        except EOFError:
            return
        # Whoever asked may be gone: then nobody else would end this.
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
        answer = judge(data, name)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(json.dumps(answer).encode())
