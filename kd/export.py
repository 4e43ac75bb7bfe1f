"""What a user takes home."""

import os
import shutil
from pathlib import Path
from typing import Any


def save_student(model: Any, processor: Any, folder: Path) -> None:
    """The student as a folder that ``AutoModelForImageClassification`` and ``AutoImageProcessor`` load with nothing
    of ours installed. Written beside its place and renamed: a reader finds the old one or the new one whole."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
