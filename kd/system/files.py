"""Files and folders: where things are kept, and how a file is written so that no reader sees half of it."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import numpy as np

# The folder that holds the package ``kd``: the checkout, or site-packages where it was installed.
ROOT = Path(__file__).resolve().parents[2]

# The sample, its teacher and the examples. A wheel carries them inside the package; in a checkout they lie beside it.
ASSETS = ROOT / "kd" / "assets"
if not ASSETS.is_dir():
    ASSETS = ROOT / "assets"

# Bytes of the header of an ``.npy`` file of at most four axes.
NPY_HEADER = 128

# The folders of the sweeps, the imported datasets and the visitors' marks, beside the runs.
SWEEPS, DATASETS, VISITORS = ".sweeps", ".datasets", ".visitors"


def cache_folder(runs: Path, dataset: str) -> Path:
    """Return where a dataset's pixels and targets are kept: ``KD_CACHE_DIR``, or ``.cache`` beside the runs.

    Those of an imported dataset are in its own folder: they count as its owner's, and are deleted with it.
    """
    if Path(dataset).parent == Path(runs).resolve() / DATASETS:
        return Path(dataset) / ".cache"
    return Path(os.environ.get("KD_CACHE_DIR") or Path(runs) / ".cache")


@contextmanager
def npy_writer(
    path: Path, shape: tuple[int, ...], dtype: type, rows: int = 0
) -> Iterator[Callable[["np.ndarray"], None]]:
    """Give a function that appends rows to an ``.npy`` file whose number of rows is known at the end only.

    A file that is half written has no valid header: ``mapped`` takes it for missing. Its first ``rows``, which ``rows_in``
    has found, are kept and written on from.
    """

    import numpy as np

    def header() -> dict[str, Any]:
        return {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (rows, *shape)}

    def write(values: "np.ndarray") -> None:
        nonlocal rows
        values = np.ascontiguousarray(values, dtype=dtype).reshape(-1, *shape)
        file.write(values.tobytes())
        file.flush()  # so that what a reader of the rows believes to be there survives a kill
        rows += len(values)

    with Path(path).open("r+b" if rows else "wb") as file:
        # The header has a fixed size whatever the count: numpy leaves room for it to grow.
        file.write(bytes(NPY_HEADER))
        file.truncate(NPY_HEADER + rows * int(np.prod(shape)) * np.dtype(dtype).itemsize)
        file.seek(0, os.SEEK_END)
        yield write
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header())
        if file.tell() != NPY_HEADER:
            raise AssertionError("numpy changed the size of its header")
        file.flush()
        os.fsync(file.fileno())


def rows_in(path: Path, shape: tuple[int, ...], dtype: type) -> int:
    """Return how many whole rows an interrupted ``npy_writer`` has left in a file."""
    import numpy as np

    try:
        size = Path(path).stat().st_size
    except FileNotFoundError:
        return 0
    return max(0, size - NPY_HEADER) // (int(np.prod(shape)) * np.dtype(dtype).itemsize)


def mapped(path: Path) -> "np.ndarray | None":
    """Return a memory-mapped ``.npy`` file, or ``None`` if it is missing, truncated or empty (it is deleted then)."""
    import numpy as np

    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        path.unlink()
        return None


def try_acquire(lock: FileLock) -> bool:
    """Take a lock if it is free now; return whether it was."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def default_runs_folder() -> Path:
    """Return where runs are kept: ``KD_RUNS_DIR``, or ``runs`` in the working folder."""
    return Path(os.environ.get("KD_RUNS_DIR") or "runs")


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def text_of(path: Path) -> str:
    """Return a file's text, an empty one where there is no file."""
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def folder_size(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(_size(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # written beside its place, and renamed since
        return 0
