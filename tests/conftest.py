"""What the tests share. No test may reach a network."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in several processes, and toys are too small to share
os.environ.pop("KD_RUNS_DIR", None)
os.environ.pop("KD_CACHE_DIR", None)

import pytest

from kd.config import DistillConfig
from kd.distill import LIBRARIES
from kd.runs.run import Run
from kd.runs.store import create_run
from kd.system import lazy_imports as imports

# What brings torch is imported inside the fixtures: the process that only hands out the tests has no use for it.

TESTS = Path(__file__).resolve().parent

# Files of tests, the longest first: with short ones in the end, no process waits long for the others.
LONGEST_FIRST = (
    "end_to_end/test_page.py",
    "end_to_end/test_distill.py",
    "ui/test_sweep.py",
    "ui/test_in_browser.py",
    "ui/test_first_screen.py",
    "ui/test_push.py",
    "system/test_hub.py",
    "experiments/test_sweep.py",
    "test_package.py",
    "ui/test_api.py",
    "ui/test_mcp.py",
    "export/test_job.py",
    "training/test_lent_gpu.py",
    "experiments/test_study.py",
    "end_to_end/test_trials.py",
    "training/test_trainer.py",
    "runs/test_store.py",
    "end_to_end/test_failures.py",
)

# Files that share a server, which takes seconds to start, and a browser that has loaded its page: one process runs them.
TOGETHER = (
    ("end_to_end/test_page.py", "ui/test_first_screen.py"),
    ("ui/test_sweep.py", "ui/test_api.py", "ui/test_mcp.py"),
    ("ui/test_in_browser.py", "export/test_demo.py"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    from xdist.scheduler import LoadFileScheduling

    first = {f"{TESTS.name}/{name}": files[0] for files in TOGETHER for name in files}

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return first.get(file, file)

    return Scheduler(config, log)


def pytest_collectstart() -> None:
    """Before the tests are imported, in the processes that do so."""
    imports.load(*LIBRARIES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(TESTS).as_posix(), len(rank)))


@pytest.fixture(scope="session", autouse=True)
def short() -> Iterator[None]:
    """Timings of a moment, in this process: ``tests/evaluation/test_latency.py`` tries how they are made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.evaluation.latency.SECONDS", 0.01)
        patch.setattr("kd.evaluation.latency.PROCESSOR_SECONDS", 0.01)
        yield


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """A dataset of class folders, 40 pictures a class."""
    from tests.support import toys

    return toys.class_folders(tmp_path_factory.mktemp("colours"), each=40)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A saved teacher that knows the colours."""
    from tests.support import toys

    return toys.teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def small(colours, teacher) -> dict:
    """The settings of a run of a few seconds; ``tests/export`` tries the export at its end."""
    return {
        "teacher": str(teacher),
        "dataset": str(colours),
        "student": "resnet_8",
        "image_size": 32,
        "epochs": 2,
        "batch_size": 16,
        "views": 2,
        "precision": "fp32",
        "export": "no",
    }


@pytest.fixture
def run(tmp_path) -> Run:
    """A run that has not begun, the first of ``tmp_path``."""
    return create_run(DistillConfig(), tmp_path, "token")


@pytest.fixture
def lenient(monkeypatch) -> None:
    """Imports in which half of the files may be unreadable."""
    monkeypatch.setenv("KD_UNREADABLE_SHARE", "0.5")


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Path:
    """Split folders with known duplicates across the splits."""
    from tests.support import photos

    return photos.plant_duplicates(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def bad_dataset(tmp_path_factory) -> Path:
    """Parquet files with every problem that the check of a dataset finds."""
    from tests.support import photos

    return photos.bad_dataset(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A git checkout of this project, with all that is here committed."""
    from tests.support import checkouts

    return checkouts.make_checkout(tmp_path_factory.mktemp("checkout"))
