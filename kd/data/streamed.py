"""A training split that was streamed: its labels and hashes are here, its files are not.

Where they came from parquet files, each can be read again from there.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kd.errors import UserError

# What a process keeps of the parts of parquet files that it has read, at most, in bytes.
KEPT_BYTES = 256e6


@dataclass(frozen=True)
class ParquetRows:
    """The images of many parquet files, here or on the Hub, row by row, each read where it lies.

    A parquet file is read by row groups. The last of them are kept, since who reads one row mostly wants its neighbours.

    Args:
        files: their paths or addresses, in the order of the rows.
        column: the column of images.
        groups: int64 ``[G, 4]``, for each row group its file, its number in the file, its first row and its rows.
    """

    files: list[str]
    column: str
    groups: np.ndarray
    kept: "OrderedDict[tuple[int, int], Any]" = field(default_factory=OrderedDict, repr=False, compare=False)

    @classmethod
    def of(cls, files: list[str], column: str) -> "ParquetRows":
        """Read the footers of ``files``."""
        groups, first = [], 0
        for nth, file in enumerate(files):
            with opened_parquet(file) as opened:
                footer = opened.metadata
                for group in range(footer.num_row_groups):
                    rows = footer.row_group(group).num_rows
                    groups.append((nth, group, first, rows))
                    first += rows
        return cls(files, column, np.array(groups, np.int64).reshape(-1, 4))

    def group_of(self, places: np.ndarray) -> np.ndarray:
        """Return the row group of each of the rows ``places`` ``[N]``."""
        return np.searchsorted(self.groups[:, 2], places, side="right") - 1

    def image(self, place: int) -> dict[str, Any]:
        """Return ``bytes`` and ``path`` of the image in row ``place``."""
        number = int(self.group_of(np.array([place]))[0])
        found = self._group(number)[place - int(self.groups[number, 2])].as_py()
        return found if isinstance(found, dict) else {"bytes": found, "path": None}

    def _group(self, number: int) -> Any:
        key = (os.getpid(), number)  # a forked process must not share an open file, nor needs what its parent has kept
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        file, group = (int(value) for value in self.groups[number, :2])
        with opened_parquet(self.files[file]) as opened:
            self.kept[key] = opened.read_row_group(group, columns=[self.column], use_threads=False).column(0)
        while len(self.kept) > 1 and sum(one.nbytes for one in self.kept.values()) > KEPT_BYTES:
            self.kept.popitem(last=False)
        return self.kept[key]


@contextmanager
def opened_parquet(file: str) -> Iterator[Any]:
    """Open a parquet file that is here or, at an address, elsewhere."""
    import fsspec
    from pyarrow import parquet

    with fsspec.open(file) as source, parquet.ParquetFile(source, pre_buffer=False) as opened:
        yield opened


@dataclass(frozen=True)
class StreamedRows:
    """The training images of a stream, as far as the rest of a run asks a dataset for them.

    Args:
        labels: int64 ``[N]``, -1 where there is none.
        digests: the hashes of the files, uint8 ``[N, 16]``.
        places: int64 ``[N]``, the row of the source that each image is.
        sample: some of its images whose files were kept, a ``datasets.Dataset`` of the same columns.
        source: where the files can be read again, if they can.
    """

    labels: np.ndarray
    digests: np.ndarray
    places: np.ndarray
    sample: Any
    source: ParquetRows | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: "str | int") -> Any:
        if key == "label":
            return self.labels
        if self.source is None:
            raise UserError(
                "These pictures were streamed from archives, which are read from beginning to end, and only what was asked for "
                "then was kept. Delete the cache of the run (.cache beside the runs, or KD_CACHE_DIR), so that they are streamed "
                "again."
            )
        return {"image": self.source.image(int(self.places[key])), "label": int(self.labels[key])}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Any) -> "StreamedRows":
        """Return the rows at ``indices``."""
        rows = np.asarray(indices, np.int64)
        return replace(self, labels=self.labels[rows], digests=self.digests[rows], places=self.places[rows])

    def fingerprint(self) -> str:
        """Return what ``kd.data.pixels.fingerprint`` would of the files themselves."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(self), 65536):
            part = slice(start, start + 65536)
            labels = np.ascontiguousarray(self.labels[part], "<i8").view(np.uint8).reshape(-1, 8)
            digest.update(np.concatenate([self.digests[part], labels], axis=1).tobytes())
        return digest.hexdigest()

    def blocks(self) -> np.ndarray | None:
        """Return in which part of the source each image lies, ``[N]``: those of one part are best read together."""
        return None if self.source is None else self.source.group_of(self.places)


def looked_at(dataset: Any) -> Any:
    """Return the rows of a split whose files can be read at once: of a streamed one the sample that was kept."""
    return dataset.sample if isinstance(dataset, StreamedRows) else dataset
