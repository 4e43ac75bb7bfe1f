"""Score a model in float32 on the original files, through its own processor. Every reported accuracy comes from here."""

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
from kd.evaluation.metrics import Agreement, classification_metrics
from kd.models.processor import Normalization, read_normalization, run_processor
from kd.runs.run import Run
from kd.system.files import mapped, npy_writer

# Images in a batch while scoring.
SCORING_BATCH = 64


@dataclass(frozen=True)
class Scores:
    """A model's ``logits`` float32 ``[M, C]`` for the images of a dataset that can be read.

    ``indices`` ``[M]`` are their rows. ``unreadable`` holds the reasons why the other images cannot be read.
    """

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
    """Compute a model's logits for all images of a dataset, in float32, each through the model's own processor.

    Raises ``UserError`` where no image can be read, or the logits are not finite.
    """
    model = model.eval().to(device)
    logits, indices, unreadable, batch = [], [], [], []

    def flush() -> None:
        logits.append(model(pixel_values=torch.cat(batch).to(device)).logits.float().cpu().numpy())
        batch.clear()

    for index, image in open_images(dataset):
        if isinstance(image, BadPicture):
            unreadable.append(str(image))
            continue
        indices.append(index)
        # Processed one by one, because a batch of large originals would fill the memory.
        batch.append(run_processor(processor, [image]))
        if len(batch) == SCORING_BATCH:
            flush()
            progress(index + 1, len(dataset))
    if batch:
        flush()
    if not logits:
        raise UserError(f"None of the pictures can be read. The first: {unreadable[0]}")
    scores = Scores(np.concatenate(logits), np.array(indices), unreadable)
    if not np.isfinite(scores.logits).all():
        raise UserError("The model's outputs are not finite numbers: its weights are damaged.")
    return scores


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return ``accuracy`` and macro ``f1`` of logits ``[N, C]`` for labels ``[N]``."""
    return classification_metrics().compute(predictions=logits.argmax(-1), references=labels)


def agreement(student: np.ndarray, teacher: np.ndarray) -> float:
    """Return the share of images for which two models predict the same class, from their logits ``[N, C]``."""
    return Agreement().compute(predictions=student.argmax(-1), references=teacher.argmax(-1))["agreement"]


def load_run_student(run: Run) -> tuple[Any, Any, Normalization]:
    """Load a run's student: model, processor, normalization. Raises ``UserError`` where the run has not saved one yet."""
    folder = run.path / "student"
    if not (folder / "config.json").exists():
        raise UserError(f"Run {run.id} ({run.status()}) has no student yet.")
    return load_saved_student(folder)


def load_saved_student(folder: Path) -> tuple[Any, Any, Normalization]:
    """Load a saved student with transformers alone, as a user would: model, processor, normalization."""
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    return model, processor, read_normalization(processor)


def whole_array(path: Path, size: int) -> np.ndarray | None:
    """Open a file of logits for ``size`` images; return ``None`` where it is missing or truncated, and delete it then."""
    values = mapped(path)
    if values is not None and len(values) != size:
        path.unlink()
        return None
    return values


def scores_file(key: str, cache: Path) -> Path:
    """Return the file of the logits that ``load_scores`` keeps under ``key``."""
    return Path(cache) / "scores" / f"{key}.npy"


def load_scores(key: str, cache: Path, size: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the logits ``[size, C]`` kept in ``cache`` under ``key``, computed by ``compute`` where they are missing.

    ``key`` names teacher and split, so that the teacher is scored on each split once (``score``).
    """
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
