"""Runs that train more than one student: a baseline without the teacher, further seeds, the verdict."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch

from kd.cli.screen import result_table
from kd.distill import execute
from kd.errors import UserError
from kd.runs.process import start_run
from kd.runs.run import events_by_trial
from kd.training.batches import ViewBatches
from kd.training.callback import RunCallback
from kd.training.throughput import Clock, measure_throughput
from tests.support.runs import make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all runs here, so that they share pixels and targets."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(colours, teacher) -> dict:
    return {
        "teacher": str(teacher), "dataset": str(colours), "student": "resnet_8", "image_size": 32, "epochs": 2,
        "batch_size": 16, "views": 2, "precision": "fp32", "export": "no",
    }  # fmt: skip


# A student with dropout, which shows whether trainings draw random numbers that are another's.
DROPS = {"student": "mobilenet_v2_0.35", "seed": 3}


@pytest.fixture(scope="module")
def judged(settings, folder):
    """Two seeds, each with its baseline."""
    run = make_run(settings, folder, baseline="yes", trials=2, **DROPS)
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
    alone = make_run(settings, folder, **DROPS)
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


def test_where_both_differ_is_kept_for_the_page(judged):
    found = json.loads((judged.path / "analysis.json").read_text())
    assert np.sum(found["student"]["confusion"]) == 12
    for row in found["disagreements"]:
        assert (judged.path / row["picture"]).exists()


def test_a_run_that_is_stopped_in_its_baseline_goes_on_there(settings, folder, monkeypatch):
    ours = RunCallback.on_step_end

    def stop_in_the_baseline(self, args, state, control, **kwargs):
        if not self.trial.is_distilled and not self.run.last("stopped"):
            self.run.ask_to_stop()
        ours(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunCallback, "on_step_end", stop_in_the_baseline)
    run = make_run(settings, folder, baseline="yes")
    execute(run)
    assert run.status() == "stopped" and (run.path / "student" / "model.safetensors").exists()
    execute(run, resume=True)
    assert run.status() == "done"
    begun = [e["arm"] for e in run.events() if e["event"] == "training"]
    assert begun == ["distilled", "baseline", "baseline"]
    assert run.report()["verdict"]["p"] is not None  # one pair: McNemar's test


@pytest.fixture
def two_threads():
    """As on a machine of two cores: two trainings that are given one thread each go on at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_trainings_side_by_side_come_to_the_same_as_one_after_the_other(judged, settings, folder, two_threads):
    run = make_run(settings, folder, baseline="yes", trials=2, threads=1, **DROPS)
    execute(run)
    trainings = [e for e in run.events() if e["event"] == "training"]
    assert {e["nth"] for e in trainings[:2]} == {1, 2} and all(e["at_once"] == 2 for e in trainings)
    assert "at_once" not in judged.last("training")

    def curves(one):
        return {
            key: [{**e, "time": 0, "seconds": 0, "images_per_second": 0} for e in events if e["event"] == "eval"]
            for key, events in events_by_trial(one.events()).items()
        }

    assert curves(run) == curves(judged) and list(curves(run)) == [
        (3, "distilled"),
        (3, "baseline"),
        (4, "distilled"),
        (4, "baseline"),
    ]

    def scores(one):
        return [{**row, "seconds": 0, "images_per_second": 0} for row in one.report()["trials"]]

    assert scores(run) == scores(judged) and run.report()["verdict"] == judged.report()["verdict"]


@pytest.mark.slow
def test_side_by_side_both_are_stopped_with_what_they_have_learned_and_both_go_on(
    settings, folder, monkeypatch, two_threads
):
    ours = RunCallback.on_step_end

    def stop_later(self, args, state, control, **kwargs):
        if state.global_step == 8 and not self.run.last("stopped"):
            self.run.ask_to_stop()
        ours(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunCallback, "on_step_end", stop_later)
    run = make_run(settings, folder, baseline="yes", epochs=4, threads=1)
    execute(run)
    assert run.status() == "stopped" and not multiprocessing.active_children()
    students = [run.path / "student", run.path / "arms" / "baseline-0" / "student"]
    assert all((student / "model.safetensors").exists() for student in students)
    execute(run, resume=True)
    assert run.status() == "done"
    again = [e for e in run.events() if e["event"] == "training"][2:]
    assert {e["arm"] for e in again} == {"distilled", "baseline"} and all(e["step"] > 0 for e in again)


def test_an_error_of_one_ends_the_other_and_is_told_as_ever(settings, folder, monkeypatch, two_threads):
    ours = RunCallback.on_step_end

    def fail_in_the_student(self, args, state, control, **kwargs):
        if self.trial.is_distilled:
            raise UserError("No more of this.", kind="diverged", setting="learning_rate")
        time.sleep(0.2)
        ours(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunCallback, "on_step_end", fail_in_the_student)
    run = make_run(settings, folder, baseline="yes", epochs=100, threads=1)
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()  # a child of whoever calls kd.distill
    with pytest.raises(UserError, match="No more of this") as told:
        execute(run)
    assert multiprocessing.active_children() == [other]
    other.kill()
    other.join()
    assert (told.value.kind, told.value.setting) == ("diverged", "learning_rate")
    assert run.last("failed")["message"] == "No more of this." and run.last("failed")["kind"] == "diverged"
    assert not multiprocessing.active_children()
    assert all(e["epoch"] < 90 for e in run.events() if e["event"] == "step")


def test_a_training_whose_process_is_killed_is_told_in_words_and_can_go_on(settings, folder, monkeypatch, two_threads):
    def die(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    run = make_run(settings, folder, baseline="yes", threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(RunCallback, "on_step_begin", die)
        with pytest.raises(UserError, match=r"A training's process is gone\. It was killed"):
            execute(run)
    assert run.status() == "failed" and run.resume_command in run.last("failed")["message"]
    execute(run, resume=True)
    assert run.status() == "done"


@pytest.mark.slow
def test_where_the_run_s_process_is_killed_its_trainings_end_too(settings, folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run = make_run(settings, folder, baseline="yes", epochs=500, threads=1)
    process = start_run(run)
    end = time.monotonic() + 120
    while len({e["arm"] for e in run.events() if e["event"] == "step"}) < 2:
        assert time.monotonic() < end, (run.path / "stderr.txt").read_text()
        time.sleep(0.1)
    trainings = psutil.Process(process.pid).children()
    assert len(trainings) == 2
    process.kill()
    process.wait()
    assert not psutil.wait_procs(trainings, timeout=20)[1] and run.status() == "died"


def test_minutes_become_epochs_and_a_resumed_run_keeps_to_them(settings, folder, monkeypatch):
    run = make_run(settings, folder, minutes=0.03, mixup=0.2, method="dkd")
    measured = []

    def measure_and_note(*asked):
        measured.append(measure_throughput(*asked[:4], Clock(0.1)))
        return measured[0]

    monkeypatch.setattr("kd.training.throughput.measure_throughput", measure_and_note)
    with monkeypatch.context() as patched:
        patched.setattr(RunCallback, "on_train_begin", lambda *arguments, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(run)
    execute(run, resume=True)
    (cost,), plan, data = measured, run.last("plan"), run.last("data")
    assert plan["images_per_second"] == round(1 / cost.image, 1)
    assert plan["epochs"] == max(1, round(1.8 / (data["train"] * cost.image + data["validation"] * cost.evaluation)))
    assert run.report()["train"]["epochs"] == plan["epochs"]


def test_who_stops_a_run_need_not_wait_for_its_pace(settings, folder, monkeypatch):
    run, cut = make_run(settings, folder, minutes=1000), ViewBatches.__getitems__

    def stop_at_the_first_batch(self, indices):
        run.ask_to_stop()
        return cut(self, indices)

    monkeypatch.setattr(ViewBatches, "__getitems__", stop_at_the_first_batch)
    monkeypatch.setattr(
        "kd.system.hub.POLL_SECONDS", 1000
    )  # who watches while the Hub is waited for does not interrupt
    execute(run)
    assert run.status() == "stopped" and run.last("plan") is None


def test_a_student_that_takes_one_size_only_is_told_before_anything_is_decoded(settings, folder):
    run = make_run(settings, folder, student="deit_tiny", start_size=16)
    with pytest.raises(UserError, match="does not take pictures of 16 x 16"):
        execute(run)
    assert run.last("data") is None
