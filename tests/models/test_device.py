"""The choice of a device and of a precision."""

import pytest
import torch

from kd.errors import UserError
from kd.models.device import _time_precisions, pick_device, pick_precision
from kd.models.student import load_student


def test_a_device_that_is_not_there_is_refused_in_words():
    with pytest.raises(UserError, match="cannot be used; this machine has"):
        pick_device("cuda:63")


def test_the_quicker_precision_is_tried_once_and_remembered(tmp_path, monkeypatch):
    model = load_student("mobilenet_v2_0.35", ["a", "b"], 28, 0).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tried = []

    def time_them(bf16: float):
        return lambda *_: tried.append(1) or {"fp32": 1.0, "bf16": bf16}

    def pick(asked: str = "auto", cache=tmp_path) -> str:
        return pick_precision(asked, torch.device("cpu"), model, (28, 28), cache)

    assert _time_precisions(model, (28, 28), rounds=1).keys() == {"fp32", "bf16"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr("kd.models.device._has_bf16", lambda: True)
    monkeypatch.setattr("kd.models.device._time_precisions", time_them(0.8))
    assert pick() == pick() == "bf16" and len(tried) == 1
    monkeypatch.setattr("kd.models.device._time_precisions", time_them(0.95))
    assert pick(cache=tmp_path / "other") == "fp32" and pick("bf16") == "bf16" and len(tried) == 2
    monkeypatch.setattr("kd.models.device._has_bf16", lambda: False)
    assert pick(cache=tmp_path / "third") == "fp32" and len(tried) == 2
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        pick("fp16")
