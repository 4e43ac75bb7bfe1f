"""The engine for the browser is found where the Makefile puts it, whole or not at all."""

import re
import sys

import pytest

from kd.system.browser_runtime import HOW_TO_GET_IT, SCRIPT, VERSION, WASM, browser_runtime
from tests.support.paths import ROOT


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A virtual environment into which the engine was fetched."""
    monkeypatch.delenv("KD_BROWSER_RUNTIME", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    folder = tmp_path / f"onnxruntime-web-{VERSION}"
    folder.mkdir()
    for name in (SCRIPT, WASM):
        (folder / name).write_text("x")
    return folder


def test_it_is_found_in_the_virtual_environment(fetched):
    assert browser_runtime() == fetched


@pytest.mark.parametrize("missing", [SCRIPT, WASM])
def test_half_of_it_is_none_of_it(fetched, missing):
    (fetched / missing).unlink()
    assert browser_runtime() is None


def test_a_folder_of_one_s_own_comes_first_even_where_it_lacks_a_file(fetched, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("KD_BROWSER_RUNTIME", str(own))
    assert browser_runtime() is None
    for name in (SCRIPT, WASM):
        (own / name).write_text("x")
    assert browser_runtime() == own


def test_the_makefile_fetches_the_same_version_and_files():
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"onnxruntime-web@(.+)", makefile) == [VERSION]
    assert SCRIPT in makefile and WASM in makefile and VERSION in HOW_TO_GET_IT
