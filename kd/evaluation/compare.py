"""One ruler for teacher, student and baseline: original files, each model's own processor, float32."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kd import limits
from kd.data.images import BadPicture, open_picture, upright_rgb
from kd.data.splits import pictures, some
from kd.evaluation import latency
from kd.evaluation.metrics import Agreement, classification
from kd.models.teacher import Pipeline, load_teacher, pipeline, run_processor
from kd.runs.process import busy
from kd.runs.run import Run, RunError, check_teacher
from kd.system.cache import Cache, stamp

BATCH = 64
TOP = 5
_models = Cache()
"""Teachers and students that were compared last: loading them takes longer than asking them."""


@dataclass(frozen=True)
class Scores:
    """A model's ``logits`` float32 ``[M, C]`` on the pictures of a dataset that can be read, which are those at
    ``indices`` ``[M]``; why others cannot is in ``unreadable``."""

    logits: np.ndarray
    indices: np.ndarray
    unreadable: list[str]


@torch.inference_mode()
def score(
    model: Any,
    processor: Any,
    dataset: Any,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Scores:
    """A model's answers to a dataset's pictures, by the ruler.

    Raises ``RunError`` where no picture can be read, or the answers are not finite numbers.
    """
    model = model.eval().to(device)
    logits, indices, unreadable, batch = [], [], [], []

    def flush() -> None:
        logits.append(model(pixel_values=torch.cat(batch).to(device)).logits.float().cpu().numpy())
        batch.clear()

    for index, picture in pictures(dataset):
        if isinstance(picture, BadPicture):
            unreadable.append(str(picture))
            continue
        indices.append(index)
        batch.append(run_processor(processor, [picture]))  # at once: sixty-four originals would fill the memory
        if len(batch) == BATCH:
            flush()
            progress(index + 1, len(dataset))
    if batch:
        flush()
    if not logits:
        raise RunError(f"None of the pictures can be read. The first: {unreadable[0]}")
    answers = np.concatenate(logits)
    if not np.isfinite(answers).all():
        raise RunError("The model answers with numbers that are not finite: its weights are damaged.")
    return Scores(answers, np.array(indices), unreadable)


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``accuracy`` and macro ``f1`` of logits ``[N, C]`` against labels ``[N]``."""
    return classification().compute(predictions=logits.argmax(-1), references=labels)


def agreement(student: np.ndarray, teacher: np.ndarray) -> float:
    """Share of pictures on which two models choose the same class, from their logits ``[N, C]``."""
    return Agreement().compute(predictions=student.argmax(-1), references=teacher.argmax(-1))["agreement"]


def cost(model: Any, size: tuple[int, int]) -> dict[str, Any]:
    """``parameters``, ``megabytes`` and ``flops`` of a transformers model at an input size."""
    return {
        "parameters": latency.parameters(model),
        "megabytes": round(latency.megabytes(model), 3),
        "flops": latency.flops(model, size),
    }


@torch.inference_mode()
def race(models: dict[str, tuple[Any, Any]], picture: Image.Image, device: torch.device) -> dict[str, dict[str, Any]]:
    """Latency for one picture of each ``(model, processor)``, in turns: name -> ``latency_ms``, the forward pass
    alone, and ``preprocess_ms``, the processor alone."""
    forward, preprocess = {}, {}
    for name, (model, processor) in models.items():
        values = run_processor(processor, [picture]).to(device)
        model.eval().to(device)
        forward[name] = lambda model=model, values=values: model(pixel_values=values)
        preprocess[name] = lambda processor=processor: run_processor(processor, [picture])
    forward = latency.timed_trials(forward, device)
    preprocess = latency.timed_trials(preprocess, torch.device("cpu"), seconds=0.1)
    return {
        name: {
            "latency_ms": latency.summary(forward[name], device),
            "preprocess_ms": round(float(np.percentile(preprocess[name], 50)), 3),
        }
        for name in models
    }


def load_exported(run: Run) -> tuple[Any, Any, Pipeline]:
    """The student that a run has saved: model, processor, pipeline. Raises ``RunError`` before there is one."""
    folder = run.path / "student"
    if not (folder / "config.json").exists():
        raise RunError(f"Run {run.id} ({run.status()}) has no student yet.")
    return load_student_folder(folder)


def load_student_folder(folder: Path) -> tuple[Any, Any, Pipeline]:
    """A student as `save_student` left it, loaded as anyone would: model, processor, pipeline."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    return model, processor, pipeline(processor)


@dataclass(frozen=True)
class Side:
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


def kept_student(run: Run) -> Side:
    """A run's student, from memory if it was compared before and is still the same. Raises ``RunError``."""

    def load() -> Side:
        model, processor, its = load_exported(run)
        return Side(model, processor, cost(model, its.size))

    return _kept(("student", run.path), run.path / "student", load)


def kept_teacher(name: str, classes: list[str], label_map: str | None = None) -> Side:
    """A teacher, its outputs in the order of ``classes``, from memory likewise. Raises ``RunError``."""

    def load() -> Side:
        teacher, _ = load_teacher(name, classes, label_map)
        known = [True] * len(teacher.classes) if teacher.known is None else teacher.known.tolist()
        unknown = tuple(name for name, known in zip(teacher.classes, known, strict=True) if not known)
        return Side(teacher, teacher.processor, cost(teacher.model, teacher.pipeline.size), unknown)

    return _kept(("teacher", name, label_map, *classes), Path(os.path.expanduser(name)), load)


def _kept(key: tuple, folder: Path, load: Callable[[], Side]) -> Side:
    return _models.get(key, lambda: stamp(folder), load, Side.megabytes, limits.current().compare_mb)


def compare(run: Run | Path | str, images: list[Any], device: str = "cpu") -> dict[str, Any]:
    """A run's teacher and student side by side on pictures (paths, or ``PIL.Image``).

    Returns ``pictures`` (for each: ``name`` and either ``error`` or ``teacher``, ``student`` (the top five as
    ``label, confidence``) and ``agree``), ``teacher`` and ``student`` (parameters, megabytes, FLOPs, latency),
    ``agreement``, ``speedup``, ``size_ratio`` and ``note``. A picture that cannot be read does not spoil the others.

    Raises ``RunError`` if the run has no student, or no teacher, or none of the pictures can be read.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    check_teacher(run)
    student = kept_student(run)
    id2label = student.model.config.id2label
    classes = [id2label[i] for i in range(len(id2label))]
    teacher = kept_teacher(run.config().teacher, classes, run.config().label_map)
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
        raise RunError(" ".join(row["error"] for row in rows) or "No pictures were given.")
    tops = {name: _top(model, inputs[name], classes, where) for name, (model, _) in both.items()}
    for row, ours, theirs in zip((r for r in rows if "error" not in r), tops["teacher"], tops["student"], strict=True):
        row |= {"teacher": ours, "student": theirs, "agree": ours[0]["label"] == theirs[0]["label"]}

    was_busy = busy(run.path.parent)
    timed = race(both, first, where)
    sides = {
        "teacher": {**teacher.cost, **timed["teacher"]},
        "student": {**student.cost, **timed["student"]},
    }
    return {
        "run": run.id,
        "pictures": rows,
        **sides,
        "agreement": sum(row.get("agree", False) for row in rows) / len(inputs["teacher"]),
        **ratios(sides["teacher"], sides["student"]),
        "note": " ".join([*_unknown(teacher.unknown), *([BUSY_NOTE] if was_busy or busy(run.path.parent) else [])])
        or None,
    }


def _unknown(names: tuple[str, ...]) -> list[str]:
    """Words about the classes that a teacher does not know."""
    return [f"The teacher does not know {some(names)}: it never says so."] if names else []


BUSY_NOTE = "A run was training meanwhile: both models were slower than they are alone."


def ratios(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, float]:
    """How many times faster (median latency) and smaller (megabytes) the student is."""
    return {
        "speedup": round(teacher["latency_ms"]["p50"] / student["latency_ms"]["p50"], 2),
        "size_ratio": round(teacher["megabytes"] / student["megabytes"], 2),
    }


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
    for start in range(0, len(inputs), BATCH):
        values = torch.cat(inputs[start : start + BATCH]).to(device)
        best = model.eval().to(device)(pixel_values=values).logits.float().softmax(-1).topk(min(TOP, len(classes)))
        for chances, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            answers.append(
                [{"label": classes[i], "confidence": round(p, 5)} for i, p in zip(indices, chances, strict=True)]
            )
    return answers
