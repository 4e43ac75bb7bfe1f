"""Datasets that somebody brought: a folder of parquet files each, beside the runs, until its owner deletes it.

``<runs>/.datasets/<id>/`` holds ``dataset.json`` (name, owner's hash, classes, counts, what was skipped), ``train.parquet``
and, if there are any, ``validation.parquet`` and ``test.parquet`` (columns ``image`` and ``label``; no ``label`` where
nothing is labelled), and ``skipped.txt`` (every skipped file with its reason). For the rest of the program that is a
folder of parquet files. People write ``upload:<id>``.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from filelock import FileLock

from kd.config import RUN_TEACHER
from kd.errors import UserError
from kd.system.files import DATASETS, folder_size, try_acquire
from kd.system.ids import GONE, ID, one_of, owner_hash
from kd.system.processes import kd_command, kd_environment

UPLOAD_PREFIX = "upload:"

HALF = ".half-"
"""How a folder begins that is being filled."""

SILENCE_SECONDS = 0.5

Source = Path | str | Sequence[tuple[str, Path | str]]
"""An archive, a folder, or (class name, file) pairs, the class name '' for pictures without labels."""


class ImportRefused(UserError):
    """Nothing was stored; ``skipped`` are the files that could not be read, each with its reason."""

    def __init__(self, message: str, skipped: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.skipped = skipped


@dataclass(frozen=True)
class Upload:
    """One dataset's folder. Cheap: holds nothing but the path."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def info(self) -> dict[str, Any]:
        """``dataset.json``: ``id, name, created`` (Unix seconds), ``owner`` (hash), ``classes``, ``pictures`` (split ->
        class -> count; the class '' where nothing is labelled), ``notes``, ``skipped`` (how many), ``examples`` (the
        first of those, each name and reason), ``sha256`` of an archive or ``None``."""
        try:
            return json.loads((self.path / "dataset.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"The dataset {self.id} is gone. Bring it again, or choose another.") from None
        except ValueError as error:
            raise UserError(f"{self.path / 'dataset.json'} is damaged: {error}") from error

    def owner(self) -> str:
        """The hash of the owner's token."""
        return self.info()["owner"]

    def check_owner(self, token: str) -> None:
        """Raises ``PermissionError`` unless ``token`` is the one that the dataset was brought with."""
        if not secrets.compare_digest(self.owner(), owner_hash(token)):
            raise PermissionError(f"The dataset {self.id} belongs to somebody else.")

    def bytes(self) -> int:
        """What it takes on the disk."""
        return folder_size(self.path)

    def delete(self) -> None:
        """Remove it. Whoever calls this has made sure that no run needs it (``kd.runs.store.delete_dataset``)."""
        gone = self.path.with_name(GONE + self.id)
        os.replace(self.path, gone)  # at once: nobody finds half of it
        shutil.rmtree(gone)


def list_uploads(folder: Path) -> list[Upload]:
    """The datasets beside the runs in ``folder``, newest first."""
    place = datasets_folder(folder)
    if not place.is_dir():
        return []
    names = sorted((path.name for path in place.iterdir() if ID.fullmatch(path.name)), reverse=True)
    return [Upload(place / name) for name in names if (place / name / "dataset.json").exists()]


def find_upload(folder: Path, id: str) -> Upload:
    """The dataset with this id (with ``upload:`` or without), the start of one, or ``last``. Raises ``UserError``.

    An id from outside never becomes a path: it is only compared with the names that are there.
    """
    return one_of(
        list_uploads(folder),
        id.removeprefix(UPLOAD_PREFIX),
        "dataset",
        folder,
        "`python -m kd import` makes one of pictures.",
    )


def refuse_archive(dataset: str) -> None:
    """Raises ``UserError`` for a file that must be imported first, which only the command line does by itself."""
    path = Path(dataset).expanduser()
    if path.suffix and path.suffix != ".parquet" and path.is_file():
        raise UserError(
            f"{path.name} is an archive, or another file that is no dataset yet. Bring it in Pictures, or with `python -m kd "
            "import`, and take the dataset that it becomes."
        )


def dataset_classes(dataset: str) -> list[str] | None:
    """The classes of the dataset in this folder, none where its pictures have no labels; ``None`` for what is not one of
    these, or gone."""
    path = Path(dataset)
    if path.parent.name != DATASETS or not (path / "dataset.json").exists():
        return None
    return Upload(path).info()["classes"]


def dataset_title(dataset: str) -> str | None:
    """The name that somebody gave the dataset in this folder; ``None`` for what is not one of these."""
    path = Path(dataset)
    if path.parent.name != DATASETS or not ID.fullmatch(path.name):
        return None
    try:
        return Upload(path).info()["name"]
    except UserError:
        return "a deleted dataset"


def short_name(name: str) -> str:
    """A teacher, dataset or student as it is shown: a Hub id as it is, a folder by its last part, a run's student by the
    run, somebody's dataset by the name that it was given."""
    path = Path(name)
    if not path.is_absolute():
        return name
    return dataset_title(name) or (f"{RUN_TEACHER}{path.parent.name}" if ID.fullmatch(path.parent.name) else path.name)


def datasets_folder(folder: Path) -> Path:
    """Where the datasets are kept, beside the runs in ``folder``."""
    return Path(folder).resolve() / DATASETS


def remove_leftovers(place: Path) -> None:
    """Remove what killed imports, and deletions that were cut short, have left. To be called with its lock held."""
    for gone in place.glob(GONE + "*"):
        shutil.rmtree(gone, ignore_errors=True)
    for path in place.glob(HALF + "*.lock"):
        lock = FileLock(path)
        if try_acquire(lock):
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            lock.release()


def import_dataset(
    source: Source,
    name: str,
    folder: Path,
    owner: str,
    progress: Callable[[int, int], None] = lambda done, of: None,
    room: float | None = None,
) -> Upload:
    """Store somebody's pictures, under ``name`` ('' for the source's own), as a dataset of ``owner`` (a token).

    It is done by a process of its own, of low priority and bounded memory; ``progress`` hears how many files are read (of
    none before they are counted), again and again, and may raise to call it off: then all ends at once. ``room``: bytes that it may take, the rest of a quota. The owner's dataset from the
    same archive, if there is one, is returned as it is. Raises ``UserError``, ``ImportRefused`` where too much is
    unreadable; then nothing is stored.
    """
    job = {
        "source": str(source) if isinstance(source, str | Path) else [[one, str(file)] for one, file in source],
        "name": name,
        "folder": str(Path(folder).resolve()),
        "owner": owner_hash(owner),
        "room": room,
    }
    # A thread for each core, or Arrow's own memory pool, would take a large part of what the process may have.
    sparing = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            kd_command("import", "--child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env={**kd_environment(), **sparing},
        )
        lines: SimpleQueue[bytes] = SimpleQueue()
        reader = Thread(target=_listen, args=(process, lines), daemon=True)
        reader.start()
        try:
            answer = _follow(process, job, lines, progress)
        finally:
            _end(process)
            reader.join()
            process.stdout.close()
        if "id" in answer:
            return Upload(datasets_folder(folder) / answer["id"])
        if "problem" not in answer:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"The import ended before its time ({words[-1] if words else f'code {process.returncode}'}); nothing "
                "was stored. Try again, or with fewer pictures."
            )
        raise ImportRefused(answer["problem"], [tuple(pair) for pair in answer["skipped"]])


def _listen(process: subprocess.Popen, lines: SimpleQueue[bytes]) -> None:
    """Every line that the process says, then an empty one."""
    for line in process.stdout:
        lines.put(line)
    lines.put(b"")


def _follow(
    process: subprocess.Popen, job: dict[str, Any], lines: SimpleQueue[bytes], progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Give the process its job, pass on its progress; its last words, or ``{}``. Where it says nothing, as while it counts
    or a picture hangs, its progress is passed on once more: whoever hears it may want no more of it."""
    try:
        with process.stdin as pipe:
            pipe.write(json.dumps(job).encode())
    except BrokenPipeError:
        return {}
    done = of = 0
    while True:
        try:
            line = lines.get(timeout=SILENCE_SECONDS)
        except Empty:
            progress(done, of)
            continue
        said = json.loads(line or "{}")
        if "done" not in said:
            return said
        done, of = said["done"], said["of"]
        progress(done, of)


def _end(process: subprocess.Popen) -> None:
    """Kill the import and what it has started: a decoder that hangs would outlive it."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the second of a group that has just ended
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
