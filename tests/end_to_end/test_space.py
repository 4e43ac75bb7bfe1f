"""The files that a Space gets, in an empty folder: they serve the page, and the default run finds all that it needs."""

import os
import subprocess
import sys

import pytest

from kd.devtools.chaos import Page
from kd.export.staging import stage
from kd.runs.run import CLOSED
from kd.runs.store import find_run
from kd.system.browser_runtime import NAME
from tests.export.test_staging import checkout  # noqa: F401 (a fixture)
from tests.support.pages import Site, until


@pytest.fixture
def space(checkout, tmp_path):  # noqa: F811
    """A folder as a Space has it."""
    stage("anna/distillery", None, root=checkout).copy_to(folder := tmp_path / "app")
    return folder


def test_a_space_serves_the_page_finds_the_data_and_the_teacher_of_the_default_preset(space, tmp_path):
    (runs := tmp_path / "runs").mkdir()
    site = Site(runs, SPACE_ID="anna/distillery", GRADIO_SERVER_NAME="127.0.0.1", PYTHONPATH="")
    site.root = space
    site.start()
    try:
        started = Page(site.process, site.port).call(
            "start_run", "sample", {"epochs": 1, "views": 1, "export": "no"}, ""
        )
        run = find_run(runs, started["run"])
        until(lambda: run.last("models", "failed", "done"), 240, every=0.5)  # the data and the teacher are there
        assert run.last("failed") is None, run.last("failed")
        run.ask_to_stop()
        until(lambda: run.status() in CLOSED, 120)
    finally:
        site.stop()


def test_a_space_has_the_engine_for_browsers_beside_the_program(space):
    code = "import sys; sys.prefix = '/nowhere'; from kd.system.browser_runtime import browser_runtime as b; print(b())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "KD_BROWSER_RUNTIME": "", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=space, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str((space / NAME).resolve())
