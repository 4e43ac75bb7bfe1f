"""Runs that are made for a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kd.config import DistillConfig
from kd.runs.run import Run
from kd.runs.store import create_run


def make_run(settings: dict, folder: Path, **changes) -> Run:
    """Make a run with these settings, some of them changed."""
    return create_run(DistillConfig.from_dict({**settings, **changes}), folder, "t")


@contextmanager
def timed_shortly() -> Iterator[None]:
    """Exports time each file for a moment only."""
    from kd.export import measure

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "SECONDS", 0.03)
        patched.setattr(measure, "BATCHES", (1, 8))
        yield
