"""The teacher's logits for every (picture, view): computed once, kept on disk, memory-mapped.

The key is a hash of all that the answers depend on, so a file is either right or not found. Runs that want the same
key at once take turns: the second finds it made.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from kd.data.pixels import Pixels, in_order
from kd.data.views import Views, crop
from kd.evaluation.scoring import whole_array
from kd.models.device import autocast
from kd.models.teacher import Teacher
from kd.system import memory
from kd.system.files import mapped, npy_writer, rows_in

TARGET_BATCH = 64

GPU_BATCH = 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Targets:
    """``logits[v]`` is float32 ``[N, C]``, the teacher's answers to view ``v`` in the order of the dataset's classes.

    ``cache`` is ``hit`` if all was there, ``partial`` if some views were, else ``miss``.
    """

    logits: list[np.ndarray]
    seconds: float
    cache: str


def targets_folder(
    teacher: Teacher, views: Views, shape: tuple[int, ...], cache: Path, device: torch.device, precision: str
) -> Path:
    """Where the answers to decoded pictures of ``shape`` are kept, in ``view-V.npy``."""
    recipe = (views.fingerprint, views.count, views.crop_area, views.seed, tuple(shape), precision, device.type)
    key = hashlib.blake2b(repr((teacher.key(), recipe)).encode(), digest_size=16).hexdigest()
    return Path(cache) / "targets" / key


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
    folder = targets_folder(teacher, views, pixels.values.shape, cache, device, precision)
    folder.mkdir(parents=True, exist_ok=True)
    size = len(pixels.labels)
    paths = [folder / f"view-{view}.npy" for view in range(count)]
    with FileLock(folder / "lock"):
        missing = [view for view, path in enumerate(paths) if whole_array(path, size) is None]
        if missing:
            _compute_within_memory(teacher, pixels, views, missing, paths, device, precision, progress)
        logits = [mapped(path) for path in paths]
    state = "hit" if not missing else "partial" if len(missing) < count else "miss"
    return Targets(logits, time.perf_counter() - started, state)


def _compute_within_memory(
    teacher: Teacher,
    pixels: Pixels,
    views: Views,
    missing: list[int],
    paths: list[Path],
    device: torch.device,
    *rest: Any,
) -> None:
    """``_compute``, in batches of half the size each time that a GPU's memory runs out."""
    size = GPU_BATCH if device.type == "cuda" else TARGET_BATCH
    while True:
        try:
            return _compute(teacher, pixels, views, missing, paths, device, *rest, size)
        except RuntimeError as error:
            if size == 1 or not memory.ran_out_on_gpu(error):
                raise
        size //= 2
        torch.cuda.empty_cache()


@torch.inference_mode()
def _compute(
    teacher: Teacher,
    pixels: Pixels,
    views: Views,
    missing: list[int],
    paths: list[Path],
    device: torch.device,
    precision: str,
    progress: Progress,
    size: int,
) -> None:
    """One pass over the pixels in batches of ``size``, every missing view of each batch, from where an interrupted pass
    has stopped; each view's file is written beside its place and renamed."""
    shape, of = (len(teacher.classes),), len(pixels.labels)
    parts = {view: paths[view].with_suffix(".part") for view in missing}
    boxes = {view: [torch.from_numpy(values).to(device) for values in views.boxes(view)] for view in missing}
    begun = min(min(rows_in(part, shape, np.float32) for part in parts.values()), of)
    done = begun * len(missing)
    with ExitStack() as stack:
        write = {v: stack.enter_context(npy_writer(part, shape, np.float32, begun)) for v, part in parts.items()}
        for start, values in in_order(pixels.values, begun, size):
            batch = torch.from_numpy(values).to(device)
            rows = slice(start, start + len(batch))
            for view in missing:
                seen = crop(batch, *(part[rows] for part in boxes[view]), teacher.normalization.size)
                seen = teacher.normalization(seen).contiguous(memory_format=torch.channels_last)
                with autocast(device, precision):
                    write[view](teacher(seen).logits.float().cpu().numpy())
                done += len(batch)
                progress(done, of * len(missing))
    for view, part in parts.items():
        os.replace(part, paths[view])
