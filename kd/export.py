"""What a user takes home."""

import os
import shutil
from pathlib import Path
from typing import Any


def save_student(model: Any, processor: Any, folder: Path) -> None:
    """The student as a folder that ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load with nothing
    of ours installed. Written beside its place and renamed, the old one renamed away before it is deleted: whoever is
    killed in between leaves one that is whole, or none."""
    temporary, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
