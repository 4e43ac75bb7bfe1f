"""The panel that checks a dataset on the page, without a browser."""

import json
import time
from pathlib import Path

import pytest

from kd.config import DistillConfig
from kd.errors import UserError
from kd.evaluation.dataset_check import check_dataset as check
from kd.system.cache import Cache
from kd.ui import dataset_check, settings


def asked(dataset: Path | str, asker: str = "a", **others) -> dict:
    """What the page's script sends."""
    values = {**settings.preset_values("sample"), "dataset": str(dataset), "image_size": 32}
    return {"values": [settings.to_widget(*item) for item in values.items()], "owner": "", "asker": asker, **others}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Nothing under way, nothing kept."""
    monkeypatch.setenv("KD_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("kd.ui.dataset_check._kept", Cache(lambda: 8))
    yield
    dataset_check._give_up()


def test_a_check_runs_beside_the_page_one_at_a_time_and_can_be_cancelled(planted, tmp_path, alone):
    check(DistillConfig(dataset=str(planted), image_size=32), tmp_path / ".cache")  # the process finds it there
    assert dataset_check.checked(asked(planted, "other")) == {"wait": "Starting"}
    process = dataset_check._now.child.process
    assert dataset_check.checked(asked(planted, image_size=64) | {"teacher": True}) == {"wait": dataset_check.OTHERS}
    assert dataset_check.cancel({"asker": "a"}) == {} and process.poll() is None  # not the one who began it
    dataset_check.cancel({"asker": "other"})
    assert process.wait(20) < 0 and dataset_check._now is None
    end = time.monotonic() + 60
    while "wait" in (news := dataset_check.checked(asked(planted))):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert news["title"].endswith("problems in planted0") and "of 6 test pictures are in train" in news["html"]
    assert dataset_check.checked(asked(planted, file="html"))["text"].startswith("<!doctype html>")
    assert json.loads(dataset_check.checked(asked(planted, file="json"))["text"])["problems"]
    assert dataset_check.checked(asked(planted))["html"] and dataset_check._now is None  # kept


def test_what_cannot_be_checked_says_why(tmp_path, alone, monkeypatch):
    assert "duplicates is 'some'" in dataset_check.checked(asked("sample") | {"values": [
        settings.to_widget(*item) for item in {**settings.preset_values("sample"), "duplicates": "some"}.items()
    ]})["problem"]  # fmt: skip
    assert "no longer kept" in dataset_check.checked(asked("sample", file="html"))["problem"]
    monkeypatch.setenv("KD_SHARED", "1")
    assert "lost its key" in dataset_check.checked(asked("sample", owner={"a": 1}))["problem"]
    owner = "0" * 32
    assert "a path" in dataset_check.checked(asked(tmp_path, owner=owner))["problem"]
    config = settings.from_widgets(tuple(asked("some/pictures")["values"]))
    dataset_check._kept.put(dataset_check.Wanted.of(config, owner, False).key, UserError("mine"))
    assert dataset_check.checked(asked("some/pictures", owner=owner)) == {"problem": "mine"}
    assert dataset_check._kept.find(dataset_check.Wanted.of(config, "1" * 32, False).key) is None
    assert dataset_check._now is None
