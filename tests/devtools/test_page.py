"""Measuring the page: the real one is started; what needs minutes of training is tested on events made by hand."""

import http.client
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kd.devtools import page, server
from kd.errors import UserError
from tests.support.paths import ROOT


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made, so that one that is left behind is seen."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# --- The page


def test_the_start_of_the_page_is_timed_and_leaves_nothing_behind(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path / "mine"))
    assert 0.5 < page.start_seconds(1) < server.ANSWER_SECONDS
    assert not list(temporary.iterdir())
    assert not (tmp_path / "mine").exists()


def test_the_page_imports_neither_torch_nor_transformers(tmp_path):
    with server.serve(tmp_path, "-X", "importtime") as (url, _):
        port = int(url.rstrip("/").rpartition(":")[2])
        assert server.answers(port)
    assert not server.answers(port)
    log = (tmp_path / "page.txt").read_text()
    assert page.imported(log) == {"torch": False, "transformers": False}
    assert "gradio" in {line.rpartition("|")[2].strip() for line in log.splitlines()}


def test_an_import_is_seen_at_any_depth_and_nothing_said_is_unknown():
    log = "import time: self [us] | cumulative | imported package\nimport time:  12 |  34 |     torch\n"
    assert page.imported(log) == {"torch": True, "transformers": False}
    assert page.imported(log.replace("torch", "torch_of_another_kind"))["torch"] is False
    assert page.imported("Running on local URL") == {"torch": None, "transformers": None}


def test_a_page_that_ends_before_it_answers_is_an_error_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr("kd.devtools.server.APP", ("-c", "raise SystemExit('the port is taken')"))
    with pytest.raises(UserError, match="does not answer: the port is taken"), server.serve(tmp_path):
        pass


def test_only_a_page_that_is_well_counts_as_an_answer(monkeypatch):
    class Ill(http.client.HTTPConnection):
        def request(self, *arguments) -> None: ...

        def getresponse(self):
            return type("Response", (), {"status": 503})

    monkeypatch.setattr(http.client, "HTTPConnection", Ill)
    assert not server.answers(1)


# --- What is missing


def test_without_playwright_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright", None)
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(UserError, match=r"Playwright is not installed: pip install 'playwright"):
        page.measure_page()


def test_without_a_chromium_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    script = """
from pathlib import Path
from kd.devtools import page
page.CHROMIUM = Path("/nowhere/chromium")
try:
    page.measure_page()
except page.UserError as problem:
    print(problem)
"""  # in a process of its own: one has one Playwright only, and here the page's tests may have it
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said.stdout.startswith("No Chromium could be started: "), said.stderr
    assert "apt-get install chromium" in said.stdout


# --- From events and windows to figures


def step(time: float, speed: float) -> dict:
    return {"event": "step", "time": time, "images_per_second": speed}


def test_a_step_counts_only_where_it_lies_wholly_in_a_window():
    events = [
        step(9.8, 1),
        step(10.2, 2),  # began before the window
        step(10.8, 100),
        {"event": "eval", "time": 11.5},
        step(12, 300),  # since the evaluation
        step(13.9, 200),
        step(14.1, 3),  # ends after it
    ]
    assert page.speeds_inside(events, (10, 14)) == [100, 300, 200]


def test_watching_is_the_median_with_a_page_open_against_the_median_without():
    speeds = {10: [90, 80, 100], 20: [100, 100, 130], 30: [60, 70, 80], 40: [100, 140, 120]}
    events = [step(begin + nth, speed) for begin, some in speeds.items() for nth, speed in enumerate([0, *some])]
    windows = {"with": [(10, 13), (30, 33)], "without": [(20, 23), (40, 43)]}
    assert page.throughput(events, windows) == {
        "images_per_second": {"with": 80, "without": 110},
        "ratio": 0.727,
        "rounds": [0.9, 0.583],
        "events": {"with": 6, "without": 6},
    }


def test_a_window_without_a_step_is_an_error_and_not_a_figure():
    with pytest.raises(UserError, match="reported no step"):
        page.throughput([step(1, 1), step(2, 1)], {"with": [(0, 3)], "without": [(3, 6)]})
    with pytest.raises(UserError, match="did not poll"):
        page.medians([])


def begun() -> list[dict]:
    """A run's events up to its second step."""
    times = {
        "created": 100.5,
        "started": 101,
        "data": 106,
        "models": 107,
        "teacher": 108,
        "targets": 118,
        "training": 119,
    }
    events = [{"event": name, "time": time} for name, time in times.items()]
    events[2]["seconds"] = 2.0
    return [*events, step(119.25, 10), step(120, 10)]  # fmt: skip


def test_the_stages_add_up_to_the_time_from_the_click_to_the_point():
    found = page.stages(begun(), clicked=100.0, drawn=119.5)
    assert list(found) == list(page.STAGES)
    assert sum(found.values()) == 19.5
    assert (found["created"], found["loaded"], found["data"], found["step"], found["page"]) == (0.5, 3, 2, 0.25, 0.25)


def test_the_figures_are_json_and_a_row_each():
    poll = {"asked_bytes": 140, "answered_bytes": 240, "header_bytes": 860, "milliseconds": 5.55}
    parts = page.stages(begun(), 100.0, 119.5)
    found = {
        "start_seconds": 3.75,
        "imports": {"torch": False, "transformers": None},
        "first_point_seconds": {"cold": 19.5, "warm": 5.0},
        "stages": {"cold": parts, "warm": parts},
        "poll": page.medians([poll, {**poll, "answered_bytes": 300}, poll]),
        "watching": page.throughput(
            [step(0, 1), step(1, 98), step(2, 1), step(3, 100)], {"with": [(0, 1)], "without": [(2, 3)]}
        ),
    }
    assert json.loads(json.dumps(found)) == found
    rows = {name.strip(): rest for name, *rest in page.rows(found)}
    assert rows["the page answers"] == ["3.8 s", "torch not imported, transformers unknown"]
    assert rows["a poll answers"] == ["240 bytes", "median of 3 polls while a run trains"]
    assert rows["open against closed"][0] == "0.980"
    assert set(page.STAGES) <= set(rows)
