"""One ruler for teacher, student and baseline: original files, each model's own processor, float32."""

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
from kd.runs.store import check_teacher_exists
from kd.system.cache import Cache, folder_stamp
from kd.text import some

TOP = 5


@dataclass(frozen=True)
class ComparedModel:
    """A model ready to be compared, and what it costs."""

    model: Any
    processor: Any
    cost: dict[str, Any]
    unknown: tuple[str, ...] = ()
    """The classes that a teacher does not know."""

    def megabytes(self) -> float:
        """What its parameters and buffers take in memory, MB."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


# Teachers and students that were compared last: loading them takes longer than asking them.
_models = Cache(lambda: limits.current().compare_mb, ComparedModel.megabytes)


def cached_student(run: Run) -> ComparedModel:
    """A run's student, from memory if it was compared before and is still the same. Raises ``UserError``."""

    def load() -> ComparedModel:
        model, processor, its = load_run_student(run)
        return ComparedModel(model, processor, model_cost(model, its.size))

    return _cached(("student", run.path), run.path / "student", load)


def cached_teacher(name: str, classes: list[str], label_map: str | None = None) -> ComparedModel:
    """A teacher, its outputs in the order of ``classes``, from memory likewise. Raises ``UserError``."""

    def load() -> ComparedModel:
        teacher = load_teacher(name, classes, label_map)
        known = [True] * len(teacher.classes) if teacher.known is None else teacher.known.tolist()
        unknown = tuple(name for name, known in zip(teacher.classes, known, strict=True) if not known)
        return ComparedModel(teacher, teacher.processor, model_cost(teacher.model, teacher.normalization.size), unknown)

    return _cached(("teacher", name, label_map, *classes), Path(os.path.expanduser(name)), load)


def _cached(key: tuple, folder: Path, load: Callable[[], ComparedModel]) -> ComparedModel:
    return _models.get(key, load, lambda: folder_stamp(folder))


def compare(run: Run | Path | str, images: list[Any], device: str = "cpu") -> dict[str, Any]:
    """A run's teacher and student side by side on pictures (paths, or ``PIL.Image``).

    Returns ``pictures`` (for each: ``name`` and either ``error`` or ``teacher``, ``student`` (the top five as
    ``label, confidence``) and ``agree``), ``teacher`` and ``student`` (parameters, megabytes, FLOPs, latency),
    ``agreement``, ``speedup``, ``size_ratio`` and ``note``. A picture that cannot be read does not spoil the others.

    Raises ``UserError`` if the run has no student, or no teacher, or none of the pictures can be read.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    check_teacher_exists(run)
    student = cached_student(run)
    id2label = student.model.config.id2label
    classes = [id2label[i] for i in range(len(id2label))]
    teacher = cached_teacher(run.config().teacher, classes, run.config().label_map)
    where = torch.device(device)

    both = {"teacher": (teacher.model, teacher.processor), "student": (student.model, student.processor)}
    rows, first, inputs = [], None, {name: [] for name in both}
    for nth, image in enumerate(images):  # one at a time: 64 large ones would take gigabytes
        name, picture = _opened(image, nth)
        if isinstance(picture, BadPicture):
            rows.append({"name": name, "error": str(picture)})
            continue
        rows.append({"name": name})
        first = first or picture
        for side, (_, processor) in both.items():
            inputs[side].append(run_processor(processor, [picture]))
    if first is None:
        raise UserError(" ".join(row["error"] for row in rows) or "No pictures were given.")
    tops = {name: _top(model, inputs[name], classes, where) for name, (model, _) in both.items()}
    for row, ours, theirs in zip((r for r in rows if "error" not in r), tops["teacher"], tops["student"], strict=True):
        row |= {"teacher": ours, "student": theirs, "agree": ours[0]["label"] == theirs[0]["label"]}

    was_busy = is_any_run_training(run.path.parent)
    timed = measure_latency(both, first, where)
    sides = {
        "teacher": {**teacher.cost, **timed["teacher"]},
        "student": {**student.cost, **timed["student"]},
    }
    return {
        "run": run.id,
        "pictures": rows,
        **sides,
        "agreement": sum(row.get("agree", False) for row in rows) / len(inputs["teacher"]),
        **cost_ratios(sides["teacher"], sides["student"]),
        "note": " ".join(
            [*_unknown(teacher.unknown), *([BUSY_NOTE] if was_busy or is_any_run_training(run.path.parent) else [])]
        )
        or None,
    }


def _unknown(names: tuple[str, ...]) -> list[str]:
    """Words about the classes that a teacher does not know."""
    return [f"The teacher does not know {some(names)}: it never says so."] if names else []


def _opened(image: Any, nth: int) -> tuple[str, Image.Image | BadPicture]:
    if isinstance(image, Image.Image):
        return f"picture {nth + 1}", upright_rgb(image)
    try:
        return str(image), open_picture(Path(image))
    except BadPicture as problem:
        return str(image), problem


@torch.inference_mode()
def _top(model: Any, inputs: list[torch.Tensor], classes: list[str], device: torch.device) -> list[list[dict]]:
    """For each picture (``[1, 3, H, W]``) the most likely classes, best first: ``label`` and ``confidence`` (a
    probability)."""
    answers = []
    for start in range(0, len(inputs), SCORING_BATCH):
        values = torch.cat(inputs[start : start + SCORING_BATCH]).to(device)
        best = model.eval().to(device)(pixel_values=values).logits.float().softmax(-1).topk(min(TOP, len(classes)))
        for chances, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            answers.append(
                [{"label": classes[i], "confidence": round(p, 5)} for i, p in zip(indices, chances, strict=True)]
            )
    return answers
