"""A run in pieces: where one ends the next goes on, and the result is that of a run in one piece."""

import os
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from kd.distill import execute, execute_piece
from kd.runs.pieces import MARGIN, Piece, is_in_pieces
from kd.runs.queue import device_name
from kd.runs.run import Run
from kd.training.throughput import Clock, measure_throughput
from tests.support.runs import make_run

HOUR = 3600.0


@pytest.fixture
def zerogpu(monkeypatch):
    """An environment as on a ZeroGPU Space."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")


def work(run: Run, seconds: float = HOUR) -> str:
    """Work on one piece with the CPU as the GPU; why it ended, or with which event."""
    with run.work(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_DEVICE", "cpu")
        execute_piece(run, time.monotonic() + seconds)
    last = run.last("paused", "stopped", "failed")
    return last.get("reason", last["event"])


def ends_after(monkeypatch, counts: list[int]) -> None:
    """Let each piece be over when it has asked so often whether it is."""
    asked = 0

    def is_over(piece: Piece, seconds: float) -> bool:
        nonlocal asked
        if not piece.has_gpu or not counts:
            return False
        asked += 1
        if asked < counts[0]:
            return False
        asked = 0 * counts.pop(0)
        return True

    monkeypatch.setattr(Piece, "is_over", is_over)


def evaluations(run: Run) -> list[tuple]:
    names = ("arm", "seed", "step", "accuracy", "f1", "agreement", "loss")
    return [tuple(event[name] for name in names) for event in run.events() if event["event"] == "eval"]


def test_a_run_in_pieces_gives_what_a_run_in_one_piece_gives(small, tmp_path, monkeypatch):
    settings = {**small, "student": "resnet_8", "baseline": "yes", "ema": 0.9, "mixup": 0.2}
    whole, run = make_run(settings, tmp_path / "whole"), make_run(settings, tmp_path / "pieces")
    execute(whole)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr("kd.training.setup.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("kd.training.targets.TARGET_BATCH", 32)
    ends_after(
        monkeypatch, [1, 4, 5, 1, 9]
    )  # in the targets, within an epoch, at its end, after a step, in the baseline
    execute(run)
    reasons = [run.last("paused")["reason"]]
    while reasons[-1] != "cpu":
        reasons.append(work(run))
        assert len(reasons) < 10
    assert reasons == ["gpu", *["time"] * 5, "cpu"]
    began = [event["step"] for event in run.events() if event["event"] == "training"]
    assert len(set(began)) >= 4
    execute(run, resume=True)
    assert run.status() == "done" and not run.stop_asked()
    assert evaluations(run) == evaluations(whole)
    ours, theirs = (load_file(one.path / "student" / "model.safetensors") for one in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("agreement", "baseline", "verdict"):
        assert run.report()[name] == whole.report()[name], name
    assert run.report()["student"]["accuracy"] == whole.report()["student"]["accuracy"]
    assert sorted(p.name for p in (run.path / "arms").rglob("*")) == sorted(
        p.name for p in (whole.path / "arms").rglob("*")
    )


def test_the_first_step_is_saved_which_shows_how_long_saving_takes(small, tmp_path, zerogpu):
    run = make_run(small, tmp_path, student="resnet_8", teacher="none", dataset=small["dataset"])
    execute(run)
    assert work(run) == "cpu"
    events = [event for event in run.events() if event["event"] in ("saved", "step", "eval")]
    first, *later = [event for event in events if event["event"] == "saved"]
    assert events.index(first) <= 1 and first["saving"] > 0 and first["evaluating"] is None
    assert later and later[0]["evaluating"] > 0
    piece = Piece.with_gpu(run, time.monotonic() + HOUR)
    assert piece.saving == run.last("saved")["saving"] and piece.margin == MARGIN
    run.close("paused", reason="worker", message="")
    run.close("paused", reason="worker", message="")
    assert Piece.with_gpu(run, 0.0).margin == 4 * MARGIN  # what was kept free was not enough, twice


def test_a_piece_ends_while_there_is_time_to_save(small, tmp_path, zerogpu):
    run = make_run(small, tmp_path, student="resnet_8", epochs=500)
    execute(run)
    assert work(run, 8.0) == "time"
    step = run.last("step")["step"]
    assert max(int(path.name.split("-")[1]) for path in run.path.glob("checkpoints/*/checkpoint-*")) == step < 3000
    assert not (run.path / "student").exists()
    piece = Piece(time.monotonic() + 1000.0)
    assert piece.is_over(700.0) and not piece.is_over(600.0) and not Piece().is_over(HOUR)
    run.ask_to_stop()
    assert work(run) == "stopped"  # at once, without a step
    assert run.last("training")["step"] == 0 and run.last("step")["step"] == step


def test_a_stop_in_a_piece_keeps_the_student_so_far(small, tmp_path, zerogpu, monkeypatch):
    run = make_run(small, tmp_path, student="resnet_8")
    execute(run)
    real = Run.append

    def append(self: Run, event: str, **data) -> None:
        real(self, event, **data)
        if event == "eval":
            self.ask_to_stop()

    monkeypatch.setattr(Run, "append", append)
    assert work(run) == "stopped" and (run.path / "student" / "model.safetensors").exists()


def test_minutes_are_turned_into_epochs_where_there_is_the_gpu(small, tmp_path, zerogpu, monkeypatch):
    quick = partial(measure_throughput, clock=Clock(0.1))
    monkeypatch.setattr("kd.training.throughput.measure_throughput", lambda *asked: quick(*asked[:4]))
    run = make_run(small, tmp_path, student="resnet_8", minutes=0.02)
    execute(run)
    assert run.last("plan") is None and run.last("data")
    work(run)
    assert run.last("plan")["images_per_second"] > 0


def test_only_runs_that_a_page_follows_are_in_pieces(small, tmp_path, monkeypatch):
    run, on_cpu = make_run(small, tmp_path), make_run(small, tmp_path, device="cpu")
    assert not is_in_pieces(run)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert is_in_pieces(run) and not is_in_pieces(on_cpu)
    monkeypatch.setattr(Run, "settings", lambda self: {"sweep": "1", "config": {}})
    assert not is_in_pieces(run)


def test_outside_a_piece_there_is_the_cpu_only(zerogpu, monkeypatch):
    from kd.models.device import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as `spaces` has it in the page's process
    assert os.environ.get("KD_DEVICE") is None
    assert device_name("auto") == device_name("cuda") == "cpu"
    assert pick_device("auto") == pick_device("cuda") == torch.device("cpu")


def test_a_run_that_is_paused_goes_on_elsewhere_in_one_piece(small, tmp_path, monkeypatch):
    run = make_run(small, tmp_path, student="resnet_8")
    with monkeypatch.context() as patch:
        patch.setenv("SPACES_ZERO_GPU", "true")
        execute(run)
    assert run.status() == "paused"
    execute(run, resume=True)
    assert run.status() == "done"
