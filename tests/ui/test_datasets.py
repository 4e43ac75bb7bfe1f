"""The handlers of the page's tab for a visitor's own pictures, without a browser."""

import os
import time
from pathlib import Path

import pytest

from tests.support.uploads import PNG, packed


@pytest.fixture
def tab(tmp_path, monkeypatch):
    """The tab's module on a shared server, its uploads in a folder of their own."""
    from kd.ui import datasets as data

    monkeypatch.setenv("KD_SHARED", "1")
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr("kd.ui.datasets._imports", {})
    (tmp_path / "gradio").mkdir()
    return data


def test_a_visitor_s_upload_is_imported_listed_and_deleted_by_nobody_else(tab, tmp_path):
    mine, yours = "a" * 32, "b" * 32
    evil = {f"{name}/1.png": PNG for name in ("<img src=x onerror=alert(1)>", "b")}
    file = packed(tmp_path / "gradio" / "a.zip", evil)
    assert tab.begin({"owner": mine, "way": "archive", "classes": [["", [str(file)]]]}) == {}
    end = time.monotonic() + 60
    while not (news := tab.offered({"owner": mine}))["now"]["over"] and time.monotonic() < end:
        time.sleep(0.05)
    assert news["now"]["dataset"] in news["html"] and "<img" not in news["html"] and "&lt;img" in news["html"]
    assert not file.exists()
    assert tab.offered({"owner": mine, "seen": news["mark"]}).keys() == {"now"}
    assert tab.offered({"owner": yours})["html"] == "" and "now" not in tab.offered({"owner": yours})
    assert "among yours" in tab.act({"owner": yours, "do": "delete", "id": news["now"]["dataset"]})["problem"]
    assert tab.act({"owner": mine, "do": "delete", "id": news["now"]["dataset"]}) == {}
    assert tab.offered({"owner": mine})["html"] == ""


def test_an_import_that_waits_for_its_turn_can_be_called_off(tab, monkeypatch):
    monkeypatch.setattr(tab, "CHECK_SECONDS", 0.01)
    mine = {"owner": "a" * 32}
    file = packed(Path(os.environ["GRADIO_TEMP_DIR"]) / "a.zip", {"a/1.png": PNG})
    with tab.turn(lambda: None):
        assert tab.begin({**mine, "way": "archive", "classes": [["", [str(file)]]]}) == {}
        assert not tab.offered(mine)["now"]["over"] and tab.act({**mine, "do": "cancel"}) == {}
        end = time.monotonic() + 5
        while not (now := tab.offered(mine)["now"])["over"]:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert now["words"] == "Cancelled; nothing was stored." and not file.exists()


def test_the_same_file_of_two_visitors_is_there_until_both_have_it(tab, tmp_path):
    file = packed(tmp_path / "gradio" / "a.zip", {f"{name}/1.png": PNG for name in "ab"})
    with tab._turn:  # both wait
        for visitor in ("a" * 32, "b" * 32):
            assert tab.begin({"owner": visitor, "way": "archive", "classes": [["", [str(file)]]]}) == {}
    end = time.monotonic() + 60
    for visitor in ("a" * 32, "b" * 32):
        while not (news := tab.offered({"owner": visitor}))["now"]["over"] and time.monotonic() < end:
            time.sleep(0.05)
        assert news["now"]["dataset"], news["now"]["words"]
    while file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not file.exists() and not tab._needed


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"way": "archive", "classes": [["", []]]},
        {"way": "archive", "classes": [["", ["/etc/passwd"]]]},
        {"way": "archive", "classes": [["", ["../../etc/passwd"]]]},
        {"way": "unlabelled", "classes": "x"},
        {"way": "unlabelled", "classes": [[1, 2]]},
        {"way": "unlabelled", "classes": [["", [{"path": 7}]]]},
        {"way": ["unlabelled"], "classes": 5},
        {"owner": "no token", "way": "archive", "classes": [["", ["a.zip"]]]},
    ],
)
def test_what_was_not_uploaded_is_not_imported(asked, tab):
    said = tab.begin({"owner": "a" * 32, **asked})
    assert said.keys() == {"problem"} and not tab._imports
