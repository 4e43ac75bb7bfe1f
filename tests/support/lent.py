"""A ZeroGPU Space in the tests' own process: the package ``spaces`` is a stand-in, with the CPU as the GPU."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradio.context import LocalContext

from kd.config import DistillConfig
from kd.distill import execute
from kd.runs.run import Run
from kd.runs.store import create_run, local_owner
from tests.support.paths import ROOT

STAND_IN = ROOT / "tests" / "support" / "zerogpu"

sys.path.insert(0, str(STAND_IN))

from kd.ui import zerogpu  # noqa: E402 (which imports it)

sys.path.remove(str(STAND_IN))
zerogpu._prepared.set()


@contextmanager
def in_request() -> Iterator[None]:
    """Be a request of a visitor: a call outside one has no quota."""
    token = LocalContext.request.set(object())
    try:
        yield
    finally:
        LocalContext.request.reset(token)


def prepared(settings: dict, folder: Path, **changes) -> Run:
    """A run that waits for its first piece with the GPU."""
    run = create_run(DistillConfig.from_dict({**settings, **changes}), folder, local_owner(folder))
    execute(run)
    assert run.last("paused")["reason"] == "gpu"
    return run


def calls(folder: Path) -> list[dict]:
    """What the device API was asked for."""
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
