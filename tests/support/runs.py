"""Runs that are made for a test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kd.config import DistillConfig
from kd.runs.run import Run
from kd.runs.store import create_run
from tests.support.paths import ROOT


def make_run(settings: dict, folder: Path, **changes) -> Run:
    """Make a run with these settings, some of them changed."""
    return create_run(DistillConfig.from_dict({**settings, **changes}), folder, "t")


def curve(run: Run, name: str) -> list[float]:
    """The values that a run has written for TensorBoard, in all its parts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, float] = {}
    for file in sorted(next((run.path / "logs").glob("*")).glob("events*"), key=os.path.getmtime):
        events = EventAccumulator(str(file))
        events.Reload()
        if name in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars(name)}
    return [found[step] for step in sorted(found)]


@contextmanager
def changed_by(code: str, folder: Path) -> Iterator[None]:
    """Let Python run ``code`` first in each process that is started meanwhile; ``RANK`` says which of several it is."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text("import os\nRANK = int(os.environ.get('RANK', 0))\n" + code)
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def timed_shortly() -> Iterator[None]:
    """Exports time each file for a moment only."""
    from kd.export import measure

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "SECONDS", 0.03)
        patched.setattr(measure, "BATCHES", (1, 8))
        yield
