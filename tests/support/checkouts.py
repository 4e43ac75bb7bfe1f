"""A git checkout of this project, of which a test may change what it likes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kd.system.browser_runtime import browser_runtime
from tests.support.paths import ROOT

FILES = ("app.py", "README.md", "requirements.txt", "LICENSE", "Makefile", "pyproject.toml", ".gitignore")


def make_checkout(folder: Path) -> Path:
    """Commit the files that are here in a new repository, and leave two there that git does not track."""
    if browser_runtime() is None:
        pytest.skip("the browser's runtime is not here: npm is missing, which fetches it")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in ("kd", "assets", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=folder, check=True)
    (folder / "notes.txt").write_text("mine")
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    return folder
