"""Ask the teacher for the logits of every (image, view) once, and keep them on disk, memory-mapped.

The key is a hash of all that the logits depend on, so a file is either right or not found. Runs that want the same key
at once take turns: the second finds it made.
"""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from kd.data.images import open_row
from kd.data.pixels import Pixels, Undecoded, in_batches, in_order
from kd.data.views import Views, crop
from kd.evaluation.scoring import whole_array
from kd.models.device import Compute
from kd.models.processor import run_processor
from kd.models.teacher import Teacher
from kd.system import memory
from kd.system.files import mapped, npy_writer, rows_in
from kd.training.distributed import ALONE, Ranks

# It changes with the way in which views are made: logits that were kept before are of other images.
VIEWS_VERSION = 2
# Images that a teacher is asked about at once, on the CPU and on a GPU.
TARGET_BATCH = 64
GPU_BATCH = 256
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Targets:
    """What a run's students learn from the teacher.

    Args:
        logits: for each view float32 ``[N, C]``, in the order of the dataset's classes; empty where the teacher is asked
            in every step, where there is none, or where all is trained.
        seconds: how long it took to load or compute them.
        cache: ``hit`` if all was there, ``partial`` if some views were, else ``miss``; ``online``, or ``none`` without a
            teacher.
        teacher: the teacher, if there is one.
        validation: its logits ``[N, C]`` on the validation images.
    """

    logits: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0
    cache: str = "none"
    teacher: Teacher | None = None
    validation: np.ndarray | None = None

    @property
    def online(self) -> bool:
        """Tell whether the teacher is asked in every step."""
        return self.teacher is not None and self.cache == "online"


@dataclass(frozen=True)
class TargetCache:
    """Where a teacher's logits of a split's views are kept, in ``folder`` with all other caches. ``first_row`` is that of the
    images that a teacher is asked about, where they are a part of the split."""

    teacher: Teacher
    views: Views
    folder: Path
    compute: Compute
    first_row: int = 0

    def place(self, shape: tuple[int, ...]) -> Path:
        """Return the folder of the logits of decoded images of ``shape`` ``[N, 3, S, S]``, kept in ``view-V.npy``."""
        views = self.views
        recipe = (
            VIEWS_VERSION, views.fingerprint, views.count, views.crop_area, views.seed, tuple(shape), self.compute.precision,
            self.compute.device.type,
        )  # fmt: skip
        key = hashlib.blake2b(repr((self.teacher.key(), recipe)).encode(), digest_size=16).hexdigest()
        return Path(self.folder) / "targets" / key


def load_targets(
    cache: TargetCache, pixels: Pixels, count: int, progress: Progress = lambda done, of: None, ranks: Ranks = ALONE
) -> Targets:
    """Load the first ``count`` views' logits from the cache; compute and keep what is missing. Each of several processes
    computes its own rows, and the first puts them together.

    ``progress`` is called with (logits done, of all that are to do).
    """
    started = time.perf_counter()
    folder = cache.place(pixels.values.shape)
    folder.mkdir(parents=True, exist_ok=True)
    size = len(pixels.labels)
    paths = {view: folder / f"view-{view}.npy" for view in range(count)}
    told = f"{count} views in {folder.name}"
    with FileLock(folder / "lock") if ranks.is_first else nullcontext():
        missing = ranks.first(told, lambda: {v: path for v, path in paths.items() if whole_array(path, size) is None})
        if missing and ranks.count > 1:
            _compute_rows(cache, pixels, missing, progress, ranks)
            ranks.first(f"{told} together", lambda: _put_together(missing, ranks))
        elif missing:
            _compute_within_memory(cache, pixels, missing, progress)
        logits = [mapped(path) for path in paths.values()]
    state = "hit" if not missing else "partial" if len(missing) < count else "miss"
    return Targets(logits, time.perf_counter() - started, state, cache.teacher)


def rows_file(path: Path, rank: int, ranks: Ranks) -> Path:
    """Return the file of one process's rows of a view, until all are put together."""
    return path.with_name(f"{path.stem}.rows-{rank}-of-{ranks.count}.npy")


def _compute_rows(
    cache: TargetCache, pixels: Pixels, missing: dict[int, Path], progress: Progress, ranks: Ranks
) -> None:
    """Compute this process's rows of the missing views, as far as an interrupted run has not."""
    rows = ranks.rows(len(pixels.labels))
    files = {view: rows_file(path, ranks.rank, ranks) for view, path in missing.items()}
    mine = {view: path for view, path in files.items() if whole_array(path, rows.stop - rows.start) is None}
    if mine and rows.start < rows.stop:
        part = part_of_pixels(pixels, rows)
        own = dataclasses.replace(cache, first_row=rows.start)
        _compute_within_memory(own, part, mine, lambda done, of: progress(done * ranks.count, of * ranks.count))
    ranks.tell(f"rows {ranks.rank} of {sorted(map(str, missing.values()))}")


def part_of_pixels(pixels: Pixels, rows: slice) -> Pixels:
    """Return some rows of a split."""
    values = pixels.values
    if isinstance(values, Undecoded):
        values = Undecoded(values.dataset.select(range(rows.start, rows.stop)), values.frame)
    else:
        values = values[rows]
    originals = pixels.originals and pixels.originals.select(range(rows.start, rows.stop))
    return dataclasses.replace(pixels, values=values, labels=pixels.labels[rows], originals=originals)


def _put_together(missing: dict[int, Path], ranks: Ranks) -> None:
    """Make each missing view of the rows that all processes have computed, once they have."""
    for rank in range(1, ranks.count):
        ranks.wait(f"rows {rank} of {sorted(map(str, missing.values()))}")
    for path in missing.values():
        files = [rows_file(path, rank, ranks) for rank in range(ranks.count)]
        parts = [part for part in map(mapped, files) if part is not None]  # of few images some have none
        temporary = path.with_suffix(".part")
        with npy_writer(temporary, parts[0].shape[1:], np.float32) as write:
            for part in parts:
                write(part)
        os.replace(temporary, path)
    for path in missing.values():
        for left in path.parent.glob(f"{path.stem}.rows-*"):  # those of an interrupted run of other processes too
            left.unlink(missing_ok=True)


def _compute_within_memory(cache: TargetCache, pixels: Pixels, missing: dict[int, Path], progress: Progress) -> None:
    """Compute, in batches of half the size each time that a GPU's memory runs out."""
    size = GPU_BATCH if cache.compute.device.type == "cuda" else TARGET_BATCH
    while True:
        try:
            return _compute_all(cache, pixels, missing, progress, size)
        except RuntimeError as error:
            if size == 1 or not memory.ran_out_on_gpu(error):
                raise
        size //= 2
        torch.cuda.empty_cache()


def _compute_all(cache: TargetCache, pixels: Pixels, missing: dict[int, Path], progress: Progress, size: int) -> None:
    """Compute view 0 from the original files, as the teacher's own processor shows them, and the others from crops."""
    of, whole = len(pixels.labels) * len(missing), 0
    if 0 in missing and pixels.originals is not None:
        whole = len(pixels.labels)
        _compute_whole(cache, pixels.originals, missing[0], lambda done, _: progress(done, of), size)
        missing = {view: path for view, path in missing.items() if view}
    if missing:
        _compute(cache, pixels, missing, lambda done, _: progress(whole + done, of), size)


@torch.inference_mode()
def _compute_whole(cache: TargetCache, originals: Any, path: Path, progress: Progress, size: int) -> None:
    """Compute view 0's logits in batches of ``size``, from where an interrupted pass stopped."""
    if path.exists():  # from before the memory of a GPU ran out
        return
    teacher, part, shape = cache.teacher, path.with_suffix(".part"), (len(cache.teacher.classes),)
    done = min(rows_in(part, shape, np.float32), len(originals))
    rest = Processed(originals.select(range(done, len(originals))), teacher.processor)
    with npy_writer(part, shape, np.float32, done) as write:
        for inputs in in_batches(rest, size):
            values = inputs.to(cache.compute.device).contiguous(memory_format=torch.channels_last)
            with cache.compute.autocast():
                write(teacher(values).logits.float().cpu().numpy())
            done += len(inputs)
            progress(done, len(originals))
    os.replace(part, path)


@dataclass(frozen=True)
class Processed:
    """A dataset's images as a model's processor makes inputs of them, float32 ``[B, 3, H, W]`` for a batch."""

    dataset: Any
    processor: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return run_processor(self.processor, [open_row(self.dataset[index]) for index in indices])


@torch.inference_mode()
def _compute(cache: TargetCache, pixels: Pixels, missing: dict[int, Path], progress: Progress, size: int) -> None:
    """Pass over the pixels once in batches of ``size``, every missing view of each batch, from where an interrupted pass
    stopped. Each view's file is written beside its place and renamed."""
    teacher, device = cache.teacher, cache.compute.device
    shape, of = (len(teacher.classes),), len(pixels.labels)
    parts = {view: path.with_suffix(".part") for view, path in missing.items()}
    own = slice(cache.first_row, cache.first_row + of)
    boxes = {v: [torch.from_numpy(values[own]).to(device) for values in cache.views.boxes(v)] for v in missing}
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
                with cache.compute.autocast():
                    write[view](teacher(seen).logits.float().cpu().numpy())
                done += len(batch)
                progress(done, of * len(missing))
    for view, part in parts.items():
        os.replace(part, missing[view])
