"""What is kept of a stream, in a folder of the cache: labels, hashes and places of the training images, the files of some of
them, and the files of all validation and test images. ``PROGRESS`` says up to where, so that an interrupted pass goes on.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kd.data.splits import Splits
from kd.data.stream import Row
from kd.data.streamed import ParquetRows, StreamedRows
from kd.errors import UserError
from kd.system.files import rows_in, write_whole

# How far the pass has come, and what it has come to.
PROGRESS, RESULT = "progress.json", "stream.json"

# What is kept of each training image: name -> the shape of one and its type.
KEPT: dict[str, tuple[tuple[int, ...], type]] = {
    "labels": ((), np.int64), "digests": ((16,), np.uint8), "places": ((), np.int64),
}  # fmt: skip


@dataclass
class Progress:
    """How far a pass over a source has come.

    Args:
        ended: the splits of the source that have been read to their end.
        state: from which the next of them goes on, as `datasets` writes it; ``None``: from its beginning.
        done: its rows that have been read.
        chunks: how many chunks of rows have been read of all splits.
        train: training images so far, ``readable`` those of them that could be decoded.
        unreadable: the others (``index``, ``reason``).
        pixels: whether decoded images are kept.
        counts: how many images each split has, and how many were left out for what reason.
        seconds: how long it took so far.
        streamed: whether all rows have been read.
    """

    ended: list[str] = field(default_factory=list)
    state: dict[str, Any] | None = None
    done: int = 0
    chunks: int = 0
    train: int = 0
    readable: int = 0
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    pixels: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    streamed: bool = False

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def save(self, folder: Path) -> None:
        write_whole(folder / PROGRESS, json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path, parts: dict[str, tuple[tuple[int, ...], type]]) -> "Progress | None":
        """Return how far an interrupted pass came, if everything that it wrote until then is there; else ``None``.

        ``parts``: name -> shape and type of a row of each file ``NAME.part``.
        """
        try:
            found = cls(**json.loads((folder / PROGRESS).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if found.streamed:
            return found
        for name, (shape, kind) in parts.items():
            if name == "pixels" and not found.pixels:
                continue
            if rows_in(folder / f"{name}.part", shape, kind) < found.rows_of(name):
                return None  # as after a power cut
        return found

    def rows_of(self, name: str) -> int:
        """Return how many rows the file ``NAME.part`` has."""
        return self.train if name in KEPT else self.readable


def features_of(classes: list[str]) -> Any:
    """Return the columns of the kept files."""
    from datasets import ClassLabel, Features, Image, Value

    return Features({"image": Image(decode=False), "label": ClassLabel(names=classes) if classes else Value("int64")})


def write_rows(path: Path, rows: Iterable[Row], classes: list[str]) -> None:
    """Write images and labels as an Arrow file, which is mapped and never loaded."""
    import pyarrow

    schema = features_of(classes).arrow_schema
    rows = list(rows)
    images = pyarrow.array([row.image for row in rows], schema.field("image").type)
    labels = pyarrow.array([row.label for row in rows], pyarrow.int64())
    table = pyarrow.Table.from_arrays([images, labels], schema=schema)
    part = path.with_suffix(".writing")
    with pyarrow.OSFile(str(part), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        writer.write_table(table)
    os.replace(part, path)


def read_rows(folder: Path, name: str) -> Any:
    """Return the ``datasets.Dataset`` of the rows in ``NAME-*.arrow``, ``None`` where there are none."""
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset.from_file(str(path)) for path in sorted(folder.glob(f"{name}-*.arrow"))]
    return concatenate_datasets(parts) if parts else None


def drop_chunks_after(folder: Path, chunks: int) -> None:
    """Delete what was kept of chunks that are going to be read again."""
    for path in folder.glob("*.arrow"):
        name, _, number = path.stem.rpartition("-")
        if name != "sample" and int(number) >= chunks:
            path.unlink()


def kept_splits(folder: Path) -> Splits:
    """Return the splits of a stream that has been read. Raises ``UserError`` where they are not there any more."""
    try:
        told = json.loads((folder / RESULT).read_text())
    except (FileNotFoundError, ValueError):
        raise UserError(
            "The pictures were streamed, and what was kept of them is gone: the cache was deleted. Start the run anew."
        ) from None
    kept = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in KEPT}
    source = None
    if told["files"]:
        source = ParquetRows(told["files"], told["column"], np.load(folder / "groups.npy"))
    train = StreamedRows(**kept, sample=read_rows(folder, "sample"), source=source)
    held_out = [read_rows(folder, name) for name in ("validation", "test")]
    return Splits(train, *held_out, told["classes"], told["said"], labelled=told["labelled"])
