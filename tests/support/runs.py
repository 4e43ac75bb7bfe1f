"""Runs that are made for a test."""

from pathlib import Path

from kd.config import DistillConfig
from kd.runs.run import Run
from kd.runs.store import create_run


def make_run(settings: dict, folder: Path, **changes) -> Run:
    """Make a run with these settings, some of them changed."""
    return create_run(DistillConfig.from_dict({**settings, **changes}), folder, "t")
