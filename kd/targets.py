"""The teacher's logits for every (picture, view): computed once, kept on disk, memory-mapped.

The key is a hash of all that the answers depend on, so a file is either right or not found. Runs that want the same
key at once take turns: the second finds it made.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from kd.data import Pixels, Views, crop, mapped, npy_writer
from kd.models import Teacher, autocast

BATCH = 64
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Targets:
    """``logits[v]`` is float32 ``[N, C]``, the teacher's answers to view ``v`` in the order of the dataset's classes.

    ``cache`` is ``hit`` if all was there, ``partial`` if some views were, else ``miss``.
    """

    logits: list[np.ndarray]
    seconds: float
    cache: str


def load_targets(
    teacher: Teacher,
    pixels: Pixels,
    views: Views,
    count: int,
    cache: Path,
    device: torch.device,
    precision: str,
    progress: Progress = lambda done, of: None,
) -> Targets:
    """The first ``count`` views' targets from the cache; what is missing is computed and kept.

    ``progress`` is called with (pictures done, of all that are to do).
    """
    started = time.perf_counter()
    recipe = (views.fingerprint, views.count, views.crop_area, views.seed, pixels.values.shape, precision, device.type)
    key = hashlib.blake2b(repr((teacher.key(), recipe)).encode(), digest_size=16).hexdigest()
    folder = Path(cache) / "targets" / key
    folder.mkdir(parents=True, exist_ok=True)
    size = len(pixels.labels)
    with FileLock(folder / "lock"):
        found = {v: values for v in range(count) if (values := _whole(folder / f"view-{v}.npy", size)) is not None}
        missing = [v for v in range(count) if v not in found]
        for nth, view in enumerate(missing):
            path = folder / f"view-{view}.npy"
            _compute(
                teacher, pixels, views, view, path, device, precision,
                lambda done, nth=nth: progress(nth * size + done, len(missing) * size),
            )  # fmt: skip
            found[view] = mapped(path)
    state = "hit" if not missing else "partial" if len(missing) < count else "miss"
    return Targets([found[v] for v in range(count)], time.perf_counter() - started, state)


def _whole(path: Path, size: int) -> np.ndarray | None:
    """A file of targets for ``size`` pictures, or ``None``: missing, or cut short (it is deleted then)."""
    values = mapped(path)
    if values is not None and len(values) != size:
        path.unlink()
        return None
    return values


@torch.inference_mode()
def _compute(
    teacher: Teacher,
    pixels: Pixels,
    views: Views,
    view: int,
    path: Path,
    device: torch.device,
    precision: str,
    progress: Callable[[int], None],
) -> None:
    """One pass of the teacher over one view, written beside its place and renamed."""
    boxes, mirrored = (torch.from_numpy(values) for values in views.boxes(view))
    temporary = path.with_suffix(".part")
    classes = len(teacher.columns or teacher.model.config.id2label)
    with npy_writer(temporary, (classes,), np.float32) as write:
        for start in range(0, len(boxes), BATCH):
            part = slice(start, start + BATCH)
            batch = torch.from_numpy(np.array(pixels.values[part])).to(device)
            batch = crop(batch, boxes[part].to(device), mirrored[part].to(device), teacher.pipeline.size)
            batch = teacher.pipeline(batch).contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                logits = teacher(batch).logits
            write(logits.float().cpu().numpy())
            progress(min(start + BATCH, len(boxes)))
    os.replace(temporary, path)


def load_scores(key: str, cache: Path, size: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The teacher's logits ``[size, C]`` on a split by the ruler (``kd.compare.score``), kept like targets."""
    folder = Path(cache) / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.npy"
    with FileLock(folder / f"{key}.lock"):
        values = _whole(path, size)
        if values is not None:
            return values
        logits = compute()
        with npy_writer(path.with_suffix(".part"), logits.shape[1:], np.float32) as write:
            write(logits)
        os.replace(path.with_suffix(".part"), path)
        return logits
