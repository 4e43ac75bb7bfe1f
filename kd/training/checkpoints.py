"""Save and find checkpoints, and save the student as a folder that transformers loads with nothing of ours."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.runs.run import Run
from kd.training.plan import Trial

if TYPE_CHECKING:
    from kd.training.trainer import ImageDistilTrainer


def checkpoints_folder(run: Run, trial: Trial) -> Path:
    """Return the folder of a trial's checkpoints."""
    return run.path / "checkpoints" / trial.folder(run).name


def last_checkpoint(folder: Path, averaged: bool = False) -> str | None:
    """Return the newest checkpoint that is whole. `Trainer` writes ``trainer_state.json`` last, but a power cut may take
    any of the files that were written last. ``averaged``: with an average of the weights (``kd.training.ema``)."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((str(path) for path in reversed(found) if is_whole(path, averaged)), None)


def is_whole(checkpoint: Path, averaged: bool = False) -> bool:
    """Tell whether all files of a checkpoint are there to their ends."""
    import zipfile

    from safetensors import SafetensorError, safe_open

    from kd.training.ema import OWN

    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        for name in ("model.safetensors", *([OWN] if averaged else [])):
            with safe_open(checkpoint / name, "pt"):  # compares its size with its header
                pass
        # Several processes leave an ``rng_state_N.pth`` each, all of them before ``trainer_state.json`` is written.
        random = [path.name for path in checkpoint.glob("rng_state_*.pth")] or ["rng_state.pth"]
        pickles = ("optimizer.pt", "scheduler.pt", *random)  # zip files, whose table is at their end
        return bool(state) and all(zipfile.is_zipfile(checkpoint / name) for name in pickles)
    except (OSError, ValueError, SafetensorError):
        return False


def student_folder(run: Run, trial: Trial) -> Path:
    """Return where a trial's student is saved: the first one's is the run's own, until a better one takes its place."""
    return run.path / "student" if trial.nth == 1 else trial.folder(run) / "student"


def save_best(run: Run, trial: Trial, trainer: "ImageDistilTrainer", processor: Any) -> None:
    """Save the trainer's model and the student's processor into the trial's folder; the ``exported`` event. Of several
    processes the first does it."""
    if not trainer.ranks.is_first:
        return
    folder = student_folder(run, trial)
    trial.folder(run).mkdir(parents=True, exist_ok=True)
    save_student(trainer.model.cpu(), processor, folder)
    run.append("exported", folder=str(folder.relative_to(run.path)))


def save_student(model: Any, processor: Any, folder: Path) -> None:
    """Save a student as a folder that ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load with nothing
    of ours installed. It is written beside its place and then moved there."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    move_student(temporary, folder)


def move_student(student: Path, folder: Path) -> None:
    """Move a student's folder into the place of another, which is renamed away before it is deleted: whoever is killed in
    between leaves one that is whole, or none."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(student, folder)
    shutil.rmtree(old, ignore_errors=True)
