"""Checkpoints and saved students: whole, or passed over."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kd.training.checkpoints import last_checkpoint, save_student
from tests.support.toys import processor, tiny_resnet


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """Two of them, as `Trainer` leaves them."""
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.zeros(64)}, folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({"state": torch.zeros(64)}, folder / name)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_checkpoint_of_which_a_file_is_cut_short_is_not_gone_on_with(checkpoints, name, kept):
    assert last_checkpoint(checkpoints).endswith("checkpoint-10")
    file = checkpoints / "checkpoint-10" / name
    file.write_bytes(file.read_bytes()[:kept])
    assert last_checkpoint(checkpoints).endswith("checkpoint-9")


@pytest.mark.parametrize("call", [0, 1, 2, 3, 4])
def test_whenever_saving_is_killed_the_student_is_whole_or_not_there(tmp_path, monkeypatch, call):
    old, new = tiny_resnet(["a", "b"], seed=1), tiny_resnet(["a", "b"], seed=2)
    save_student(old, processor(), tmp_path / "student")
    calls = iter(range(100))

    def killed(real):
        def one(*arguments, **options):
            if next(calls) == call:
                if real is shutil.rmtree and Path(arguments[0]).exists():
                    (Path(arguments[0]) / "model.safetensors").unlink()  # half of its work is done
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return one

    with monkeypatch.context() as patched:
        for module, name in ((os, "replace"), (shutil, "rmtree")):
            patched.setattr(f"kd.training.checkpoints.{module.__name__}.{name}", killed(getattr(module, name)))
        with pytest.raises(KeyboardInterrupt):
            save_student(new, processor(), tmp_path / "student")
    if (tmp_path / "student").exists():
        loaded = type(new).from_pretrained(tmp_path / "student")
        assert any(torch.equal(loaded.classifier[1].weight, one.classifier[1].weight) for one in (old, new))
    save_student(new, processor(), tmp_path / "student")
    assert torch.equal(type(new).from_pretrained(tmp_path / "student").classifier[1].weight, new.classifier[1].weight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]
