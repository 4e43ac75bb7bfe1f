"""What visitors ask of models is answered in a process of its own: a picture that is the end of it, or memory that runs
out, does not take the page along, and the page's threads need not take turns with torch's.
"""

import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from kd.data.images import open_picture
from kd.errors import UserError
from kd.runs.run import Run
from kd.runs.store import existing_teacher
from kd.system import lazy_imports, memory

SECONDS = 600.0
"""An answer may take so long: sixty-four of the largest pictures take some minutes."""

NICE = 5
"""Lower in priority than the page, higher than a run."""

SPIN = "1000"
"""How often one of torch's threads looks whether the others are done before it sleeps (``GOMP_SPINCOUNT``).
With libgomp's own milliseconds, two of them that the scheduler puts on one core while a run trains on the other each waste
the other's time, and an answer takes ten times as long."""

THUMBNAIL = 160
"""Of a compared picture, in pixels."""

ENDED = (
    "The process that asks the models has ended, for want of memory or because of a picture. Try again, with fewer or "
    "smaller pictures."
)


class Inference:
    """Calls functions in a process that is started when one is first called, and again after one was its end.

    One is called at a time. ``seconds`` is how long one may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.process: multiprocessing.Process | None = None
        self._lock = Lock()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``, all of which can be pickled, or what it raises.

        Raises ``UserError`` where the process has ended over it, or was ended because it took too long.
        """
        with self._lock:
            if self.process is None or not self.process.is_alive():
                self._begin()
            try:
                self.pipe.send((function, arguments))
                if not self.pipe.poll(self.seconds):
                    self.end()
                    raise UserError(f"No answer came in {self.seconds:g} s. Try again, with fewer or smaller pictures.")
                done, answer = self.pipe.recv()
            except (EOFError, OSError):
                self.end()
                raise UserError(ENDED) from None
        if done:
            return answer
        raise answer

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")  # the page has threads, which a fork would lose
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True, name="inference")
        self.process.start()
        theirs.close()

    def end(self) -> None:
        """End the process, and with it what it keeps in memory."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


ask = Inference()
"""The page's."""


def _serve(pipe: Connection) -> None:
    """The process: answers until its page is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the page's to hear
    Thread(target=_end_with_the_page, daemon=True).start()
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read when torch is imported
    if sys.platform == "linux":
        os.nice(NICE)
    memory.go_first()
    with suppress(EOFError, OSError):
        while True:
            function, arguments = pipe.recv()
            try:
                answer = True, function(*arguments)
            except (UserError, ValueError) as problem:
                answer = False, problem
            except Exception as error:  # others need not survive being pickled
                if memory.ran_out(error):
                    return  # which the page says; the next process begins with none taken
                answer = False, RuntimeError(f"{type(error).__name__}: {error}")
                answer[1].add_note(traceback.format_exc())
            pipe.send(answer)


def _end_with_the_page() -> None:
    multiprocessing.parent_process().join()
    os._exit(0)


# --- What is asked


def warm_up() -> None:
    """Import what an answer needs: seconds that the first visitor to ask would wait."""
    lazy_imports.load("kd.evaluation.compare")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def side_by_side(folder: Path, pictures: list[str], thumbnails: bool) -> dict[str, Any]:
    """``kd.evaluation.compare`` of the run in ``folder`` on files; with ``thumbnails``, each picture's ``thumbnail`` too, PNG or JPEG
    (``None`` for one that cannot be read). Raises ``UserError``."""
    warm_up()
    from kd.evaluation.compare import compare

    found = compare(Run(folder), pictures)
    if thumbnails:
        for row, path in zip(found["pictures"], pictures, strict=True):
            row["thumbnail"] = None if "error" in row else thumbnail(path)
    return found


def thumbnail(path: str) -> bytes:
    """A small copy of a picture: JPEG, or PNG where it is small already."""
    picture = open_picture(Path(path))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, "PNG" if max(picture.size) <= 64 else "JPEG")
    return data.getvalue()


def teacher_says(name: str, path: Path) -> tuple[list[str], list[float]]:
    """A teacher's class names ``[C]``, whatever they are, and its logits ``[C]`` for a picture.

    Raises ``UserError`` where it cannot be asked: not there, one class only, answers that are not finite.
    """
    picture = open_picture(path)
    warm_up()
    import torch

    from kd.models.processor import run_processor
    from kd.models.teacher import load_teacher

    teacher = load_teacher(existing_teacher(name), None)
    id2label = teacher.model.config.id2label
    names = [str(id2label[index]) for index in sorted(id2label)]
    if len(names) < 2:
        raise UserError(f"The teacher {name!r} knows one class only: there is nothing to learn from its answer.")
    with torch.inference_mode():
        logits = teacher(run_processor(teacher.processor, [picture])).logits[0].float()
    if not logits.isfinite().all():
        raise UserError("The teacher answers with numbers that are not finite: its weights are damaged.")
    return names, [round(value, 4) for value in logits.tolist()]
