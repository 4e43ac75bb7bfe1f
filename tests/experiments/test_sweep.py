"""Sweeps by hand, and one real sweep that is killed on its way and goes on to its verdict."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd.cli import main
from kd.config import DistillConfig
from kd.data.library.store import datasets_folder
from kd.distill import execute
from kd.errors import UserError
from kd.experiments.grid import Grid, Point
from kd.experiments.halving import cost_of_run
from kd.experiments.sweep import (
    affordable,
    conclusion,
    create_sweep,
    find_sweep,
    list_sweeps,
    plan,
    settings_of,
    work_on_sweep,
)
from kd.experiments.table import legend
from kd.runs.store import delete_run, find_run, list_runs
from kd.system.files import SWEEPS, write_whole
from kd.system.ids import new_id
from kd.ui import sweep
from tests.support.command import flags, kd
from tests.support.paths import ROOT
from tests.support.sweeps import DIST, KD, make_sweep, tell_point


def until(found, seconds: float = 60):
    """Wait for what ``found`` returns to be true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")


# --- By hand


def test_settings_that_cannot_be_swept_are_refused_before_anything_is_made(tmp_path):
    for settings, words in (({"minutes": 5}, "budget-minutes"), ({"seed": 2**32 - 1}, "Take a smaller one")):
        with pytest.raises(ValueError, match=words):
            make_sweep(tmp_path, **settings)
    assert not list_sweeps(tmp_path)


def test_without_labels_every_lambda_but_1_is_refused_before_anything_is_made(small, tmp_path, capsys, monkeypatch):
    heap = tmp_path / "heap"
    heap.mkdir()
    for nth, path in enumerate(sorted(Path(small["dataset"]).rglob("*.png"))[::10]):
        shutil.copy(path, heap / f"{nth}.png")
    asked = ["sweep", "--preset", "custom", *flags({**small, "dataset": heap}), "--runs-dir", str(tmp_path / "runs")]
    assert main.main([*asked, "--lambdas", "0,0.5"]) == 2
    assert "have no labels" in (said := capsys.readouterr().err) and "lambdas is 0,0.5" in said
    # an imported one is known by its description, without a look at its pictures
    monkeypatch.setattr("kd.data.splits.load_splits", lambda config: pytest.fail("the pictures were loaded"))
    upload = datasets_folder(tmp_path / "runs") / new_id(1.0)
    upload.mkdir(parents=True)
    (upload / "dataset.json").write_text('{"name": "heap", "classes": []}')
    with pytest.raises(ValueError, match="Give 1 alone"):
        make_sweep(tmp_path / "runs", dataset=str(upload))
    assert not list_sweeps(tmp_path / "runs")
    one = make_sweep(tmp_path / "runs", Grid("1,2", "1"), dataset=str(upload))
    assert plan(one, 2, lambda text: None) and one.labels() == "teacher"


def test_two_classes_that_a_method_cannot_tell_are_refused_before_half_of_the_grid_is_trained(small, tmp_path, capsys):
    two = tmp_path / "two"
    for folder in sorted(Path(small["dataset"]).iterdir())[:2]:
        shutil.copytree(folder, two / folder.name)
    asked = ["sweep", "--preset", "custom", *flags({**small, "dataset": two}), "--runs-dir", str(tmp_path / "runs")]
    assert main.main([*asked, "--methods", "kd,kd+std", "--lambdas", "0.5"]) == 2
    assert "methods has kd+std, and the pictures have two classes" in capsys.readouterr().err
    assert not list_sweeps(tmp_path / "runs")


def test_where_labels_alone_win_their_student_is_the_one_that_is_handed_out(tmp_path):
    one = make_sweep(tmp_path, Grid("1", "0,0.5"))
    one.append("plan", epochs=1, rungs=[(2, 1)], labels="dataset")
    labels, taught = one.grid().points()
    tell_point(one, labels, 1, 0.9)
    tell_point(one, taught, 1, 0.8)
    run = one.make_run({"seed": 7})
    write_whole(run.path / "report.json", json.dumps({"verdict": None, "student": {"seed": 8}}))
    rows = one.points()
    assert conclusion(one, rows[1], rows[1], run)["student"] == f"{run.id}/student"
    assert conclusion(one, rows[0], rows[1], run)["student"] == f"{run.id}/arms/baseline-8/student"


def test_without_labels_a_map_is_of_agreement_and_there_is_no_pair_to_train(tmp_path):
    one = make_sweep(tmp_path, Grid("1,2", "1"))
    one.append("plan", epochs=1, rungs=[(2, 1)], labels="teacher")
    tell_point(one, Point(1.0, 1.0, "kd"), 1, 0.75, 0.75)
    assert legend(one).startswith("Agreement with the teacher on validation")
    run = one.make_run({})
    write_whole(
        run.path / "report.json", json.dumps({"verdict": None, "trials": [{"agreement": 0.8}, {"agreement": 0.7}]})
    )
    row = one.points()[0]
    assert conclusion(one, row, row, run)["sentence"] == (
        "Winner: kd, T 1, lambda 1 (75.0% agreement with the teacher on validation after 1 epoch). With fresh seeds it "
        "agrees with the teacher on 80.0%, 70.0% of the test pictures."
    )
    assert sweep.legend(one, one.points()).startswith("Agreement with the teacher on validation")
    assert "without" not in sweep.plan_words(2, one.plan(), 3, None, one.labels())
    assert sweep.total_epochs(one, one.plan()) == 2 + one.config().trials


def test_a_run_of_a_sweep_is_of_its_owner_and_is_found_by_what_it_was_made_for(tmp_path):
    one = make_sweep(tmp_path)
    changes = settings_of(one.config(), KD, 3)
    run = one.make_run(changes)
    run.check_owner("t")
    assert run.settings()["sweep"] == one.id and (run.config().temperature, run.config().epochs) == (2.0, 3)
    assert one.run_of(changes) == run and one.run_of({**changes, "epochs": 4}) is None
    delete_run(run)
    assert one.run_of(changes) is None


def test_a_method_has_its_papers_weight_unless_another_was_asked_for():
    assert settings_of(DistillConfig(), DIST, 1)["weight"] == 2
    assert settings_of(DistillConfig(weight=3), DIST, 1)["weight"] == 3


def test_a_sweep_for_which_the_disk_has_no_room_leaves_nothing(tmp_path, monkeypatch):
    def write(path, text, whole=write_whole):
        if path.name == "sweep.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, text)

    monkeypatch.setattr("kd.experiments.sweep.write_whole", write)
    with pytest.raises(UserError, match="No space left"):
        make_sweep(tmp_path)
    assert not list_runs(tmp_path / SWEEPS)


def test_a_sweep_is_found_by_the_start_of_its_id(tmp_path):
    with pytest.raises(UserError, match="There is no sweep 'last'"):
        find_sweep(tmp_path, "last")
    first, second = make_sweep(tmp_path), make_sweep(tmp_path)
    assert find_sweep(tmp_path, "last") == second and find_sweep(tmp_path, first.id[:24]) == first
    assert list_sweeps(tmp_path) == [second, first] and not list_runs(tmp_path)
    with pytest.raises(UserError, match="2 sweeps start with '2'"):
        find_sweep(tmp_path, "2")


def test_to_stop_a_sweep_is_to_stop_its_run_too(tmp_path):
    one = make_sweep(tmp_path)
    run = one.make_run(settings_of(one.config(), KD, 1))
    one.ask_to_stop()
    asked = (run.path / "STOP").stat().st_mtime_ns
    work_on_sweep(one)
    assert (run.path / "STOP").stat().st_mtime_ns == asked  # later it would be a wish of its own, and end a resumed run
    assert one.status() == "stopped" and "--resume" in one.last("stopped")["message"]


# --- For real


def test_where_every_point_diverges_the_sweep_says_so(small, tmp_path):
    settings = {**small, "learning_rate": 1e30, "epochs": 1}
    one = create_sweep(DistillConfig.from_dict(settings), Grid("1", "0.5"), tmp_path, "t")
    run = one.make_run(settings_of(one.config(), one.grid().points()[0], 1))
    with pytest.raises(UserError, match="diverged"):
        execute(run)
    said = []
    with pytest.raises(UserError, match="Every point diverged"):
        work_on_sweep(one, said.append)
    assert one.status() == "failed" and "diverged, counts as the worst" in said[-1]
    assert len(list_runs(tmp_path)) == 1


def test_one_epoch_shows_what_a_budget_buys_and_one_that_is_too_small_is_refused(small, tmp_path):
    one = create_sweep(DistillConfig.from_dict(small), Grid("1", "0.5", budget_minutes=0.01), tmp_path, "t")
    point = one.grid().points()[0]
    run = one.make_run(settings_of(one.config(), point, 1))
    execute(run)
    pace = cost_of_run(run)
    assert pace.run > 0 and pace.view > 0 and pace.epoch == run.report()["train"]["seconds"]
    with pytest.raises(UserError, match=r"0.01 minutes are too few for 1 point: .* takes about 1 here"):
        work_on_sweep(one)
    assert one.status() == "failed" and one.plan() is None
    plenty = affordable(one, 3600, 1, 2, lambda text: None)
    assert plenty > 10 and list_runs(tmp_path) == [run]
    # it was stopped at once, and gone on with a day later
    created, *events = run.events()
    lines = [{**created, "time": created["time"] - 86400}, *events]
    (run.path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))
    assert affordable(one, 3600, 1, 2, lambda text: None) == plenty


@pytest.mark.slow
def test_a_sweep_is_killed_and_goes_on_to_a_verdict_on_fresh_seeds(small, tmp_path):
    asked = ["sweep", "--preset", "custom", "--temperatures", "2", "--lambdas", "0,0.5", "--trials", "1"]
    options = [*asked, *flags(small), "--runs-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "kd", *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    run = until(lambda: next((run for run in list_runs(tmp_path) if run.last("started")), None))
    os.kill(process.pid, signal.SIGKILL)  # the sweep, and the run in progress: nobody can tidy up
    os.kill(run.last("started")["pid"], signal.SIGKILL)
    process.wait()
    one = find_sweep(tmp_path, "last")
    assert until(lambda: (one.status(), run.status()) == ("died", "died"))
    other = one.make_run(settings_of(one.config(), one.grid().points()[1], 1))
    execute(other)  # a run that was done when the sweep died need not be trained again

    done = kd("sweep", "--resume", one.id, "--runs-dir", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    made = list_runs(tmp_path)
    assert len(made) == 4 and made[2:] == [other, run] and all(run.status() == "done" for run in made)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == one.report() and one.status() == "done"
    # two short trainings, one of them for longer: the better one by validation, never by test
    assert sorted(row["epochs"] for row in found["points"]) == [1, 2]
    short = {
        event["run"]: event["accuracy"] for event in one.events() if event["event"] == "point" and event["epochs"] == 1
    }
    assert found["winner"] == max(found["points"], key=lambda row: row["epochs"])
    for run, accuracy in zip(reversed(made), short.values(), strict=False):
        assert run.report()["trials"][0]["validation"] == accuracy
    # what is claimed is of a run with another seed, the teacher's effect apart
    final = find_run(tmp_path, found["final"])
    assert final.config().seed == small.get("seed", 0) + 1 and final.config().lambda_ == 0.5
    assert found["verdict"] == final.report()["verdict"] and found["verdict"]["sentence"] in done.stdout
    assert "plan: 2 points; trainings: 2 of 1 epoch, then 1 of 2 epochs" in done.stderr and "lambda 0.5" in done.stdout
    again = kd("sweep", "--resume", "last", "--runs-dir", tmp_path, "--json")
    assert again.stdout == done.stdout and len(list_runs(tmp_path)) == 4
