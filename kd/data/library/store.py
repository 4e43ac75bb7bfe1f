"""Imported datasets: a folder of parquet files each, beside the runs, until its owner deletes it.

``<runs>/.datasets/<id>/`` holds ``dataset.json`` (name, owner's hash, classes, counts, what was skipped), ``train.parquet``
and, if there are any, ``validation.parquet`` and ``test.parquet`` (columns ``image`` and ``label``; no ``label`` where
nothing is labelled), and ``skipped.txt`` (every skipped file with its reason). For the rest of the program that is a
folder of parquet files. People write ``upload:<id>``.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd.config import RUN_TEACHER
from kd.errors import UserError
from kd.system.files import DATASETS, folder_size, try_acquire
from kd.system.ids import GONE, ID, one_of, owner_hash
from kd.system.processes import Child, ChildEnded

UPLOAD_PREFIX = "upload:"

# How the name of a folder begins that is being filled.
HALF = ".half-"

# By so much the process of an import is lower in priority than the one that asks for it.
IMPORT_NICE = 10

# An archive, a folder, or (class name, file) pairs, the class name '' for images without labels.
Source = Path | str | Sequence[tuple[str, Path | str]]


class ImportRefused(UserError):
    """Nothing was stored; ``skipped`` are the files that could not be read, each with its reason."""

    def __init__(self, message: str, skipped: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.skipped = skipped


@dataclass(frozen=True)
class Upload:
    """One dataset's folder; it holds nothing but the path."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def info(self) -> dict[str, Any]:
        """Return ``dataset.json``: ``id, name, created`` (Unix seconds), ``owner`` (hash), ``classes``, ``pictures`` (split ->
        class -> count; the class '' where nothing is labelled), ``notes``, ``skipped`` (how many), ``examples`` (the
        first of those, each name and reason), ``sha256`` of an archive or ``None``."""
        try:
            return json.loads((self.path / "dataset.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"The dataset {self.id} is gone. Bring it again, or choose another.") from None
        except ValueError as error:
            raise UserError(f"{self.path / 'dataset.json'} is damaged: {error}") from error

    def owner(self) -> str:
        """Return the hash of the owner's token."""
        return self.info()["owner"]

    def is_owned_by(self, token: str) -> bool:
        """Return whether ``token`` is the one that the dataset was imported with; no for one that is damaged or gone."""
        try:
            return secrets.compare_digest(self.owner(), owner_hash(token))
        except UserError:
            return False

    def check_owner(self, token: str) -> None:
        """Raise ``PermissionError`` unless ``token`` is the one that the dataset was imported with."""
        if not secrets.compare_digest(self.owner(), owner_hash(token)):
            raise PermissionError(f"The dataset {self.id} belongs to somebody else.")

    def bytes(self) -> int:
        """Return what it takes on the disk."""
        return folder_size(self.path)

    def delete(self) -> None:
        """Remove it. ``kd.runs.store.delete_dataset`` calls this once no run needs it."""
        gone = self.path.with_name(GONE + self.id)
        os.replace(self.path, gone)  # at once: nobody finds half of it
        shutil.rmtree(gone)


def list_uploads(folder: Path) -> list[Upload]:
    """Return the datasets beside the runs in ``folder``, newest first."""
    place = datasets_folder(folder)
    if not place.is_dir():
        return []
    names = sorted((path.name for path in place.iterdir() if ID.fullmatch(path.name)), reverse=True)
    return [Upload(place / name) for name in names if (place / name / "dataset.json").exists()]


def find_upload(folder: Path, id: str, owner: str | None = None) -> Upload:
    """Return the dataset with this id (with ``upload:`` or without), the start of one, or ``last``.

    With an ``owner`` (a token) only theirs are looked through. An id from outside never becomes a path: it is only
    compared with the names that are there. Raises ``UserError`` where there is none, or several.
    """
    every, id = list_uploads(folder), id.removeprefix(UPLOAD_PREFIX)
    if owner is None:
        return one_of(every, id, "dataset", folder, "`python -m kd import` makes one of pictures.")
    own = [one for one in every if one.is_owned_by(owner)]
    return one_of(own, id, "dataset", None, "It may have been deleted.")


def refuse_archive(dataset: str) -> None:
    """Raise ``UserError`` for a file that must be imported first, which only the command line does by itself."""
    path = Path(dataset).expanduser()
    if path.suffix and path.suffix != ".parquet" and path.is_file():
        raise UserError(
            f"{path.name} is an archive, or another file that is no dataset yet. Bring it in Pictures, or with `python -m kd "
            "import`, and take the dataset that it becomes."
        )


def dataset_classes(dataset: str) -> list[str] | None:
    """Return the classes of the imported dataset in this folder, an empty list where its images have no labels.

    Return ``None`` for a dataset that was not imported, or is gone.
    """
    path = Path(dataset)
    if path.parent.name != DATASETS or not (path / "dataset.json").exists():
        return None
    return Upload(path).info()["classes"]


def dataset_title(dataset: str) -> str | None:
    """Return the name that somebody gave the imported dataset in this folder; ``None`` for another dataset."""
    path = Path(dataset)
    if path.parent.name != DATASETS or not ID.fullmatch(path.name):
        return None
    try:
        return Upload(path).info()["name"]
    except UserError:
        return "a deleted dataset"


def short_name(name: str) -> str:
    """Return the name under which a teacher, dataset or student is shown.

    A Hub id is shown as it is, a folder by its last part, a run's student by the run, an imported dataset by its name.
    """
    path = Path(name)
    if not path.is_absolute():
        return name
    return dataset_title(name) or (f"{RUN_TEACHER}{path.parent.name}" if ID.fullmatch(path.parent.name) else path.name)


def datasets_folder(folder: Path) -> Path:
    """Return where the datasets are kept, beside the runs in ``folder``."""
    return Path(folder).resolve() / DATASETS


def remove_leftovers(place: Path) -> None:
    """Remove what killed imports and interrupted deletions have left. The caller holds the lock of ``place``."""
    for gone in place.glob(GONE + "*"):
        shutil.rmtree(gone, ignore_errors=True)
    for path in place.glob(HALF + "*.lock"):
        lock = FileLock(path)
        if try_acquire(lock):
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            lock.release()


@dataclass(frozen=True)
class Library:
    """Where an import is stored: beside the runs in ``folder``, for the ``owner`` of a token.

    ``room``: the bytes that it may take, the rest of the owner's quota; ``None`` without one.
    """

    folder: Path
    owner: str
    room: float | None = None


def import_dataset(
    source: Source, name: str, library: Library, progress: Callable[[int, int], None] = lambda done, of: None
) -> Upload:
    """Store somebody's images as a dataset called ``name`` ('' for the source's own name), and return it.

    A process of its own does it, of low priority and bounded memory. ``progress`` is told how many files of how many are
    read (0 of 0 before they are counted), again and again also where nothing is new, as while an image hangs. It may
    raise to call the import off: then the process ends at once. The owner's dataset from the same archive, if there is
    one, is returned as it is.

    Raises ``UserError``, and ``ImportRefused`` where too many images are unreadable; then nothing is stored.
    """
    job = {
        "source": str(source) if isinstance(source, str | Path) else [[one, str(file)] for one, file in source],
        "name": name,
        "folder": str(Path(library.folder).resolve()),
        "owner": owner_hash(library.owner),
        "room": library.room,
    }
    done = of = 0

    def on_progress(report: dict[str, Any] | None) -> None:
        nonlocal done, of
        if report:
            done, of = report["done"], report["of"]
        progress(done, of)

    # A thread for each core, or Arrow's own memory pool, would take a large part of what the process may have.
    sparing = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    child = Child("import", "--child", job=job, environment=sparing, nice=IMPORT_NICE)
    try:
        answer = child.answer(on_progress)
    except ChildEnded as ended:
        raise UserError(
            f"The import ended before its time ({ended.reason}); nothing was stored. Try again, or with fewer pictures."
        ) from None
    if "refused" in answer:
        raise ImportRefused(answer["refused"], [tuple(pair) for pair in answer["skipped"]])
    return Upload(datasets_folder(library.folder) / answer["id"])
