"""What a user takes home."""

import os
import shutil
from pathlib import Path
from typing import Any


def save_student(model: Any, processor: Any, folder: Path) -> None:
    """The student as a folder that ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load with nothing
    of ours installed. Written beside its place and then moved there."""
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
