"""The process that asks models for the page: an image or a lack of memory that ends it does not end the page.

Nor do the page's threads have to take turns with torch's.
"""

import base64
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.data.images import open_picture
from kd.errors import UserError
from kd.runs.run import Run
from kd.runs.store import existing_teacher
from kd.system import lazy_imports, memory
from kd.system.processes import Worker, WorkerEnded, WorkerTimeout

# Seconds that an answer may take: sixty-four of the largest images take some minutes.
SECONDS = 600.0

# Lower in priority than the page, higher than a run.
NICE = 5

# How often one of torch's threads checks whether the others are done before it sleeps (``GOMP_SPINCOUNT``). libgomp's own
# milliseconds would be wasted where a run trains on one of two cores: an answer would take ten times as long.
SPIN = "1000"

# Side of the thumbnail of a compared image, in pixels.
THUMBNAIL = 160


class Inference(Worker):
    """Call functions in the process that asks the models; ``seconds`` is how long one may take."""

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__(_prepare, seconds)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(*arguments)``. Raises as ``Worker`` does, in words for a visitor."""
        try:
            return super().__call__(function, *arguments)
        except WorkerTimeout as problem:
            raise UserError(f"{problem} Try again, with fewer or smaller pictures.") from None
        except WorkerEnded:
            raise UserError(
                "The process that asks the models has ended, for want of memory or because of a picture. Try again, with "
                "fewer or smaller pictures."
            ) from None


def _prepare() -> None:
    """Set up the process before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    if sys.platform == "linux":
        os.nice(NICE)
    memory.prefer_to_be_killed()


# The page's own.
ask = Inference()


# --- What it is asked


def warm_up() -> None:
    """Import what an answer needs, so that the first visitor does not wait for it."""
    lazy_imports.load("kd.evaluation.compare")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def side_by_side(folder: Path, pictures: list[str], thumbnails: bool) -> dict[str, Any]:
    """Return ``kd.evaluation.compare.compare`` of the run in ``folder`` on files.

    With ``thumbnails`` each row also has a ``thumbnail``, the ``data:`` address of a small copy, empty for an image that
    cannot be read. Raises ``UserError``.
    """
    warm_up()
    from kd.evaluation.compare import compare

    found = compare(Run(folder), pictures)
    if thumbnails:
        for row, path in zip(found["pictures"], pictures, strict=True):
            row["thumbnail"] = "" if "error" in row else thumbnail(path)
    return found


def thumbnail(path: str) -> str:
    """Return a small copy of an image as a ``data:`` address: a JPEG, or a PNG where it is small already."""
    image = open_picture(Path(path))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "PNG" if max(image.size) <= 64 else "JPEG")
    return f"data:image;base64,{base64.b64encode(data.getvalue()).decode()}"


def teacher_says(name: str, path: Path) -> tuple[list[str], list[float]]:
    """Return a teacher's own class names ``[C]`` and its logits ``[C]`` for an image.

    Raises ``UserError`` where the teacher is not there, has one class only, or answers with numbers that are not finite.
    """
    image = open_picture(path)
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
        logits = teacher(run_processor(teacher.processor, [image])).logits[0].float()
    if not logits.isfinite().all():
        raise UserError("The teacher answers with numbers that are not finite: its weights are damaged.")
    return names, [round(value, 4) for value in logits.tolist()]
