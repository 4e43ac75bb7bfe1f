"""Runs that train more than one student: a baseline without the teacher, further seeds, the verdict."""

import json
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import MobileNetV2ImageProcessorPil

from kd.cli.screen import result_table
from kd.config import DistillConfig
from kd.distill import execute
from kd.errors import UserError
from kd.models.student import load_student
from kd.runs.run import Run, events_by_trial
from kd.runs.store import create_run
from kd.training.batches import ViewBatches
from kd.training.callback import RunCallback
from kd.training.checkpoints import student_folder
from kd.training.plan import fitting_epochs, sizes_of, trials_of
from kd.training.report import is_better, keep_students, kept_seed
from kd.training.setup import Progress, for_trial, prepare
from kd.training.throughput import EpochCost, measure_throughput
from kd.training.trainer import ImageDistilTrainer
from tests.support import toys


def made(small: dict, folder, **changes) -> Run:
    return create_run(DistillConfig.from_dict({**small, **changes}), folder, "t")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all runs here, so that they share pixels and targets."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(colours, teacher) -> dict:
    return {
        "teacher": str(teacher), "dataset": str(colours), "student": "mobilenet_v2_0.35", "image_size": 32, "epochs": 2,
        "batch_size": 16, "views": 2, "precision": "fp32",
    }  # fmt: skip


@pytest.fixture(scope="module")
def judged(settings, folder):
    """Two seeds, each with its baseline."""
    run = made(settings, folder, baseline="yes", trials=2, seed=3)
    execute(run)
    return run


def test_each_seed_learns_with_the_teacher_and_without(judged):
    places = [(e["seed"], e["arm"], e["nth"], e["of"]) for e in judged.events() if e["event"] == "training"]
    assert places == [
        (3, "distilled", 1, 4),
        (3, "baseline", 2, 4),
        (4, "distilled", 3, 4),
        (4, "baseline", 4, 4),
    ]
    report = judged.report()
    assert [(row["seed"], row["arm"]) for row in report["trials"]] == [place[:2] for place in places]
    assert report["verdict"]["seeds"] == 2 and report["verdict"]["pictures"] == 12
    assert judged.last("result")["verdict"]["sentence"] == report["verdict"]["sentence"]


def test_the_command_line_shows_the_baseline_and_both_means(judged):
    report = judged.report()
    shown = result_table(report, report["agreement"])
    assert f"no teacher  {report['baseline']['accuracy']:.2%}" in shown
    with_teacher = [100 * row["accuracy"] for row in report["trials"] if row["arm"] == "distilled"]
    assert f"Over 2 seeds: with the teacher {sum(with_teacher) / 2:.1f}% +- " in shown


def test_the_baseline_learns_from_labels_alone(judged):
    arms = events_by_trial(judged.events())
    steps = [e for e in arms[3, "baseline"] if e["event"] == "step"]
    assert steps and all(e["soft"] == 0 and e["total"] == e["hard"] for e in steps)
    assert all(e["soft"] > 0 for e in arms[3, "distilled"] if e["event"] == "step")


def test_a_baseline_beside_it_changes_nothing_for_the_student(judged, settings, folder):
    alone = made(settings, folder, seed=3)
    execute(alone)
    curves = [
        [(e["accuracy"], e["loss"]) for e in events_by_trial(run.events())[3, "distilled"] if e["event"] == "eval"]
        for run in (alone, judged)
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 2
    assert alone.report()["verdict"] is None and alone.report()["baseline"] is None


def test_the_students_of_the_best_seed_on_validation_are_kept_and_of_the_others_their_answers(judged):
    report = judged.report()
    distilled = [row for row in report["trials"] if row["arm"] == "distilled"]
    best = max(distilled, key=lambda row: row["validation"])
    for side, arm in (("student", "distilled"), ("baseline", "baseline")):
        (row,) = (row for row in report["trials"] if (row["arm"], row["seed"]) == (arm, best["seed"]))
        assert {name: report[side][name] for name in ("accuracy", "f1")} == {
            name: row[name] for name in ("accuracy", "f1")
        }
    assert report["student"]["seed"] == best["seed"]
    kept = sorted(str(path.parent.relative_to(judged.path)) for path in judged.path.rglob("model.safetensors"))
    assert kept == [f"arms/baseline-{best['seed']}/student", "student"]
    with np.load(judged.path / "arms" / "distilled-4" / "test.npz") as file:
        assert file["logits"].shape == (12, 3)
        accuracy = (file["logits"].argmax(-1) == file["labels"]).mean()
    assert accuracy == pytest.approx(judged.report()["trials"][2]["accuracy"], abs=1e-4)
    assert not (judged.path / "checkpoints").exists()


def test_a_later_seed_that_is_better_on_validation_takes_the_place_of_the_first(small, tmp_path):
    run = made(small, tmp_path, baseline="yes", trials=4, seed=3)
    arms, trials, places = trials_of(run.config()), [], []
    for arm, validation in zip(arms, (0.7, 0.9, 0.8, 0.7, 0.8, 0.7, 0.75, 0.9), strict=True):
        student_folder(run, arm).mkdir(parents=True)
        (student_folder(run, arm) / "model").write_text(f"{arm.name} {arm.seed}")
        kept = is_better(trials, arm, validation)
        trials.append({"arm": arm.name, "seed": arm.seed, "validation": validation, "kept": kept})
        for _ in range(2):  # the second time it finds what a killed run had done
            keep_students(run, arms[: arm.nth], kept_seed(trials))
        places.append({str(path.relative_to(run.path)): path.read_text() for path in run.path.rglob("model")})
    assert places[1] == {"student/model": "distilled 3", "arms/baseline-3/student/model": "baseline 3"}
    assert places[2] == {"student/model": "distilled 4"}
    assert places[3:] == [{"student/model": "distilled 4", "arms/baseline-4/student/model": "baseline 4"}] * 5


def test_a_run_that_an_older_version_began_keeps_its_first_seeds_student_unless_a_new_one_is_better(small, tmp_path):
    arms = trials_of(made(small, tmp_path, trials=3).config())
    older = [{"arm": "distilled", "seed": seed, "validation": value} for seed, value in ((0, 0.7), (1, 0.9))]
    assert kept_seed(older) == 0  # the better one's student was deleted
    assert is_better(older, arms[2], 0.8) and not is_better(older, arms[2], 0.7)


def test_where_both_differ_is_kept_for_the_page(judged):
    found = json.loads((judged.path / "analysis.json").read_text())
    assert np.sum(found["student"]["confusion"]) == 12
    for row in found["disagreements"]:
        assert (judged.path / row["picture"]).exists()


def test_a_run_that_is_stopped_in_its_baseline_goes_on_there(settings, folder, monkeypatch):
    ours = RunCallback.on_step_end

    def stop_in_the_baseline(self, args, state, control, **kwargs):
        if self.arm["arm"] == "baseline" and not self.run.last("stopped"):
            self.run.ask_to_stop()
        ours(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunCallback, "on_step_end", stop_in_the_baseline)
    run = made(settings, folder, baseline="yes")
    execute(run)
    assert run.status() == "stopped" and (run.path / "student" / "model.safetensors").exists()
    execute(run, resume=True)
    assert run.status() == "done"
    begun = [e["arm"] for e in run.events() if e["event"] == "training"]
    assert begun == ["distilled", "baseline", "baseline"]
    assert run.report()["verdict"]["p"] is not None  # one pair: McNemar's test


def test_minutes_become_epochs_and_a_resumed_run_keeps_to_them(settings, folder, monkeypatch):
    run = made(settings, folder, minutes=0.03, mixup=0.2, method="dkd")
    measured = []

    def measure_and_note(*asked):
        measured.append(measure_throughput(*asked))
        return measured[0]

    monkeypatch.setattr("kd.training.throughput.measure_throughput", measure_and_note)
    with monkeypatch.context() as patched:
        patched.setattr(RunCallback, "on_train_begin", lambda *arguments, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(run)
    execute(run, resume=True)
    (cost,), plan, data = measured, run.last("plan"), run.last("data")
    assert plan["images_per_second"] == round(1 / cost.picture, 1)
    assert plan["epochs"] == max(1, round(1.8 / (data["train"] * cost.picture + data["validation"] * cost.look)))
    assert run.report()["train"]["epochs"] == plan["epochs"]


def test_the_pace_counts_all_of_a_step_and_of_validation_and_leaves_the_student_alone(settings, folder, monkeypatch):
    student = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 32, 0)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    cut, looked = ViewBatches.__getitems__, ImageDistilTrainer.evaluation_loop
    clip = Accelerator.clip_grad_norm_

    def slowed(method, seconds):
        return lambda *arguments, **options: (time.sleep(seconds), method(*arguments, **options))[1]

    monkeypatch.setattr(ViewBatches, "__getitems__", slowed(cut, 0.2))
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", slowed(clip, 0.2))
    monkeypatch.setattr(ImageDistilTrainer, "evaluation_loop", slowed(looked, 0.4))
    config, told = DistillConfig.from_dict({**settings, "epochs": 3, "batch_size": 8}), []
    files = sorted(folder.iterdir())
    cost = measure_throughput(
        student, config, 36, torch.device("cpu"), "fp32", folder, 0.0, lambda *done: told.append(done)
    )
    assert 0.4 / 8 <= cost.picture < 0.4 and 0.4 / 64 <= cost.look < cost.picture
    after = student.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(told) == 5 + 2 and sorted(folder.iterdir()) == files


def test_the_pace_believes_no_look_at_validation_that_takes_longer_than_learning(settings, folder, monkeypatch):
    student = load_student("mobilenet_v2_0.35", toys.CLASSES, 32, 32, 0)
    monkeypatch.setattr(ImageDistilTrainer, "evaluate", lambda self: {"eval_runtime": 1e9})  # others had the cores
    config = DistillConfig.from_dict({**settings, "batch_size": 8})
    cost = measure_throughput(student, config, 36, torch.device("cpu"), "fp32", folder, 0.0)
    assert cost.look == cost.picture


def test_who_stops_a_run_need_not_wait_for_its_pace(settings, folder, monkeypatch):
    run, cut = made(settings, folder, minutes=1000), ViewBatches.__getitems__

    def stop_at_the_first_batch(self, indices):
        run.ask_to_stop()
        return cut(self, indices)

    monkeypatch.setattr(ViewBatches, "__getitems__", stop_at_the_first_batch)
    monkeypatch.setattr(
        "kd.system.hub.LOOK_SECONDS", 1000
    )  # who watches while the Hub is waited for does not interrupt
    execute(run)
    assert run.status() == "stopped" and run.last("plan") is None


def test_a_student_that_takes_one_size_only_is_told_before_anything_is_decoded(settings, folder):
    run = made(settings, folder, student="deit_tiny", start_size=16)
    with pytest.raises(UserError, match="does not take pictures of 16 x 16"):
        execute(run)
    assert run.last("data") is None


def test_every_arm_of_a_pretrained_student_sees_with_its_own_processor(settings, folder, tmp_path):
    toys.tiny_resnet(toys.CLASSES).save_pretrained(tmp_path / "base")
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "base"
    )
    run = made(settings, folder, student=str(tmp_path / "base"), image_size=None, baseline="yes")
    work = prepare(run, Progress(run))
    first, second = (for_trial(work, arm).student.processor.to_dict() for arm in trials_of(work.config))
    assert first == second and first["size"]["shortest_edge"] == 40


def test_the_input_grows_from_its_start_to_the_full_size_in_two_thirds_of_training():
    sizes = sizes_of(DistillConfig(start_size=64, epochs=12), (128, 128))
    assert [sizes(epoch)[0] for epoch in (0, 3, 6, 8, 11)] == [64, 96, 112, 128, 128]
    assert sizes_of(DistillConfig(), (28, 28))(0) == (28, 28)


@pytest.mark.parametrize("epochs", [1, 2, 3, 30])
@pytest.mark.parametrize("full", [(28, 28), (40, 40), (100, 72), (200, 200)])
def test_the_last_epoch_is_at_the_full_size_however_few_there_are_and_whatever_it_is(epochs, full):
    assert sizes_of(DistillConfig(start_size=16, epochs=epochs), full)(epochs - 1) == full


def test_more_epochs_of_an_input_that_grows_fit_into_the_same_minutes():
    full, cost, pictures, validation = (128, 128), EpochCost(1 / 80, 1 / 240), 2400, 240
    epochs = fitting_epochs(DistillConfig(minutes=20, start_size=64), full, cost, pictures, validation)
    sizes = sizes_of(DistillConfig(start_size=64, epochs=epochs), full)
    seconds = sum(pictures / 80 * sizes(epoch)[0] ** 2 / 128**2 + validation / 240 for epoch in range(epochs))
    assert abs(seconds - 20 * 60) < pictures / 80
    assert epochs > fitting_epochs(DistillConfig(minutes=20), full, cost, pictures, validation) == round(1200 / 31)
    assert fitting_epochs(DistillConfig(minutes=0.001), full, cost, pictures, validation) == 1


def test_a_teacher_that_is_asked_in_every_step_takes_of_the_minutes():
    config, full = DistillConfig(minutes=20, targets="online"), (128, 128)
    assert fitting_epochs(config, full, EpochCost(1 / 80, 1 / 240), 2400, 240, asking=0.2) == round(
        1200 / (31 + 2400 * 0.2)
    )
