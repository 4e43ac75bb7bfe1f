"""Several processes on one run: what each one's part is; and for real, in processes that speak through gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from kd.cli.options import process_count
from kd.config import DistillConfig
from kd.devtools.server import free_port
from kd.distill import distill
from kd.errors import UserError
from kd.evaluation.scoring import load_run_student
from kd.models.device import Compute
from kd.runs.process import follow_run, start_run
from kd.runs.run import Run
from kd.training.batches import BlockOrder, ViewBatches
from kd.training.distributed import Ranks, SharedBatches, check_machine
from kd.training.trainer import ImageDistilTrainer, training_arguments
from tests.support import architectures
from tests.support.command import flags, kd
from tests.support.runs import changed_by, curve, make_run

TWO = {"device": "cpu", "processes": 2}


@pytest.fixture
def deit(small, tmp_path) -> dict:
    """The settings of a run with two processes whose student has no BatchNorm: a DeiT of one layer."""
    folder = architectures.save("DeiTForImageClassification", tmp_path / "deit")
    return {**small, **TWO, "student": str(folder), "image_size": None, "learning_rate": 5e-4}


def others_of(pid: int) -> list[psutil.Process]:
    """The other processes of a run whose first process this is."""
    return [child for child in psutil.Process(pid).children() if "run" in child.cmdline()]


def wait_for(run: Run, event: str) -> None:
    ends = time.monotonic() + 240
    while run.last(event) is None:
        assert time.monotonic() < ends and run.status() in ("queued", "running"), run.events()[-3:]
        time.sleep(0.1)


# --- Each one's part


@pytest.mark.parametrize(
    ("images", "count", "least"), [(40, 2, 1), (37, 2, 1), (33, 2, 2), (33, 2, 1), (35, 4, 1), (3, 8, 1)]
)
def test_the_parts_of_a_batch_are_together_the_batch_of_one_process(images, count, least):
    size = 16
    shared = [SharedBatches(range(images), size, Ranks(rank, count), least) for rank in range(count)]
    parts = [list(one) for one in shared]
    batches = [[index for part in step for index in part] for step in zip(*parts, strict=True)]
    whole = [list(range(start, min(start + size, images))) for start in range(0, images, size)]
    assert batches == [batch for batch in whole if len(batch) >= least * count]
    assert [len(one) for one in shared] == [len(batches)] * count
    assert all(len(part) >= least for step in parts for part in step)


class Apart(Ranks):
    """One of several processes whose operations with the others are left out: they do not change which images it sees."""

    def agree(self, *flags: bool) -> list[bool]:
        return list(flags)

    def average(self, tensors) -> None:
        """Leave the gradients as they are."""


class Numbered(torch.utils.data.Dataset):
    """Images that are their own number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        numbers = torch.tensor(indices)
        return {"pixel_values": numbers[:, None, None, None].expand(-1, 3, 8, 8).float(), "labels": numbers % 2}


class Watched(ImageDistilTrainer):
    """A trainer that notes the numbers of the images in each batch."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.seen.append(inputs["pixel_values"][:, 0, 0, 0].long().tolist())
        return super().compute_loss(model, inputs, *args, **kwargs)


class StopAfter(TrainerCallback):
    """Ends a training after so many steps, with a checkpoint."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = control.should_save = state.global_step == self.steps


# Images, and how many of them are in each batch; the rest of the last one is 4.
IMAGES, BATCH = 100, 12


def seen_by(folder: Path, ranks: Ranks, blocks: np.ndarray | None, steps: list[int]) -> list[list[int]]:
    """Train three epochs, ended and resumed after so many ``steps``, and return the images of each batch."""
    seen: list[list[int]] = []
    for stop in [*steps, 10**9]:
        config = DistillConfig(epochs=3, batch_size=BATCH, seed=5)
        arguments = training_arguments(config, IMAGES, Compute(torch.device("cpu")), folder, ranks.count)
        arguments.set_evaluate("no").set_save("no")
        arguments.load_best_model_at_end, arguments.gradient_accumulation_steps = False, 1
        one = Watched(
            student_model=architectures.tiny("ViTForImageClassification", image_size=8, patch_size=8),
            lambda_param=0.0, args=arguments, train_dataset=Numbered(IMAGES), data_collator=ViewBatches.collate,
            ranks=ranks, callbacks=[StopAfter(stop)],
        )  # fmt: skip
        one.seen, one.blocks, one.run_callback = seen, blocks, SimpleNamespace(asks=lambda: (False, False))
        one.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    return seen


@pytest.mark.parametrize(
    ("blocks", "count"), [(None, 2), (np.repeat(np.arange(20), 5), 3)], ids=["any order", "streamed"]
)
def test_each_process_sees_its_part_of_the_same_order_also_after_a_stop_in_the_middle(
    tmp_path, monkeypatch, blocks, count
):
    """Each of the three epochs has nine batches; the trainings end in the second and in the third."""
    monkeypatch.setattr(BlockOrder, "MIXED", 30)
    one = seen_by(tmp_path / "one", Ranks(), blocks, [])
    parts = [seen_by(tmp_path / str(rank), Apart(rank, count), blocks, [13, 20]) for rank in range(count)]
    assert [[index for part in step for index in part] for step in zip(*parts, strict=True)] == one
    epochs = [[index for batch in one[start : start + 9] for index in batch] for start in (0, 9, 18)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(IMAGES))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    if blocks is not None:
        order = BlockOrder(blocks, seed=5)
        for nth, epoch in enumerate(epochs):
            order.set_epoch(nth)
            assert epoch == list(order)


def test_the_rows_of_all_processes_are_all_rows_once():
    for count in (0, 1, 7, 64):
        rows = [Ranks(rank, 3).rows(count) for rank in range(3)]
        assert [index for part in rows for index in range(count)[part]] == list(range(count))


def test_a_batch_that_cannot_be_cut_and_too_many_processes_are_refused_in_words(monkeypatch):
    with pytest.raises(ValueError, match=r"batch_size is 32 and there are 3 processes.*such as 33"):
        DistillConfig(processes=3)
    with pytest.raises(ValueError, match="whole number from 1 to 64"):
        DistillConfig(processes=0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with pytest.raises(UserError, match=f"processes is 64, and this machine has {cores} core"):
        check_machine(DistillConfig(processes=64, batch_size=64, device="cpu"))
    monkeypatch.setenv("KD_SHARED", "1")
    with pytest.raises(ValueError, match="would take 2 processes; this server takes 1 at most"):
        check_machine(DistillConfig(processes=2, device="cpu"))
    monkeypatch.delenv("KD_SHARED")
    with pytest.raises(UserError, match="CUDA GPUs or the CPU"):
        check_machine(DistillConfig(processes=2, device="mps"))


def test_one_process_for_each_gpu_is_one_where_there_is_none(monkeypatch):
    assert process_count("3", 32) == "3" and process_count("auto", 32) == 1
    monkeypatch.setattr("kd.cli.options.gpu_count", lambda: 6)
    assert [process_count("auto", size) for size in (32, 48, 7)] == [4, 6, 1]


# --- For real


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"student": "deit_tiny", "image_size": 32, "epochs": 3}, marks=pytest.mark.slow)]
)
def test_two_processes_train_as_one_does_and_a_killed_one_ends_the_run_which_then_goes_on(deit, tmp_path, changes):
    """The losses of all steps of one process and of two, one of which is killed in between."""
    settings = {**deit, "epochs": 4, **changes}
    one = make_run({**settings, "processes": 1}, tmp_path)
    assert follow_run(one, lambda event: None, start_run(one)) == "done"
    two = make_run(settings, tmp_path)
    process = start_run(two)
    wait_for(two, "eval")
    (other,) = others_of(process.pid)
    other.send_signal(signal.SIGKILL)
    assert follow_run(two, lambda event: None, process) == "died"
    assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
    assert (
        "Process 2 of 2" in (two.path / "stderr.txt").read_text() or "is gone" in (two.path / "stderr.txt").read_text()
    )
    assert follow_run(two, lambda event: None, start_run(two, resume=True)) == "done"
    losses = [curve(run, "train/loss") for run in (one, two)]
    assert len(losses[0]) == len(losses[1]) == two.last("step")["step"]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    for name in ("eval/loss", "eval/accuracy"):
        assert curve(two, name) == pytest.approx(curve(one, name), abs=1e-4)
    assert two.last("models")["processes"] == 2 and "processes" not in one.last("models")
    assert two.report()["student"]["accuracy"] == one.report()["student"]["accuracy"]
    weights = [load_run_student(run)[0].state_dict() for run in (one, two)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-3) for name in weights[0])


def test_what_goes_wrong_in_a_process_is_said_of_the_run(small, tmp_path):
    failed = kd(
        "distill", "--runs-dir", tmp_path, *flags({**small, "processes": 64, "batch_size": 64, "device": "cpu"})
    )
    assert failed.returncode == 1 and "each process needs one of its own" in failed.stderr
    refused = kd("distill", "--runs-dir", tmp_path, *flags({**small, "processes": 3}))
    assert refused.returncode == 2 and "Choose a batch size that 3 divides" in refused.stderr


@pytest.mark.slow
def test_where_the_first_process_is_killed_all_others_end_too_and_the_run_goes_on(deit, tmp_path):
    run = make_run({**deit, "epochs": 8, "baseline": "yes"}, tmp_path)
    process = start_run(run)
    wait_for(run, "eval")
    children = psutil.Process(process.pid).children(recursive=True)
    assert others_of(process.pid)
    process.kill()
    assert follow_run(run, lambda event: None, process) == "died"
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert follow_run(run, lambda event: None, start_run(run, resume=True)) == "done"
    assert {event["arm"] for event in run.events() if event["event"] == "arm"} == {"distilled", "baseline"}


# Mixup with the same weight in every step. One process draws one for each of its parts, and each of several one for its own.
EVEN_MIXUP = """
import torch
torch.distributions.Beta.sample = lambda self, shape=(): torch.tensor(0.7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_an_online_teacher_and_averaged_weights_come_to_the_same_as_in_one_process(deit, tmp_path, mixup):
    """Mixup's pairs are those of a part of a batch, so one process is to compute its batches in two parts as well."""
    settings = {**deit, "student": "deit_tiny", "image_size": 32, "targets": "online", "ema": 0.9, "mixup": mixup}
    one, two = (make_run({**settings, "processes": count}, tmp_path) for count in (1, 2))
    if mixup:
        one.append("memory", parts=2, batch_size=16, warnings=[])
    with changed_by(EVEN_MIXUP, tmp_path / "site"):
        assert [follow_run(run, lambda event: None, start_run(run)) for run in (one, two)] == ["done", "done"]
    losses = [curve(run, "train/loss") for run in (one, two)]
    assert len(losses[0]) == len(losses[1]) >= 10
    assert losses[1][:5] == pytest.approx(losses[0][:5], abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)
    for name in ("eval/loss", "eval/accuracy"):
        assert curve(two, name) == pytest.approx(curve(one, name), abs=1e-2)


# After two epochs the loss of one process is no number.
NO_NUMBER = """
from kd.training.trainer import ImageDistilTrainer
ours = ImageDistilTrainer.compute_loss
def broken(self, model, inputs, *args, **kwargs):
    if RANK == 1 and model.training and self.state.global_step == 12:
        inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
    return ours(self, model, inputs, *args, **kwargs)
ImageDistilTrainer.compute_loss = broken
"""


@pytest.mark.slow
def test_where_the_loss_of_one_process_is_no_number_all_stop_and_the_best_student_is_kept(deit, tmp_path):
    run = make_run({**deit, "epochs": 4}, tmp_path)
    with changed_by(NO_NUMBER, tmp_path / "site"):
        assert follow_run(run, lambda event: None, start_run(run)) == "failed"
    failed = run.last("failed")
    assert (failed["kind"], failed["error"]) == ("diverged", "UserError")
    assert "ten times lower" in failed["message"] and "The best student so far" in failed["message"]
    load_run_student(run)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"targets": "online", "ema": 0.9, "mixup": 0.2}], ids=["cached", "online"])
def test_a_student_with_batch_norm_trains_in_two_processes_until_it_is_asked_to_stop(small, tmp_path, changes):
    run = make_run({**small, "processes": 2, "epochs": 50, "device": "cpu", **changes}, tmp_path)
    process = start_run(run)
    wait_for(run, "eval")
    run.ask_to_stop()
    assert follow_run(run, lambda event: None, process) == "stopped"
    model, *_ = load_run_student(run)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())
    # one process goes on with what two have left
    settings = run.settings()
    settings["config"] |= {"processes": 1}
    (run.path / "config.json").write_text(json.dumps(settings))
    process = start_run(run, resume=True)
    resumed = None
    while not (resumed := run.last("resumed")) or run.last("step")["time"] < resumed["time"]:
        assert process.poll() is None, (run.path / "stderr.txt").read_text()
        time.sleep(0.2)
    run.ask_to_stop()
    assert follow_run(run, lambda event: None, process) == "stopped"


def launch(run: Run) -> subprocess.CompletedProcess:
    """Work on a run in two processes that something else starts."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    return subprocess.run([*start, "-m", "kd", "run", str(run.path)], capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_something_else_can_start_both_processes(small, tmp_path):
    """As `accelerate launch` does on GPUs, by the same program; on a CPU it needs MPI itself."""
    run = make_run({**small, "device": "cpu"}, tmp_path)
    ended = launch(run)
    assert run.status() == "done", ended.stderr
    assert ended.returncode == 0 and run.last("models")["processes"] == 2
    assert [event["event"] for event in run.events()].count("done") == 1


@pytest.mark.slow
def test_from_python_the_processes_are_others_and_the_report_comes_back(small, tmp_path):
    report = distill(DistillConfig.from_dict({**small, "processes": 2, "device": "cpu"}), tmp_path)
    assert report["config"]["processes"] == 2
    with pytest.raises(UserError, match="each process needs one of its own"):
        distill(DistillConfig.from_dict({**small, "processes": 64, "batch_size": 64, "device": "cpu"}), tmp_path)


# One process has no memory for more than four pictures at a time.
SHORT = """
if RANK == 1:
    import torch
    from kd.training.trainer import ImageDistilTrainer
    ours = ImageDistilTrainer.compute_loss
    def short(self, model, inputs, **options):
        if model.training and len(inputs["labels"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return ours(self, model, inputs, **options)
    ImageDistilTrainer.compute_loss = short
"""


@pytest.mark.slow
def test_out_of_memory_in_one_process_cuts_the_parts_of_both(small, tmp_path):
    run = make_run({**small, "processes": 2, "device": "cpu"}, tmp_path)
    with changed_by(SHORT, tmp_path / "site"):
        process = start_run(run)
    assert follow_run(run, lambda event: None, process) == "done", (run.path / "stderr.txt").read_text()
    assert [event["parts"] for event in run.events() if event["event"] == "memory"] == [2]


# As on GPUs that share BatchNorm's statistics: one process has no memory in the middle of a step, and the other waits for it
# in an operation that nothing ends.
SHORT_WITHIN_A_STEP = """
import time
from types import SimpleNamespace
import torch
from kd.training import trainer
ours = trainer.ImageDistilTrainer.compute_loss
def short(self, model, inputs, **options):
    if model.training and len(inputs["labels"]) > 4 and self.state.global_step == 3:
        if RANK == SHORT_ONE:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        time.sleep(3600)
    return ours(self, model, inputs, **options)
trainer.ImageDistilTrainer.compute_loss = short
trainer.shared_batch_norms = lambda model: [SimpleNamespace(process_group=None)]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "launched"), [(0, False), (1, False), (1, True)])
def test_out_of_memory_where_another_waits_within_a_step_ends_the_run_in_words_and_it_goes_on_in_smaller_parts(
    small, tmp_path, rank, launched
):
    run = make_run({**small, "device": "cpu", "processes": 1 if launched else 2}, tmp_path)
    with changed_by(f"SHORT_ONE = {rank}\n{SHORT_WITHIN_A_STEP}", tmp_path / "site"):
        if launched:
            ended = launch(run)
            assert ended.returncode and run.status() == "failed", ended.stderr
        else:
            process = start_run(run)
            children = []
            while process.poll() is None:
                with suppress(psutil.Error):  # it has ended just now
                    children = others_of(process.pid) or children
                time.sleep(0.2)
            assert run.status() == "failed", (run.path / "stderr.txt").read_text()
            assert children and psutil.wait_procs(children, timeout=60)[1] == []
        said = run.last("failed")["message"]
        assert f"Process {rank + 1} of 2 ran out of its GPU's memory" in said and run.goes_on[:-1] in said
        assert [event["parts"] for event in run.events() if event["event"] == "memory"] == [2]
        if not launched:
            assert follow_run(run, lambda event: None, start_run(run, resume=True)) == "done"
    assert [event["parts"] for event in run.events() if event["event"] == "memory"] == [2]
