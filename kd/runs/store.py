"""Create, find, list and delete runs, and resolve the names in a configuration to the folders that they stand for."""

import dataclasses
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd.config import NO_TEACHER, RUN_TEACHER, DistillConfig
from kd.data.library.store import UPLOAD_PREFIX, Upload, find_upload, refuse_archive
from kd.errors import UserError
from kd.runs.bucket import forget
from kd.runs.run import CLOSED, Run
from kd.system.files import SWEEPS, text_of, write_whole
from kd.system.ids import GONE, ID, new_id, one_of, owner_hash


def resolve(config: DistillConfig, folder: Path, owner: str | None) -> DistillConfig:
    """Return ``config`` with the folders that its names stand for, all paths absolute: what ``create_run`` takes.

    ``upload:ID`` becomes the folder of an imported dataset, the teacher ``run:ID`` that of the student of another run,
    both in ``folder`` and of ``owner`` (a token), or anybody's where that is ``None``.

    Raises ``UserError`` where there is no such dataset or run, where the run has no student yet, and for an archive that
    was not imported.
    """
    refuse_archive(config.dataset)
    if config.dataset.startswith(UPLOAD_PREFIX):
        config = dataclasses.replace(config, dataset=str(find_upload(folder, config.dataset, owner).path))
    if config.teacher.startswith(RUN_TEACHER):
        run = _teaching_run(folder, config.teacher.removeprefix(RUN_TEACHER), owner)
        config = dataclasses.replace(config, teacher=str(run.path / "student"))
    return config.with_absolute_paths()


def _teaching_run(folder: Path, id: str, owner: str | None) -> Run:
    """Return the run ``id`` whose student is to be a teacher. Raises ``UserError`` where there is none that can be."""
    try:
        run = find_run(folder, id, owner)
    except UserError as problem:
        if not ID.fullmatch(id):
            raise
        raise UserError(
            f"The teacher {RUN_TEACHER}{id} is gone: there is no such run among yours any more. Choose another teacher, or "
            "make it again. The students that it has taught stay as they are."
        ) from problem
    status = run.status()
    if status not in CLOSED or not (run.path / "student" / "config.json").exists():
        raise UserError(f"Run {run.id} ({status}) cannot teach: it has no finished student. Wait until it is done.")
    return run


def create_run(config: DistillConfig, folder: Path, owner: str, **known: Any) -> Run:
    """Make the folder of a new run with its settings and its first event, and return the run.

    Args:
        config: the settings, as ``resolve`` returns them.
        owner: the token of whom the run belongs to.
        known: what the event ``created`` says beforehand: ``expected``, the seconds that the run will take.

    Raises ``UserError`` where nothing can be written to ``folder``.
    """
    created = time.time()
    run = Run(Path(folder).resolve() / new_id(created))
    settings = {"id": run.id, "created": created, "owner": owner_hash(owner), "config": config.to_dict()}
    try:
        run.path.mkdir(parents=True)
        (run.path / "events.jsonl").touch()
        run.append("created", **known)
        write_whole(run.path / "config.json", json.dumps(settings, indent=2))
    except OSError as error:
        shutil.rmtree(run.path, ignore_errors=True)
        raise UserError(
            f"Runs cannot be kept in {folder}: {error.strerror}. Name another place with --runs-dir."
        ) from error
    return run


def run_of_teacher(teacher: str) -> Run | None:
    """Return the run whose student this ``teacher`` is, a folder as ``resolve`` names it; ``None`` for another."""
    folder = Path(teacher)
    is_run = folder.is_absolute() and folder.name == "student" and ID.fullmatch(folder.parent.name)
    return Run(folder.parent) if is_run else None


def teacher_here(run: Run) -> str:
    """Return the teacher of a run where it is on this machine.

    The run may have been copied from another machine, on which its teacher was a folder. Then that is the folder ``teacher``
    in the run's own, where somebody has copied it, or the student of the run beside it that has made the teacher.
    """
    teacher = run.config().teacher
    if not Path(teacher).is_absolute() or Path(teacher).is_dir():
        return teacher
    if (run.path / "teacher" / "config.json").exists():
        return str(run.path / "teacher")
    made = run_of_teacher(teacher)
    beside = made and run.path.parent / made.id / "student"
    return str(beside) if beside and beside.is_dir() else teacher


def lost_teacher(teacher: str) -> str | None:
    """Return the id of the run whose student this ``teacher`` was, if its folder is gone; else ``None``."""
    run = run_of_teacher(teacher)
    return run.id if run and not Path(teacher).is_dir() else None


def existing_teacher(teacher: str) -> str:
    """Return ``teacher`` as it is. Raises ``UserError`` where it was the student of a run that is gone."""
    if lost := lost_teacher(teacher):
        raise UserError(
            f"The teacher is gone: it was the student of run {lost}, which has been deleted or moved. Choose another "
            "teacher, or make it again. The students that it has taught stay as they are."
        )
    return teacher


def check_teacher_exists(run: Run) -> None:
    """Raise ``UserError`` where a run's student cannot be compared with its teacher: there was none, or it is gone."""
    teacher = teacher_here(run)
    if teacher == NO_TEACHER:
        raise UserError(
            f"Run {run.id} learned from the labels alone: it has no teacher to be compared with. Distil from it with the "
            f"teacher run:{run.id}, and compare that."
        )
    if lost := lost_teacher(teacher):
        raise UserError(
            f"The teacher of run {run.id} is gone: it was the student of run {lost}, which has been deleted or moved. So the "
            "two cannot be compared any more. The student alone still works, and the run keeps its report and where they "
            "differed on the test pictures. To compare, make the teacher again, then distil from it once more. If it is on "
            f"another machine, copy its folder to {run.path / 'teacher'}."
        )
    if Path(teacher).is_absolute() and not Path(teacher).is_dir():
        raise UserError(
            f"The teacher of run {run.id} is not on this machine: it was in {teacher} where the run was made. To compare the two, "
            f"copy that folder to {run.path / 'teacher'}."
        )


def run_using(made: Path, folder: Path) -> str | None:
    """Return the id of a run or a sweep that waits or works in ``folder`` with ``made`` as its dataset or teacher."""
    for run in [*list_runs(folder), *list_runs(folder / SWEEPS)]:
        try:
            config = run.config()
            if str(made) in (config.dataset, config.teacher) and run.status() not in CLOSED:
                return run.id
        except (UserError, ValueError):  # deleted meanwhile, damaged, or of another version
            continue
    return None


def delete_run(run: Run) -> None:
    """Remove a run's folder, or a sweep's.

    Raises ``UserError`` while a process works on it, or another run learns from its student.
    """
    if run.is_locked():
        raise UserError(f"Run {run.id} is still running. Stop it first, then delete it.")
    if other := run_using(run.path / "student", run.path.parent):
        raise UserError(f"Run {other} learns from run {run.id}. Stop that first, or wait until it is done.")
    forget(run.path)
    gone = run.path.with_name(GONE + run.id)
    os.replace(run.path, gone)  # at once: nobody finds half of it
    for left in run.path.parent.glob(GONE + "*"):  # this one, and what a killed deletion has left
        shutil.rmtree(left, ignore_errors=True)  # another deletion may be at the same
    shutil.rmtree(gone, ignore_errors=True)
    if gone.exists():
        raise UserError(f"Run {run.id} is deleted, but some of its files could not be removed from the disk.")


def delete_dataset(dataset: Upload) -> None:
    """Remove an imported dataset. Raises ``UserError`` while a run needs it, naming the run."""
    if run := run_using(dataset.path, dataset.path.parent.parent):
        raise UserError(f"The dataset {dataset.info()['name']!r} is in use by run {run}. Stop that first.")
    forget(dataset.path)
    dataset.delete()


def find_run(folder: Path, id: str, owner: str | None = None) -> Run:
    """Return the run with this id, the start of one, or ``last``.

    With an ``owner`` (a token) only theirs are looked through. An id from outside never becomes a path: it is only
    compared with the names that are there. Raises ``UserError`` where there is none, or several.
    """
    every = list_runs(folder)
    if owner is None:
        return one_of(every, id, "run", folder, "There are no runs yet.")
    return one_of([run for run in every if run.is_owned_by(owner)], id, "run", None, "There are no runs yet.")


def list_runs(folder: Path) -> list[Run]:
    """Return the runs in a folder, newest first."""
    if not Path(folder).is_dir():
        return []
    names = sorted((path.name for path in Path(folder).iterdir() if ID.fullmatch(path.name)), reverse=True)
    runs = [Run(Path(folder).resolve() / name) for name in names]
    return [run for run in runs if (run.path / "config.json").exists()]


def local_owner(folder: Path, kept: str = "") -> str:
    """Return the one token that owns all runs made on this machine by hand; it is made when it is first needed.

    ``kept``: the one that there was before the disk was lost, which it is to be again where there is none.
    """
    path = Path(folder) / ".owner"
    if token := text_of(path):
        return token
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Runs cannot be kept in {folder}: {error.strerror}. Name another place with --runs-dir."
        ) from error
    with FileLock(path.with_name(".owner.lock")):
        if not text_of(path):  # an empty one is from a kill between its making and its filling
            fresh = path.with_name(f".owner.{secrets.token_hex(4)}")
            fresh.touch(mode=0o600)
            fresh.write_text(kept or secrets.token_hex(16))
            fresh.replace(path)
        return path.read_text()
