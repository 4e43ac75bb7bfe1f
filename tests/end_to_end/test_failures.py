"""Bad days in small: files cut short, memory that runs out, locks that are lost. `python -m kd chaos` does it for real."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import get_scheduler

from kd.cli import main
from kd.config import DistillConfig
from kd.data.pixels import load_pixels
from kd.data.splits import load_splits
from kd.devtools import chaos
from kd.distill import execute
from kd.errors import UserError
from kd.runs.failures import failure_message
from kd.runs.process import start_run
from kd.runs.run import Run, RunTaken
from kd.runs.store import create_run, list_runs, local_owner
from kd.training.checkpoints import last_checkpoint, save_student
from kd.training.loop import use_smaller_parts
from kd.training.trainer import ImageDistilTrainer
from tests.support.toys import processor, tiny_resnet


@pytest.fixture
def run(tmp_path) -> Run:
    return create_run(DistillConfig(), tmp_path, "token")


# --- Memory


def test_when_memory_runs_out_batches_are_cut_into_parts_and_the_steps_stay(small, tmp_path, monkeypatch):
    ours, seen = ImageDistilTrainer.compute_loss, []

    def small_memory(self, model, inputs, **options):
        if model.training:
            if self.state.epoch >= 1 and len(inputs["labels"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            seen.append((self.state.global_step, self.lr_scheduler.get_last_lr()[0]))
        return ours(self, model, inputs, **options)

    monkeypatch.setattr(ImageDistilTrainer, "compute_loss", small_memory)
    config = DistillConfig.from_dict(small)
    run = create_run(config, tmp_path, "t")
    execute(run)
    memory_events = [event for event in run.events() if event["event"] == "memory"]
    assert [event["parts"] for event in memory_events] == [2, 4]
    assert "The GPU is out of memory with 16 pictures at a time" in memory_events[0]["warnings"][0]
    trainings = [event for event in run.events() if event["event"] == "training"]
    assert [event["step"] for event in trainings] == [0, 6, 6]  # from the checkpoint, not from the beginning
    optimizer = torch.optim.SGD([torch.zeros(1)], config.learning_rate)
    schedule = get_scheduler(config.schedule, optimizer, round(config.warmup * 12), 12)
    rates = dict(seen)
    assert list(rates) == list(range(12)) and run.last("step")["step"] == 12
    for step in range(12):
        assert rates[step] == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_a_batch_is_cut_into_equal_parts_down_to_one_picture(run):
    work = SimpleNamespace(config=DistillConfig(batch_size=12))
    for _ in range(3):
        use_smaller_parts(run, work)
    assert [event["parts"] for event in run.events() if event["event"] == "memory"] == [2, 4, 12]
    with pytest.raises(UserError, match="even with one picture at a time"):
        use_smaller_parts(run, work)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "The disk is full"),
        (RuntimeError("Error while serializing: IoError(No space left on device (os error 28))"), "The disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "share of the disk is used up"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "/x/pixels.part"), "A file in /x/pixels.part became larger"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "it is read-only"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "The disk is full, or was when a file"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "Out of memory"),
        (MemoryError(), "Out of memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Out of memory"),
        (RuntimeError("could not create a primitive"), "Out of memory"),
        (RuntimeError("can't start new thread"), "allows no further thread"),
        (RuntimeError("could not create a primitive descriptor for a convolution"), "our mistake"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "Out of memory"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_said_in_words(run, error, words):
    said = failure_message(error, run)
    assert words in said and (f"resume {run.id}" in said or "our mistake" in said)


def test_of_a_dead_run_only_what_is_known_is_said(run, monkeypatch):
    run.append("started", pid=1, oom_kills=3)
    for now, words in ((3, "killed nothing for want of memory"), (4, "perhaps this one"), (None, "as the system does")):
        monkeypatch.setattr("kd.system.memory.kills", lambda now=now: now)
        assert words in run.explain_death()


# --- Files


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


def test_pixels_of_which_the_list_or_a_part_is_lost_are_decoded_anew(colours, tmp_path):
    train = load_splits(DistillConfig(dataset=str(colours))).train
    before = np.array(load_pixels(train, 32, tmp_path).values)
    folder = next((tmp_path / "pixels").iterdir())
    for spoil in (
        lambda: (folder / "unreadable.json").write_text("["),
        lambda: np.save(folder / "pixels.npy", before[:-1]),
        lambda: (folder / "pixels.npy").unlink(),
    ):
        spoil()
        again = load_pixels(train, 32, tmp_path)
        assert not again.cached and np.array_equal(again.values, before)
    assert load_pixels(train, 32, tmp_path).cached and not list(folder.glob("*.part"))


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


def test_an_owner_that_was_not_written_to_its_end_is_made_anew(tmp_path):
    (tmp_path / ".owner").touch()
    assert len(local_owner(tmp_path)) == 32


# --- Locks


def hold_and_die(path: str, channel) -> None:
    """Work on a run with a helper, and be killed: the helper lives on."""
    with Run(Path(path)).work():
        helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        helper.start()
        channel.send(helper.pid)
        os.kill(os.getpid(), 9)


def test_helpers_that_outlive_a_killed_run_do_not_keep_its_lock(run):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold_and_die, args=(str(run.path), theirs))
    process.start()
    helper = ours.recv()
    process.join()
    try:
        assert chaos.until(lambda: not run.is_locked(), 5)  # a moment: it lets go once it has begun
        assert chaos.is_alive(helper)
    finally:
        os.kill(helper, 9)


def test_who_has_lost_the_lock_leaves_the_run_to_others(run):
    with run.work():
        before = run.events()
        (run.path / "lock").unlink()
        for another in (lambda: None, (run.path / "lock").touch):
            another()
            with pytest.raises(RunTaken):
                run.append("step")
    assert run.events() == before


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root")
def test_a_run_on_a_read_only_disk_can_be_looked_at_and_says_why_it_cannot_go_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        with chaos.small_disk(disk):
            run = create_run(DistillConfig(), disk, "t")
            run.append("started")
            with run.work():
                pass
            assert chaos.mount("-o", "remount,ro", disk)
            assert list_runs(disk) == [run] and run.status() == "died"
            for work_on in (start_run, execute):
                with pytest.raises(UserError, match="nothing can be written to"):
                    work_on(run)
    except chaos.Skipped as why:
        pytest.skip(str(why))


# --- The programme


def test_the_kills_go_round_all_stages_and_victims():
    programme = list(chaos.faults(45, Random(0)))
    kills = [fault for fault in programme if fault.name.startswith("kill")]
    assert {fault.stage for fault in kills[:9]} == set(chaos.STAGES) and len(kills) == 45
    assert len({fault.name for fault in kills}) == 3
    assert [f.stage for f in chaos.faults(45, Random(0))] == [f.stage for f in programme]


@pytest.mark.parametrize(("problems", "code"), [((), 0), (("the run's lock stays taken",), 1)])
def test_the_command_prints_each_fault_and_the_count(monkeypatch, capsys, problems, code):
    found = [
        chaos.Outcome("kill -9 the trainer", "save", "eval", "died", "done, 90.0%", problems),
        chaos.Outcome("full disk", "save", "", "mounting needs root", "", skipped=True),
    ]
    monkeypatch.setattr("kd.devtools.chaos.chaos", lambda kills, seed, tell: [tell(one) or one for one in found])
    assert main.main(["chaos", "--seed", "3"]) == code
    printed = capsys.readouterr().out
    assert f"{1 - code} of 1 faults survived, 1 skipped" in printed and "seed 3" in printed
    assert not problems or "no: the run's lock stays taken" in printed


def test_half_a_file_that_passes_for_whole_is_seen(run, tmp_path):
    (run.path / "report.json").write_text('{"student"')
    (run.path / "student").mkdir()
    (run.path / "student" / "model.safetensors").write_bytes(b"\0" * 20)
    other = create_run(DistillConfig(), tmp_path / "other", "t")
    for name, value in (("runs", 1.0), ("other", 2.0)):
        folder = tmp_path / ("." if name == "runs" else name) / ".cache" / "targets"
        folder.mkdir(parents=True)
        np.save(folder / "view-0.npy", np.full(4, value))
    found = " ".join(chaos.half_written(run, other))
    assert "report.json is no JSON" in found and "student is not whole" in found and "view-0.npy" in found


def test_a_process_that_works_on_a_run_is_found(run):
    code = "import time; print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        assert chaos.workers(run) == [process.pid]
    finally:
        process.kill()
        process.communicate()
    assert not chaos.workers(run)
