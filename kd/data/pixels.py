"""Decode the images of a split once, into one memory-mapped array, and fingerprint them."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from kd import limits
from kd.data.images import BadPicture, file_bytes, open_row
from kd.data.views import Frame
from kd.errors import UserError
from kd.system.files import mapped, npy_writer, write_whole
from kd.system.processes import may_have_children


def fingerprint(dataset: Any) -> str:
    """Return a hash of the files and labels themselves, in order; it does not depend on where or when they were read."""
    digest = hashlib.blake2b(digest_size=16)
    for row in dataset:
        data = file_bytes(row)
        digest.update(len(data).to_bytes(8, "little") + row["label"].to_bytes(8, "little", signed=True))
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Pixels:
    """A split for training: ``values[indices]`` is uint8 ``[B, 3, H, W]``, what a ``Frame`` keeps of each image, and ``labels``
    int64 ``[N]``. Unreadable images are left out and named in ``unreadable``.

    ``originals`` are the rows of the dataset themselves, in the same order, or ``None`` where there are none.
    ``values`` is a memory-mapped array, or ``Undecoded`` where that would not fit on the disk; ``warnings`` says so.
    """

    values: "np.ndarray | Undecoded"
    labels: np.ndarray
    fingerprint: str
    unreadable: list[str]
    cached: bool
    warnings: list[str] = field(default_factory=list)
    originals: Any = None


class Undecoded:
    """Images that are decoded each time they are read, which worker processes should do."""

    def __init__(self, dataset: Any, frame: Frame) -> None:
        self.dataset, self.frame, self.shape = dataset, frame, (len(dataset), 3, *frame.size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: Any) -> np.ndarray:
        rows = np.arange(len(self))[indices]
        return np.stack([_framed(self.dataset[int(row)], self.frame) for row in rows])


def pixels_folder(fingerprint: str, frame: Frame, cache: Path) -> Path:
    """Return the folder in which a split's decoded images are kept, as ``pixels.npy``."""
    return Path(cache) / "pixels" / f"{fingerprint}-{frame.key()}"


def load_pixels(
    dataset: Any, frame: Frame, cache: Path, progress: Callable[[int, int], None] = lambda done, of: None
) -> Pixels:
    """Decode what ``frame`` keeps of a split's images, or map what an earlier run decoded.

    Raises ``UserError`` if more of the pictures cannot be read than ``limits.unreadable_share``.
    """
    print_ = fingerprint(dataset)
    labels = np.asarray(dataset["label"], dtype=np.int64)
    folder = pixels_folder(print_, frame, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        unreadable, values = _unreadable(folder), mapped(folder / "pixels.npy")
        if unreadable is None or (values is not None and len(values) != len(dataset) - len(unreadable)):
            values = None
        warnings = [] if values is not None else _too_large(len(dataset), frame, folder)
        cached = unreadable is not None and (values is not None or bool(warnings))
        if not cached:
            try:
                _decode(dataset, frame, folder, progress, keep=not warnings)
            finally:  # what was not finished cannot be gone on with, and on a full disk it is in the way
                (folder / "pixels.part").unlink(missing_ok=True)
            unreadable, values = _unreadable(folder), mapped(folder / "pixels.npy")
    keep = np.setdiff1d(np.arange(len(labels)), [entry["index"] for entry in unreadable])
    originals = dataset.select(keep)
    if values is None:
        values = Undecoded(originals, frame)
    reasons = [entry["reason"] for entry in unreadable]
    return Pixels(values, labels[keep], print_, reasons, cached, warnings, originals)


def _unreadable(folder: Path) -> list[dict[str, Any]] | None:
    """Return what ``_decode`` has left out (``index``, ``reason``), or ``None`` where it has not ended."""
    try:
        return json.loads((folder / "unreadable.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _too_large(count: int, frame: Frame, folder: Path) -> list[str]:
    """Return a warning if the decoded images would take more disk than they may, else nothing.

    They may take ``KD_PIXELS_GB`` (10^9 bytes), or half of what is free.
    """
    budget = float(os.environ.get("KD_PIXELS_GB") or shutil.disk_usage(folder).free / 2e9)
    height, width = frame.size
    needed = count * 3 * height * width / 1e9
    if needed <= budget:
        return []
    return [
        f"Decoded, {count:,} pictures of {height} x {width} px would take {needed:.1f} GB, more than the {budget:.1f} GB that may be "
        f"used (KD_PIXELS_GB, or half of the free disk). They are decoded anew in each epoch by {decoding_processes()} processes, "
        "which is slower. Free some space, or choose a smaller image size."
    ]


def _decode(dataset: Any, frame: Frame, folder: Path, progress: Callable[[int, int], None], keep: bool) -> None:
    """Decode every image once, by several processes, into ``pixels.npy`` if it is to be kept.

    What could not be read goes into ``unreadable.json``.
    """
    temporary, unreadable, done = folder / "pixels.part", [], 0
    with npy_writer(temporary, (3, *frame.size), np.uint8) as write:
        for answers in in_batches(Framed(dataset, frame), 32):
            for index, answer in enumerate(answers, start=done):
                if isinstance(answer, str):
                    unreadable.append({"index": index, "reason": answer})
            if len(unreadable) > max(1, limits.current().unreadable_share * len(dataset)):
                reasons = " ".join(entry["reason"] for entry in unreadable[:5])
                raise UserError(
                    f"More than {limits.current().unreadable_share:.0%} of the pictures cannot be read. The first: {reasons}"
                )
            if keep and (read := [answer for answer in answers if not isinstance(answer, str)]):
                write(np.stack(read))
            done += len(answers)
            progress(done, len(dataset))
    write_whole(folder / "unreadable.json", json.dumps(unreadable))
    if keep:
        os.replace(temporary, folder / "pixels.npy")


def _framed(row: dict[str, Any], frame: Frame) -> np.ndarray:
    """Return what a frame keeps of a row's image as uint8 ``[3, H, W]``."""
    image, (height, width) = open_row(row, least=frame.least()), frame.size
    box = frame.box(*image.size)
    if image.size != (width, height) or box != (0, 0, width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=3)
    return np.asarray(image).transpose(2, 0, 1)


@dataclass(frozen=True)
class Framed:
    """What a frame keeps of a dataset's images, uint8 ``[3, H, W]``, or in words why one cannot be read."""

    dataset: Any
    frame: Frame

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return _framed(self.dataset[index], self.frame)
        except BadPicture as problem:
            return str(problem)


def in_order(values: "np.ndarray | Undecoded", begin: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``Pixels.values`` from index ``begin`` on as batches uint8 ``[B, 3, H, W]``, each after its first index."""
    if not isinstance(values, Undecoded):
        for start in range(begin, len(values), size):
            yield start, np.array(values[start : start + size])
        return
    rest = values.dataset.select(range(begin, len(values)))
    for nth, batch in enumerate(in_batches(Framed(rest, values.frame), size)):
        yield begin + nth * size, np.stack(batch)


def decoding_processes() -> int:
    """Return how many processes decode images: one for each core that this one may use.

    It is 0, for this process alone, where processes cannot be forked: a spawned one would run a user's script again.
    Nor may a process have any that has the GPU of ZeroGPU.
    """
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" and may_have_children() else 0


def in_batches(items: Any, size: int) -> Iterator[Any]:
    """Yield lists of ``size`` items of a sequence, in order, made by several processes.

    A sequence with ``__getitems__``, which takes a list of indices, makes each batch as one, of whatever type it likes.
    """
    from torch.utils.data import DataLoader

    workers = decoding_processes()
    yield from DataLoader(
        items,
        batch_size=size,
        collate_fn=(lambda batch: batch) if hasattr(items, "__getitems__") else list,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
