"""Score a model: original files, its own processor, float32. Every reported accuracy comes from here."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kd.data.images import BadPicture, open_images
from kd.errors import UserError
from kd.evaluation.metrics import Agreement, classification
from kd.models.processor import Normalization, read_normalization, run_processor
from kd.runs.run import Run
from kd.system.files import mapped, npy_writer

SCORING_BATCH = 64


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

    Raises ``UserError`` where no picture can be read, or the answers are not finite numbers.
    """
    model = model.eval().to(device)
    logits, indices, unreadable, batch = [], [], [], []

    def flush() -> None:
        logits.append(model(pixel_values=torch.cat(batch).to(device)).logits.float().cpu().numpy())
        batch.clear()

    for index, picture in open_images(dataset):
        if isinstance(picture, BadPicture):
            unreadable.append(str(picture))
            continue
        indices.append(index)
        batch.append(run_processor(processor, [picture]))  # at once: sixty-four originals would fill the memory
        if len(batch) == SCORING_BATCH:
            flush()
            progress(index + 1, len(dataset))
    if batch:
        flush()
    if not logits:
        raise UserError(f"None of the pictures can be read. The first: {unreadable[0]}")
    answers = np.concatenate(logits)
    if not np.isfinite(answers).all():
        raise UserError("The model answers with numbers that are not finite: its weights are damaged.")
    return Scores(answers, np.array(indices), unreadable)


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``accuracy`` and macro ``f1`` of logits ``[N, C]`` against labels ``[N]``."""
    return classification().compute(predictions=logits.argmax(-1), references=labels)


def agreement(student: np.ndarray, teacher: np.ndarray) -> float:
    """Share of pictures on which two models choose the same class, from their logits ``[N, C]``."""
    return Agreement().compute(predictions=student.argmax(-1), references=teacher.argmax(-1))["agreement"]


def load_run_student(run: Run) -> tuple[Any, Any, Normalization]:
    """The student that a run has saved: model, processor, normalization. Raises ``UserError`` before there is one."""
    folder = run.path / "student"
    if not (folder / "config.json").exists():
        raise UserError(f"Run {run.id} ({run.status()}) has no student yet.")
    return load_saved_student(folder)


def load_saved_student(folder: Path) -> tuple[Any, Any, Normalization]:
    """A student as `save_student` left it, loaded as anyone would: model, processor, normalization."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    return model, processor, read_normalization(processor)


def whole_array(path: Path, size: int) -> np.ndarray | None:
    """A file of targets for ``size`` pictures, or ``None``: missing, or cut short (it is deleted then)."""
    values = mapped(path)
    if values is not None and len(values) != size:
        path.unlink()
        return None
    return values


def scores_file(key: str, cache: Path) -> Path:
    return Path(cache) / "scores" / f"{key}.npy"


def load_scores(key: str, cache: Path, size: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The teacher's logits ``[size, C]`` on a split by the ruler (``kd.evaluation.compare.score``), kept like targets."""
    path = scores_file(key, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        values = whole_array(path, size)
        if values is not None:
            return values
        logits = compute()
        with npy_writer(path.with_suffix(".part"), logits.shape[1:], np.float32) as write:
            write(logits)
        os.replace(path.with_suffix(".part"), path)
        return logits
