"""What the tests share. No test may reach a network."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in several processes, and toys are too small to share
os.environ.pop("KD_RUNS_DIR", None)
os.environ.pop("KD_CACHE_DIR", None)

import pytest

from kd.distill import LIBRARIES
from kd.system import lazy_imports as imports

ROOT = Path(__file__).resolve().parent.parent


LONGEST_FIRST = ("page", "distill", "sweep_tab", "hub", "sweep", "api", "bench", "study", "trainer")
"""Files of tests: with a short one in the end, no process waits long for the others."""


def pytest_collectstart() -> None:
    """Before the tests are imported, in the processes that do so."""
    imports.load(*LIBRARIES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """A dataset of class folders, 40 pictures a class."""
    import toys

    return toys.class_folders(tmp_path_factory.mktemp("colours"), each=40)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A saved teacher that knows the colours."""
    import toys

    return toys.teacher_folder(tmp_path_factory.mktemp("teacher"))


def kd(*arguments, check: bool = False, **environment) -> subprocess.CompletedProcess:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "kd", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=check,
    )


@pytest.fixture
def small(colours, teacher) -> dict:
    """The settings of a run of a few seconds."""
    return {
        "teacher": str(teacher),
        "dataset": str(colours),
        "student": "mobilenet_v2_0.35",
        "image_size": 32,
        "epochs": 2,
        "batch_size": 16,
        "views": 2,
        "precision": "fp32",
    }


def flags(settings: dict) -> list[str]:
    """Settings as command-line flags."""
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
