"""How long a run will take, before it is begun."""

import json
import time
from functools import partial
from types import SimpleNamespace

import pytest

from kd.cli import main
from kd.config import DistillConfig
from kd.data.splits import load_splits
from kd.distill import execute
from kd.errors import UserError
from kd.runs.store import create_run
from kd.system.files import cache_folder
from kd.training.estimate import at_once, estimate, steady
from kd.training.setup import online_seconds
from kd.training.throughput import Clock, measure_throughput
from tests.support.command import flags, kd


@pytest.fixture
def guess(small, tmp_path, monkeypatch):
    """An estimate of a small run. It measures for a moment only."""
    monkeypatch.setattr("kd.training.estimate.SECONDS", 0.05)
    quick = partial(measure_throughput, clock=Clock(0.1))
    monkeypatch.setattr("kd.training.estimate.measure_throughput", quick)
    return lambda **changes: estimate(DistillConfig.from_dict({**small, **changes}), cache_folder(tmp_path, "sample"))


def test_an_estimate_is_the_sum_of_its_stages(guess):
    found = guess()
    assert list(found["stages"]) == ["start", "pictures", "teacher", "targets", "training", "test"]
    assert all(seconds >= 0 for seconds in found["stages"].values())
    assert found["seconds"] == pytest.approx(sum(found["stages"].values()), abs=0.5)
    assert found["epochs"] == 2 and found["images_per_second"] > 0


def test_a_moment_in_which_another_had_the_core_does_not_stand_for_every_picture():
    naps = iter([0.0, 0.0, 0.3])
    assert steady(lambda: time.sleep(next(naps, 0.001))) < 0.02


def test_waiting_for_the_disk_is_no_part_of_the_start(guess, monkeypatch):
    load, slept = load_splits, []

    def slowly(config):
        slept.append(time.sleep(1.5))
        return load(config)

    monkeypatch.setattr("kd.training.estimate.load_splits", slowly)
    assert guess()["stages"]["start"] < 1.5 and slept


def test_minutes_are_filled_with_epochs(guess):
    found = guess(minutes=1)
    per_epoch = found["stages"]["training"] / found["epochs"]
    assert abs(found["stages"]["training"] - 60) < per_epoch


def test_what_an_earlier_run_has_left_costs_nothing(guess, small, tmp_path):
    run = create_run(DistillConfig.from_dict(small), tmp_path, "t")
    execute(run)
    stages = guess()["stages"]
    assert stages["pictures"] == stages["targets"] == stages["teacher"] == 0
    assert guess(views=2, crop_area=0.9)["stages"]["pictures"] == 0


def test_a_teacher_that_is_asked_in_every_step_is_counted(guess, monkeypatch):
    config, seconds = DistillConfig(targets="online"), []
    toy = SimpleNamespace(normalization=SimpleNamespace(size=(32, 32)))
    cpu = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    with monkeypatch.context() as patched:
        patched.setattr("kd.models.device.batch_seconds", lambda *arguments, **options: seconds.append(1) or 3.2)
        assert online_seconds(config, toy, cpu) == 0.1 and online_seconds(config, None, cpu) == 0
        assert online_seconds(DistillConfig(), toy, cpu) == 0 and seconds == [1]
    free = guess()["stages"]["training"]
    monkeypatch.setattr("kd.training.estimate.online_seconds", lambda *arguments: 1.0)
    assert guess(targets="online")["stages"]["training"] > free + 96  # seconds, in each of two epochs


def test_what_the_run_would_refuse_is_refused_now(guess):
    with pytest.raises(UserError, match="no teacher"):
        guess(teacher="./nowhere")


def test_the_command_line_says_it_in_a_line_and_in_json(small, tmp_path, capsys):
    asked = ["estimate", "--preset", "custom", *flags(small), "--runs-dir", str(tmp_path), "--json"]
    assert main.main(asked) == 0
    line, found = capsys.readouterr().out.splitlines()[-2:]
    assert line.startswith("about ") and "targets" in line and "(2 epochs at " in line
    assert json.loads(found)["epochs"] == 2
    assert kd("estimate", "--temperature", 0).returncode == 2
    assert not list(tmp_path.glob("2*"))  # no run was made


def test_small_pictures_are_measured_in_a_runs_own_batches_and_large_ones_a_few_at_a_time():
    assert [at_once((side, side)) for side in (28, 64, 112, 224, 512)] == [64, 64, 32, 8, 8]
