"""Compare a run's teacher and student on a few images: predictions, latency and size, each with its own processor."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kd import limits
from kd.data.images import BadPicture, open_picture, upright_rgb
from kd.errors import UserError
from kd.evaluation.latency import BUSY_NOTE, cost_ratios, measure_latency, model_cost
from kd.evaluation.scoring import SCORING_BATCH, load_run_student
from kd.models.processor import run_processor
from kd.models.teacher import load_teacher
from kd.runs.queue import is_any_run_training
from kd.runs.run import Run
from kd.runs.store import check_teacher_exists, teacher_here
from kd.system.cache import Cache, folder_stamp
from kd.text import some

# Most likely classes returned for each image.
TOP = 5


@dataclass(frozen=True)
class ComparedModel:
    """A loaded model with its processor and its ``cost``; ``unknown`` are the classes that a teacher does not know."""

    model: Any
    processor: Any
    cost: dict[str, Any]
    unknown: tuple[str, ...] = ()

    def megabytes(self) -> float:
        """Return the memory that its parameters and buffers take, in MB."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


# Teachers and students that were compared last: loading them takes longer than asking them.
_models = Cache(lambda: limits.current().compare_mb, ComparedModel.megabytes)


def cached_student(run: Run) -> ComparedModel:
    """Return a run's student, from the cache where its files have not changed since.

    Raises ``UserError`` where the run has no student.
    """

    def load() -> ComparedModel:
        model, processor, normalization = load_run_student(run)
        return ComparedModel(model, processor, model_cost(model, normalization.size))

    return _cached(("student", run.path), run.path / "student", load)


def cached_teacher(name: str, classes: list[str], label_map: str | None = None) -> ComparedModel:
    """Return a teacher with its outputs in the order of ``classes``, from the cache where its files have not changed since.

    Raises ``UserError`` as ``load_teacher`` does.
    """

    def load() -> ComparedModel:
        teacher = load_teacher(name, classes, label_map)
        known = [True] * len(teacher.classes) if teacher.known is None else teacher.known.tolist()
        unknown = tuple(name for name, known in zip(teacher.classes, known, strict=True) if not known)
        return ComparedModel(teacher, teacher.processor, model_cost(teacher.model, teacher.normalization.size), unknown)

    return _cached(("teacher", name, label_map, *classes), Path(os.path.expanduser(name)), load)


def _cached(key: tuple, folder: Path, load: Callable[[], ComparedModel]) -> ComparedModel:
    return _models.get(key, load, lambda: folder_stamp(folder))


def compare(run: Run | Path | str, images: list[Any], device: str = "cpu") -> dict[str, Any]:
    """Compare a run's teacher and student on images, given as paths or as ``PIL.Image``.

    Returns:
        ``pictures``, ``teacher`` and ``student`` (parameters, megabytes, FLOPs, latency), ``agreement``, ``speedup``,
        ``size_ratio`` and ``note``. Each of ``pictures`` has a ``name`` and either ``teacher``, ``student`` (the top five
        as ``label, confidence``) and ``agree``, or ``error`` where the image cannot be read.

    Raises:
        UserError: where the run has no student or no teacher, or where no image can be read.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    check_teacher_exists(run)
    student = cached_student(run)
    id2label = student.model.config.id2label
    classes = [id2label[i] for i in range(len(id2label))]
    teacher = cached_teacher(teacher_here(run), classes, run.config().label_map)
    both, torch_device = {"teacher": teacher, "student": student}, torch.device(device)
    rows, first, inputs = _read_images(images, both)
    predictions = {name: _top(one.model, inputs[name], classes, torch_device) for name, one in both.items()}
    readable = [row for row in rows if "error" not in row]
    for row, ours, other in zip(readable, predictions["student"], predictions["teacher"], strict=True):
        row |= {"teacher": other, "student": ours, "agree": ours[0]["label"] == other[0]["label"]}

    was_busy = is_any_run_training(run.path.parent)
    latency = measure_latency({name: (one.model, one.processor) for name, one in both.items()}, first, torch_device)
    costs = {name: {**one.cost, **latency[name]} for name, one in both.items()}
    notes = (
        [f"The teacher does not know {some(teacher.unknown)}, so it never predicts that."] if teacher.unknown else []
    )
    if was_busy or is_any_run_training(run.path.parent):
        notes.append(BUSY_NOTE)
    return {
        "run": run.id,
        "pictures": rows,
        **costs,
        "agreement": sum(row["agree"] for row in readable) / len(readable),
        **cost_ratios(costs["teacher"], costs["student"]),
        "note": " ".join(notes) or None,
    }


def _read_images(
    images: list[Any], models: dict[str, ComparedModel]
) -> tuple[list[dict[str, Any]], Image.Image, dict[str, list[torch.Tensor]]]:
    """Read images and prepare them for each model, one by one, because many large originals would fill the memory.

    Returns a row for each image with its ``name`` and, where it cannot be read, its ``error``; the first readable image;
    and for each model its inputs ``[1, 3, H, W]``. Raises ``UserError`` where no image can be read.
    """
    rows, first, inputs = [], None, {name: [] for name in models}
    for index, source in enumerate(images):
        name, image = _opened(source, index)
        if isinstance(image, BadPicture):
            rows.append({"name": name, "error": str(image)})
            continue
        rows.append({"name": name})
        first = first or image
        for model, one in models.items():
            inputs[model].append(run_processor(one.processor, [image]))
    if first is None:
        raise UserError(" ".join(row["error"] for row in rows) or "No pictures were given.")
    return rows, first, inputs


def _opened(source: Any, index: int) -> tuple[str, Image.Image | BadPicture]:
    """Return an image's name and the image, or the reason why it cannot be read."""
    if isinstance(source, Image.Image):
        return f"picture {index + 1}", upright_rgb(source)
    try:
        return str(source), open_picture(Path(source))
    except BadPicture as problem:
        return str(source), problem


@torch.inference_mode()
def _top(model: Any, inputs: list[torch.Tensor], classes: list[str], device: torch.device) -> list[list[dict]]:
    """Return each image's most likely classes, the most likely first: ``label`` and ``confidence`` (a probability)."""
    found = []
    for start in range(0, len(inputs), SCORING_BATCH):
        values = torch.cat(inputs[start : start + SCORING_BATCH]).to(device)
        best = model.eval().to(device)(pixel_values=values).logits.float().softmax(-1).topk(min(TOP, len(classes)))
        for probabilities, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            found.append(
                [{"label": classes[i], "confidence": round(p, 5)} for i, p in zip(indices, probabilities, strict=True)]
            )
    return found
