"""The files that a Space gets, in an empty folder: they serve the page, and the default run finds all that it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd.export.staging import stage
from kd.system.browser_runtime import NAME
from tests.support.pages import Site

# What a run of the default preset loads first.
MODELS = """
import kd
from kd.data.splits import load_splits
from kd.models.teacher import load_teacher
from kd.system.files import ROOT
config = kd.DistillConfig.preset("sample")
splits = load_splits(config)
teacher = load_teacher(config.teacher, splits.classes)
print(ROOT, len(splits.test), type(teacher).__name__)
"""


@pytest.fixture
def space(checkout, tmp_path) -> Path:
    """A folder as a Space has it."""
    stage("anna/distillery", None, root=checkout).copy_to(folder := tmp_path / "app")
    return folder


def python(space: Path, code: str) -> str:
    """What a program prints that knows the Space's files only."""
    environment = {**os.environ, "KD_BROWSER_RUNTIME": "", "PYTHONPATH": ""}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=space, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_space_serves_the_page_with_its_example(space, tmp_path):
    site = Site(tmp_path, SPACE_ID="anna/distillery", GRADIO_SERVER_NAME="127.0.0.1", PYTHONPATH="")
    site.root = space
    site.start()
    try:
        assert site.call("runs", "rows", {"owner": "aa" * 16})["html"].count("<tr") == 1  # the example
        assert "examples" in str(site.config())
    finally:
        site.stop()


def test_the_data_and_the_teacher_of_the_default_preset_are_in_a_space(space):
    assert python(space, MODELS) == f"{space.resolve()} 2000 Teacher"


def test_a_space_has_the_engine_for_browsers_beside_the_program(space):
    code = "import sys; sys.prefix = '/nowhere'; from kd.system.browser_runtime import browser_runtime as b; print(b())"
    assert python(space, code) == str((space / NAME).resolve())


def test_every_command_is_there(space):
    assert "deploy" in python(space, "from kd.cli.main import parser; print(parser().format_help())")
