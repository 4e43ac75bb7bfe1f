"""Whole runs, as a user starts, stops, loses and resumes them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kd.cli import main, runs
from kd.cli.screen import Screen, result_table, size_words, speed_words
from kd.config import DistillConfig
from kd.data.library.store import short_name
from kd.distill import execute
from kd.errors import UserError
from kd.evaluation.compare import compare
from kd.experiments.study import result_of
from kd.runs.process import start_run
from kd.runs.run import Run, RunDeleted
from kd.runs.store import create_run, delete_run, list_runs, local_owner, resolve
from kd.training.batches import ViewBatches
from kd.training.callback import RunCallback
from kd.training.setup import load_job_splits, load_job_teacher, plan_warnings, start_job
from kd.ui import figures
from kd.ui.compare import choices
from kd.ui.disagreement import analysis, load_analysis, render_analysis
from kd.ui.result import result
from kd.ui.runs import row
from tests.support import toys
from tests.support.command import flags, kd

REPRINT = """
import json, sys
sys.modules["kd"] = None  # whatever is installed here, kd cannot be imported
sys.path[:] = [p for p in sys.path if p]
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
hits = []
for path, label in json.load(sys.stdin):
    inputs = processor(Image.open(path).convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        hits.append(model.config.id2label[model(**inputs).logits.argmax().item()] == label)
print(sum(hits) / len(hits))
"""


def settings(small: dict, **changes) -> DistillConfig:
    return DistillConfig.from_dict({**small, **changes})


@pytest.fixture(scope="module")
def finished(colours, teacher, tmp_path_factory):
    """A run from the command line: (run, what it printed)."""
    folder = tmp_path_factory.mktemp("runs")
    asked = {"teacher": teacher, "dataset": colours, "student": "mobilenet_v2_0.35", "image-size": 32, "epochs": 6,
             "batch-size": 8, "views": 2, "crop-area": 0.9, "precision": "fp32", "learning-rate": 0.01}  # fmt: skip
    done = kd("distill", "--preset", "custom", *flags(asked), "--runs-dir", folder, "--json")
    assert done.returncode == 0, done.stderr
    return list_runs(folder)[0], done


def test_the_report_is_the_last_line_and_has_every_field(finished):
    run, done = finished
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == run.report()
    assert report["baseline"] is None and 0 <= report["agreement"] <= 1
    assert {"torch", "transformers", "python"} <= report["versions"].keys()
    for side in ("teacher", "student"):
        assert {"accuracy", "f1", "parameters", "megabytes", "flops", "latency_ms"} <= report[side].keys()
        latency = report[side]["latency_ms"]
        assert {"p50", "p95", "n", "batch", "device", "dtype", "threads"} == latency.keys() and latency["n"] >= 30
    assert report["notes"] == [] and report["train"].keys() == {"seconds", "images_per_second", "epochs", "best_epoch"}
    assert report["targets"]["cache"] == "miss" and report["targets"]["seconds"] > 0
    assert report["data"]["test"] == 12 and report["config"]["lambda"] == 0.9


def test_the_student_learned_the_colours(finished):
    run, _ = finished
    assert run.report()["teacher"]["accuracy"] == 1.0
    assert run.report()["student"]["accuracy"] > 0.6  # chance is a third


def test_the_events_tell_the_whole_story_in_order(finished):
    run, done = finished
    names = [e["event"] for e in run.events() if e["event"] not in ("step", "progress", "eval", "queued")]
    assert names == [
        "created",
        "started",
        "plan",
        "data",
        "models",
        "teacher",
        "targets",
        "target_check",
        "training",
        "exported",
        "arm",
        "result",
        "done",
    ]
    assert len([e for e in run.events() if e["event"] == "eval"]) == 6
    steps = [e for e in run.events() if e["event"] == "step"]
    assert steps[-1]["step"] == 72 and all(e["total"] > 0 and e["images_per_second"] > 0 for e in steps)
    assert run.last("models")["healed"]
    assert "epoch 6:" in done.stderr and "agrees with the teacher" in done.stderr and "Traceback" not in done.stderr


def test_the_exported_student_scores_what_was_reported_where_kd_cannot_be_imported(finished):
    from kd.data.splits import load_splits

    run, _ = finished
    splits = load_splits(run.config())
    rows = [(row["image"]["path"], splits.classes[row["label"]]) for row in splits.test]
    done = subprocess.run(
        [sys.executable, "-c", REPRINT, str(run.path / "student")],
        input=json.dumps(rows), capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(run.report()["student"]["accuracy"], abs=1e-5), (
        done.stderr
    )
    assert {file.name for file in (run.path / "student").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_tensorboard_has_a_log_of_it(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0].path / "logs" / "distilled-0"))
    events.Reload()
    assert {"train/loss", "eval/accuracy", "eval/agreement"} <= set(events.Tags()["scalars"])


def test_compare_shows_both_on_good_pictures_and_names_the_bad_one(finished, colours, tmp_path, capsys):
    run, _ = finished
    (tmp_path / "notes.jpg").write_text("hello")
    good = colours / "red brick" / "000.png"
    pictures = [str(good), str(tmp_path / "notes.jpg")]
    assert main.main(["compare", run.id[:15], *pictures, "--runs-dir", str(run.path.parent), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["pictures"]
    assert first["teacher"][0]["label"] == "red brick" and len(first["student"]) == 3
    assert sum(row["confidence"] for row in first["teacher"]) == pytest.approx(1, abs=1e-3)
    assert "is not a picture" in second["error"]
    assert found["speedup"] > 0 and found["size_ratio"] > 0 and found["note"] is None
    assert all(found[side]["latency_ms"]["n"] >= 30 for side in ("teacher", "student"))
    bad = [str(tmp_path / name) for name in ("notes.jpg", "gone.png")]
    assert main.main(["compare", "last", *bad, "--runs-dir", str(run.path.parent)]) == 1
    said = capsys.readouterr().err
    assert "gone.png: there is no such file" in said and "Traceback" not in said


def test_what_is_slower_or_larger_is_called_that():
    assert [speed_words(ratio) for ratio in (2, 1.01, 0.5)] == ["2 times faster", "as fast", "2 times slower"]
    assert [size_words(ratio) for ratio in (3.8, 1.0, 0.25)] == ["3.8 times smaller", "as large", "4 times larger"]
    assert size_words(0.0) == "2e+02 times larger"  # rounded away


def test_runs_lists_it_and_resume_and_stop_say_it_is_done(finished):
    run, _ = finished
    folder = run.path.parent
    row = next(r for r in json.loads(kd("runs", "--runs-dir", folder, "--json").stdout) if r["run"] == run.id)
    assert row["status"] == "done" and "% test" in row["accuracy"]
    for command, words in (("resume", "nothing to resume"), ("stop", "it is done")):
        done = kd(command, run.id, "--runs-dir", folder)
        assert done.returncode == 1 and words in done.stderr
    assert "There is no run 'nope'" in kd("watch", "nope", "--runs-dir", folder).stderr


def test_the_next_run_finds_the_targets(finished, small):
    run, _ = finished
    again = create_run(settings(small, crop_area=0.9, epochs=1, seed=5, temperature=2), run.path.parent, "t")
    execute(again)
    assert again.report()["targets"]["cache"] == "hit"
    assert again.last("targets")["cache"] == "hit"


def test_one_seed_gives_one_curve_and_online_is_cached_until_it_sees_new_crops(small, tmp_path, monkeypatch):
    curves, shown, show = [], [], ViewBatches.show
    monkeypatch.setattr(ViewBatches, "show", lambda self, view, *rest: (shown.append(view), show(self, view, *rest))[1])
    for targets, views in (("cached", [0, 1, 0]), ("cached", [0, 1, 0]), ("online", [0, 1, 2])):
        run = create_run(settings(small, targets=targets, epochs=3, views=2), tmp_path, "t")
        execute(run)
        assert shown[-3:] == views
        curves.append([(e["accuracy"], e["loss"]) for e in run.events() if e["event"] == "eval"])
    assert curves[0] == curves[1]
    assert curves[2][0] == pytest.approx(curves[0][0], rel=1e-3)  # the teacher's batches are others


# --- Runs without labels, or without a teacher


def test_without_labels_the_student_learns_the_teacher_s_classes_from_it_alone(small, colours, tmp_path, capsys):
    heap = tmp_path / "heap"
    heap.mkdir()
    for nth, file in enumerate(sorted(colours.rglob("*.png"))[::3]):
        shutil.copy(file, heap / f"{nth:03}.png")
    run = create_run(settings(small, dataset=str(heap), epochs=1), tmp_path / "runs", "t")
    execute(run)
    report, events = run.report(), run.events()
    assert report["data"]["labels"] == "teacher" and report["data"]["classes"] == toys.CLASSES
    assert report["config"]["lambda"] == 1 and "Lambda is 1, not 0.5" in run.last("data")["warnings"][0]
    assert report["student"]["accuracy"] == report["agreement"] and "accuracy" not in report["teacher"]
    assert "accuracy" not in run.last("teacher")
    step = next(e for e in events if e["event"] == "step")
    assert step["total"] == step["soft"]
    screen = Screen(run)
    for event in events:
        screen.show(event)
    said = capsys.readouterr().err
    assert "epoch 1: agrees with the teacher on" in said and "on validation" not in said
    shown = result_table(report, report["agreement"])
    assert "accuracy" not in shown and "who is right is not known" in shown
    assert runs._row(run)["accuracy"].endswith("test, agreement") and runs._row(run)["lambda"] == 1
    assert "Accuracy" not in result(report) and "how often either is right" in result(report)
    drawn = figures.training_figures(events)["accuracy"]
    assert drawn.layout.title.text.startswith("Agreement") and [t.name for t in drawn.data if t.visible] == [
        "agreement"
    ]
    apart = render_analysis(load_analysis(run), run)
    assert list(figures.analysis_figures(load_analysis(run))) == ["confusion_student"]
    assert "who is right is not known" in apart and "Only the teacher is right" not in apart
    with pytest.raises(UserError, match="no labels, so nothing can be learned from them without the teacher"):
        execute(create_run(settings(small, dataset=str(heap), baseline="yes"), tmp_path / "runs", "t"))


QUICK = {"epochs": 1, "views": 1, "precision": "fp32", "learning_rate": 0.01}


@pytest.fixture(scope="module")
def made(colours, tmp_path_factory) -> Run:
    """A run that has made a teacher of a base with other classes."""
    folder = tmp_path_factory.mktemp("made")
    toys.tiny_resnet(["a", "b", "c", "d"]).save_pretrained(folder / "base")
    toys.processor().save_pretrained(folder / "base")
    run = create_run(
        DistillConfig.finetune(str(folder / "base"), dataset=str(colours), mixup=0.2, **QUICK), folder, "t"
    )
    execute(run)
    return run


def test_a_teacher_is_made_from_the_labels_alone(made, colours, capsys, monkeypatch):
    report, events = made.report(), made.events()
    assert report["teacher"] is None and report["agreement"] is None and report["verdict"] is None
    assert report["data"]["classes"] == toys.CLASSES and not made.last("targets") and not made.last("teacher")
    assert not (made.path / "analysis.json").exists()
    screen = Screen(made)
    for event in events:
        screen.show(event)
    assert "labels alone -> base" in (said := capsys.readouterr().err) and "teacher" not in said
    table = result_table(report, None)
    assert "model" in table and "teacher" not in table and "The student is" not in table
    assert f"--teacher run:{made.id} --dataset {colours}" in runs.distil_from(made)
    assert "labels alone" in result(report) and "labels alone" in figures.name_of(made)
    shown = [
        trace.name for figure in figures.training_figures(events).values() for trace in figure.data if trace.visible
    ]
    assert shown == ["hard", "student"]
    with pytest.raises(UserError, match="it has no teacher to be compared with"):
        compare(made, [])
    monkeypatch.setenv("KD_RUNS_DIR", str(made.path.parent))
    assert analysis({"run": made.id}) == {"html": "", "figures": {}} and choices(None) == []
    assert "from the labels alone" in row(made) and "Compare" not in row(made)
    assert result_of(made)["teacher"] is None


def test_what_a_run_has_made_teaches_the_classes_that_it_is_said_to_know(made, colours):
    asked = DistillConfig(
        teacher=f"run:{made.id}", label_map="green leaf=", dataset=str(colours), student=str(made.path.parent / "base"),
        baseline="yes", targets="online", mixup=0.2, **QUICK,
    )  # fmt: skip
    run = create_run(resolve(asked, made.path.parent, None), made.path.parent, "t")
    with pytest.raises(UserError, match="cannot teach: it has no finished student"):
        resolve(DistillConfig(teacher=f"run:{run.id}"), made.path.parent, None)
    assert run.config().teacher == str(made.path / "student") and short_name(run.config().teacher) == f"run:{made.id}"
    with pytest.raises(UserError, match=f"Run {run.id} learns from run {made.id}"):
        delete_run(made)
    execute(run)
    report = run.report()
    assert "does not know 1 of 3 classes (green leaf: label map). Their 32 of 96" in run.last("models")["warnings"][0]
    assert "On the 8 of 12 test pictures whose classes the teacher knows" in report["notes"][0]
    assert report["verdict"]["pictures"] == 8 and "over all 12 the difference is" in report["verdict"]["sentence"]
    with np.load(run.path / "arms" / "distilled-0" / "test.npz") as kept:
        rows, ours = kept["labels"] != 1, kept["logits"].argmax(-1)
    with np.load(made.path / "arms" / "distilled-0" / "test.npz") as kept:
        theirs = kept["logits"][:, [0, 2]].argmax(-1) * 2
    assert report["agreement"] == pytest.approx((ours == theirs)[rows].mean(), abs=1e-5)
    found = compare(run, [colours / "green leaf" / "000.png"])
    assert "does not know green leaf" in found["note"] and found["pictures"][0]["teacher"][-1]["confidence"] == 0


def test_a_teacher_that_has_seen_the_test_pictures_of_another_cut_is_told(made, colours):
    def warnings(**changes) -> str:
        asked = DistillConfig(
            teacher=f"run:{made.id}",
            dataset=str(colours),
            student="resnet_8",
            image_size=32,
            **QUICK,
            **changes,
        )
        run = create_run(resolve(asked, made.path.parent, None), made.path.parent, "t")
        job = start_job(run)
        splits = load_job_splits(job)
        return " ".join(plan_warnings(job.config, splits, load_job_teacher(job.config, splits)))

    assert "cut in another way" not in warnings()
    assert "cut in another way" in warnings(validation_fraction=0.3)
    assert f"is the student of run {made.id}, from the same dataset cut in another way" in warnings(split_seed=1)


# --- Runs that do not end well


def until(run: Run, name: str, seconds: float = 120, **fields) -> None:
    """Wait until the last event of this name has these fields."""
    end = time.monotonic() + seconds
    while not (event := run.last(name)) or not fields.items() <= event.items():
        assert time.monotonic() < end, f"no {name}: {(run.path / 'stderr.txt').read_text()}"
        time.sleep(0.02)


def test_a_killed_run_has_died_and_resumes_to_the_same_end(small, tmp_path):
    config = settings(small, student="mobilenet_v2_0.35", epochs=3)  # its dropout draws random numbers, which go on too
    unbroken = create_run(config, tmp_path, local_owner(tmp_path))
    execute(unbroken)
    run = create_run(config, tmp_path, local_owner(tmp_path))
    process = start_run(run)
    until(run, "eval", epoch=2)  # the first epoch's checkpoint is whole by then
    os.kill(process.pid, signal.SIGSTOP)
    run.ask_to_stop()  # it is killed before it can obey: whoever resumes has thought better of it
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if run.last("done"):
        pytest.fail("the run was faster than the signal")
    assert run.status() == "died"
    done = kd("resume", run.id, "--runs-dir", tmp_path)
    assert done.returncode == 0, done.stderr + (run.path / "stderr.txt").read_text()
    assert run.status() == "done" and run.last("training")["step"] > 0
    evals = {e["epoch"]: e["accuracy"] for e in run.events() if e["event"] == "eval"}
    expected = {e["epoch"]: e["accuracy"] for e in unbroken.events() if e["event"] == "eval"}
    assert evals.keys() == expected.keys() == {1, 2, 3}
    assert evals[3] == pytest.approx(expected[3], abs=0.1)
    assert run.report()["train"]["epochs"] == 3


def test_a_stopped_run_keeps_its_student_and_can_be_resumed(small, tmp_path, monkeypatch):
    run = create_run(settings(small, epochs=200), tmp_path, local_owner(tmp_path))
    process = start_run(run)
    until(run, "eval")
    assert kd("stop", run.id, "--runs-dir", tmp_path).returncode == 0
    assert process.wait(60) == 1 and run.status() == "stopped"
    assert (run.path / "student" / "model.safetensors").exists() and run.report() is None
    step = run.last("eval")["step"]

    def stop_again(self, args, state, control, **kwargs):
        run.ask_to_stop()

    monkeypatch.setattr(RunCallback, "on_step_begin", stop_again)
    execute(run, resume=True)
    assert run.last("training")["step"] == step < run.last("step")["step"] and run.status() == "stopped"


def test_a_run_that_fails_after_its_last_epoch_resumes_without_training_again(small, tmp_path, monkeypatch):
    run = create_run(settings(small), tmp_path, "t")
    with monkeypatch.context() as patched:
        patched.setattr("kd.training.report.measure_models", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(run)
    evals = len([e for e in run.events() if e["event"] == "eval"])
    execute(run, resume=True)
    assert run.status() == "done" and run.report()["train"]["images_per_second"] > 0
    assert len([e for e in run.events() if e["event"] == "eval"]) == evals == 2


def test_a_run_that_diverges_says_so_and_keeps_the_best(small, tmp_path, monkeypatch):
    from kd.training.trainer import ImageDistilTrainer

    ours = ImageDistilTrainer.compute_loss

    def explode_in_the_second_epoch(self, model, inputs, **options):
        if model.training and self.state.epoch >= 1:
            inputs = {**inputs, "pixel_values": inputs["pixel_values"] * float("inf")}
        return ours(self, model, inputs, **options)

    monkeypatch.setattr(ImageDistilTrainer, "compute_loss", explode_in_the_second_epoch)
    run = create_run(settings(small), tmp_path, "t")
    with pytest.raises(UserError, match="diverged"):
        execute(run)
    assert run.status() == "failed"
    message = run.last("failed")["message"]
    assert "the loss became nan in epoch 2" in message and "learning rate ten times lower" in message
    assert (run.path / "student" / "model.safetensors").exists()


def test_a_student_that_answers_with_no_numbers_has_diverged(small, tmp_path, monkeypatch):
    def spoil_the_weights(self, args, state, control, model, **kwargs):  # after the epoch's last look at the loss
        if state.epoch > 1.5:
            next(model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(RunCallback, "on_epoch_end", spoil_the_weights)
    run = create_run(settings(small), tmp_path, "t")
    with pytest.raises(UserError, match="answers are not finite numbers"):
        execute(run)
    assert (run.path / "student" / "model.safetensors").exists()


def test_a_picture_of_the_test_split_that_cannot_be_read_is_named_in_the_report(small, teacher, tmp_path):
    for split, each in (("train", 8), ("validation", 4), ("test", 4)):
        toys.class_folders(tmp_path / "data" / split, each)
    spoiled = tmp_path / "data" / "test" / "red brick" / "001.png"
    spoiled.write_bytes(spoiled.read_bytes()[:200])
    run = create_run(settings(small, dataset=str(tmp_path / "data"), epochs=1), tmp_path / "runs", "t")
    execute(run)
    assert "001.png is damaged or cut short" in run.report()["notes"][0]
    assert (run.report()["teacher"]["accuracy"] * 11) == pytest.approx(
        round(run.report()["teacher"]["accuracy"] * 11), abs=1e-3
    )


def test_a_run_is_begun_once_and_a_done_one_is_not_trained_again(finished):
    run, _ = finished
    before = run.events()
    for resume in (False, True):
        with pytest.raises(UserError, match="is done"):
            execute(run, resume)
    assert run.events() == before


def test_compare_takes_pictures_from_memory_as_it_takes_files(finished, tmp_path):
    from PIL import Image

    from kd.evaluation.compare import compare

    image = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    found = compare(finished[0], [image, tmp_path / "clear.png"])["pictures"]
    assert found[0]["student"] == found[1]["student"]


def test_what_was_compared_stays_in_memory_until_its_files_change(finished):
    from kd.evaluation.compare import cached_student, cached_teacher

    run, weights = finished[0], finished[0].path / "student" / "model.safetensors"
    student = cached_student(run)
    teacher = cached_teacher(run.config().teacher, ["blue sky", "green leaf", "red brick"])
    assert cached_student(run) is student and student.megabytes() > 1 > teacher.megabytes() > 0
    os.utime(weights, (1, 1))
    assert cached_student(run) is not student


def test_more_steps_than_the_limit_are_refused_before_a_picture_is_decoded(small, tmp_path, monkeypatch):
    monkeypatch.setenv("KD_STEPS", "3")
    run = create_run(settings(small), tmp_path, "t")
    with pytest.raises(ValueError, match="training steps"):
        execute(run)
    assert "at most" in run.last("failed")["message"] and not run.last("data")


def test_a_learning_rate_of_a_million_ends_in_words(small, tmp_path):
    run = create_run(settings(small, learning_rate=1e30, epochs=3, temperature=1), tmp_path, "t")
    with pytest.raises(UserError, match="diverged"):
        execute(run)
    assert run.status() == "failed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the writer of TensorBoard's log
def test_a_deleted_folder_ends_the_run_and_is_not_made_again(small, tmp_path, monkeypatch):
    run = create_run(settings(small, epochs=200), tmp_path, "t")

    def delete(self, args, state, control, **kwargs):
        shutil.rmtree(run.path, ignore_errors=True)

    monkeypatch.setattr(RunCallback, "on_evaluate", delete)
    with pytest.raises(RunDeleted):
        execute(run)
    assert not (run.path / "config.json").exists() and not (run.path / "events.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": "nobody/nothing"}, "The teacher 'nobody/nothing'"),
        ({"dataset": "nobody/nothing"}, "The dataset 'nobody/nothing'"),
        ({"student": "nothing"}, "There is no student 'nothing'"),
        ({"teacher": "sample"}, "The teacher predicts 10 classes"),
        ({"device": "cuda:63"}, "cannot be used; this machine has"),
    ],
)
def test_a_run_that_cannot_work_fails_before_training_in_words(small, tmp_path, changes, words):
    run = create_run(settings(small, **changes), tmp_path, "t")
    with pytest.raises(UserError):
        execute(run)
    assert words in run.last("failed")["message"] and not run.last("training")


def test_our_own_mistakes_are_called_that_and_keep_their_traceback(small, tmp_path, monkeypatch):
    monkeypatch.setattr("kd.data.splits.load_splits", lambda config: 1 / 0)
    run = create_run(settings(small), tmp_path, "t")
    with pytest.raises(ZeroDivisionError):
        execute(run)
    assert "our mistake, not yours" in run.last("failed")["message"]


def test_a_teacher_near_chance_is_warned_of(small, tmp_path):
    toys.teacher_folder(tmp_path / "untrained", steps=0)
    run = create_run(settings(small, teacher=str(tmp_path / "untrained"), epochs=1), tmp_path / "runs", "t")
    execute(run)
    assert "no better than always saying the commonest class" in run.last("teacher")["warnings"][0]


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root")
@pytest.mark.parametrize("megabytes", [1, 6])
def test_a_full_disk_is_called_that_and_the_run_says_so(small, tmp_path, megabytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("no right to mount")
    try:
        run = create_run(settings(small, student="mobilenet_v2_0.35", epochs=3), disk, "t")
        with pytest.raises(Exception, match=r"(?i)space|PytorchStreamWriter|file"):
            execute(run)
        assert run.status() == "failed"
        assert "The disk is full" in run.last("failed")["message"]
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the cache is still mapped into this process


def test_a_second_process_is_refused(small, tmp_path):
    run = create_run(settings(small), tmp_path, "t")
    with run.work():
        done = kd("run", run.path)
    assert done.returncode == 1 and "being worked on by another process" in done.stderr


def test_a_run_without_a_folder_is_refused(tmp_path):
    with pytest.raises(RunDeleted):
        execute(Run(tmp_path / "nope"))
    assert "is gone" in kd("run", tmp_path / "nope").stderr


def test_the_children_find_kd_from_any_folder(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = create_run(settings(small), tmp_path, "t")
    run.append("started", pid=0)
    assert start_run(run).wait(60) == 1  # it has kd, and looks at the run, before it has torch
    assert "was begun already" in (run.path / "stderr.txt").read_text()


def test_a_dataset_without_room_on_the_disk_is_trained_on_all_the_same(tmp_path, small, monkeypatch):
    kept = create_run(settings(small, epochs=1), tmp_path / "kept", "t")
    execute(kept)
    monkeypatch.setenv("KD_PIXELS_GB", "0.0001")
    lazy = create_run(settings(small, epochs=1), tmp_path / "lazy", "t")
    execute(lazy)
    assert "decoded anew in each epoch" in " ".join(lazy.last("data")["warnings"])
    one, other = (run.last("eval") for run in (kept, lazy))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-3) and one["accuracy"] == other["accuracy"]
