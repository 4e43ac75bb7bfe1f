"""The bench on toys: every kind of row works in its own process; the arithmetic from turns to ratios by hand."""

import json
import mmap
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from kd.config import DistillConfig
from kd.data.splits import load_splits
from kd.devtools import speed
from kd.devtools.timing import Cost, Enough, PeakMemory, Stages, Turns
from kd.devtools.workload import Plan, prepare
from kd.errors import UserError
from tests.support.command import kd
from tests.support.paths import ROOT

FEW = {"student": "mobilenet_v2_0.35", "image_size": 32, "batch_size": 8, "images": 32, "validation": 32, "epochs": 2,
       "rounds": 1}  # fmt: skip

SIDE_BY_SIDE = ("guide", "cached", "ceiling", "student only")


@pytest.fixture(scope="module")
def found(colours, teacher) -> dict:
    """What the bench finds on the colours."""
    plan = Plan(teacher=str(teacher), dataset=str(colours), device="cpu", turn_seconds=0.3, **FEW)
    return speed.bench(plan, SIDE_BY_SIDE)


# --- Side by side


@pytest.mark.slow
def test_each_row_has_its_figures(found):
    assert tuple(found["rows"]) == SIDE_BY_SIDE
    for name, row in found["rows"].items():
        assert row["images_per_second"] > 1, name
        assert row["peak_mb"] > 100, name
        assert sum(row["stages"].values()) == pytest.approx(1, abs=0.01), name
    assert json.loads(json.dumps(found)) == found


@pytest.mark.slow
def test_the_rows_that_work_as_others_do_have_their_figures_too(colours, teacher):
    plan = Plan(teacher=str(teacher), dataset=str(colours), device="cpu", turn_seconds=0.3, **FEW)
    rows = speed.bench(plan, ("loop", "online"))["rows"]
    assert list(rows) == ["loop", "online"]
    assert all(row["images_per_second"] > 1 and row["stages"]["targets"] > 0 for row in rows.values())


@pytest.mark.slow
def test_the_guide_asks_its_teacher_in_every_step_and_ours_does_not(found):
    guide, cached = found["rows"]["guide"], found["rows"]["cached"]
    assert guide["stages"]["targets"] > 0
    assert guide["precision"] == "fp32"
    assert [text for text in cached["arithmetic"] if text.startswith("targets: 32 x ")]
    assert "crop" in cached["stages"]
    assert "crop" not in guide["stages"]


@pytest.mark.slow
def test_without_a_teacher_no_second_goes_to_one(found):
    alone = found["rows"]["student only"]
    assert alone["shared_seconds"]["teacher"] == 0 < found["rows"]["cached"]["shared_seconds"]["teacher"]
    assert "targets" not in alone["stages"]


@pytest.mark.slow
def test_the_ratios_are_those_of_the_rows(found):
    rows, ratios = found["rows"], found["ratios"]
    speed = {name: row["images_per_second"] for name, row in rows.items()}
    assert ratios["cached_over_guide"] == pytest.approx(speed["cached"] / speed["guide"], abs=1e-3)
    assert ratios["cached_over_ceiling"] == pytest.approx(speed["cached"] / speed["ceiling"], abs=1e-3)
    assert ratios["recipe_guide_over_cached"] == pytest.approx(
        rows["guide"]["recipe_seconds"] / rows["cached"]["recipe_seconds"], abs=1e-3
    )
    assert "cached_over_online" not in ratios
    assert ratios["sweep_over_students"] > 0


@pytest.mark.slow
def test_the_table_has_a_line_a_row_and_its_notes_say_how_it_was_reckoned(found):
    head, *lines = speed.table(found)
    assert [line[0] for line in lines] == list(SIDE_BY_SIDE)
    assert all(len(line) == len(head) for line in lines)
    text = "\n".join(speed.notes(Plan(**FEW), found))
    assert "guide: train: 32 x 2 / " in text
    assert "a sweep of 12 points: " in text
    assert "cached over guide: " in text


def test_what_is_worked_on_has_the_datasets_classes_whatever_they_are_called(tmp_path):
    plan = Plan(teacher="sample", dataset="sample", **FEW)
    prepare(plan, tmp_path)
    ours, theirs = load_splits(plan.config(tmp_path)), load_splits(DistillConfig())
    assert ours.classes == theirs.classes and "T-shirt/top" in ours.classes
    assert len(ours.train) == 32 and set(ours.train["label"]) == set(range(10))


def test_a_teacher_that_is_not_there_is_an_error_in_words(colours):
    with pytest.raises(UserError, match="no teacher"):
        speed.bench(Plan(teacher="./nowhere", dataset=str(colours), **FEW))


@pytest.mark.slow
def test_a_bench_that_is_ended_leaves_no_folder_and_no_process(tmp_path):
    few = [text for name, value in FEW.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "kd", "bench", "--rows", "loop", *few]
    bench = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("kd-bench-*/teacher/model.safetensors")):
        assert time.monotonic() < end and bench.poll() is None
        time.sleep(0.1)
    children = psutil.Process(bench.pid).children(recursive=True)
    bench.terminate()
    assert bench.wait(120) == 143 and not list(tmp_path.glob("kd-bench-*"))
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_what_makes_no_sense_is_bad_usage():
    assert "rounds is '0'" in kd("bench", "--rounds", 0).stderr
    said = kd("bench", "--batch-size", 64, "--images", 32)
    assert said.returncode == 2
    assert "A batch of 64 is more than the 32 pictures" in said.stderr
    assert kd("bench", "--scale", "--sweep").returncode == 2


# --- By hand


def turns(speed: float, **stages: float) -> tuple[float, dict]:
    return speed, stages


def test_a_recipe_is_its_training_at_the_median_speed_and_its_other_costs():
    costs = [Cost("decode", "decode", 100, 0.1, "decode"), Cost("evaluation", "evaluate", 10, 2.0)]
    done = [turns(10, crop=1.0), turns(1000, crop=1.0), turns(20, crop=0.5, optimiser=1.5)]
    row = speed.finish(Plan(images=100, epochs=10), {"start": 5.0, "costs": costs}, done)
    assert row["images_per_second"] == 20
    assert row["recipe_seconds"] == 50 + 5 + 10 + 20
    assert row["stages"]["crop"] == pytest.approx(50 / 4 / 85, abs=1e-4)
    assert row["stages"]["evaluation"] == pytest.approx(20 / 85, abs=1e-4)
    assert row["shared_seconds"] == {"decode": 10.0, "teacher": 0}
    assert row["arithmetic"][0] == "train: 100 x 10 / 20.0 images/s = 50.0 s"
    assert "decode: 100 x 100.0 ms = 10.0 s" in row["arithmetic"]


def test_a_sweep_shares_what_its_first_run_leaves():
    row = {"recipe_seconds": 100.0, "shared_seconds": {"decode": 10.0, "teacher": 40.0}}
    alone = {"recipe_seconds": 60.0, "shared_seconds": {"decode": 10.0, "teacher": 0.0}}
    assert speed.sweep_seconds(row, 12) == {"decode": 10.0, "teacher": 40.0, "rest": 600.0}
    assert speed.sweep_ratio({"cached": row, "student only": alone}, 12) == round(650 / 610, 3)


def test_of_stages_inside_each_other_a_moment_counts_for_the_inner_one():
    stages = Stages()
    with stages.time("outer"):
        time.sleep(0.05)
        with stages.time("inner"):
            time.sleep(0.2)
    assert stages.seconds["inner"] >= 0.2
    assert 0.05 <= stages.seconds["outer"] < 0.2


def test_memory_counts_what_cannot_be_given_back_and_not_what_is_mapped(tmp_path):
    before = PeakMemory.now()
    held = mmap.mmap(-1, 100_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the allocator may have as much left over
    for start in range(0, len(held), 2**20):
        held[start : start + 2**20] = b"1" * len(held[start : start + 2**20])
    assert 95 < PeakMemory.now() - before < 110
    held.close()
    path = tmp_path / "pixels.npy"
    np.save(path, np.ones(100_000_000, np.uint8))
    before = PeakMemory.now()
    mapped = np.load(path, mmap_mode="r")
    assert mapped.sum() == 100_000_000
    assert PeakMemory.now() - before < 20


def test_a_turn_does_not_end_before_its_time_and_no_more_comes_after_the_last():
    sent, asked = [], ["go", "stages", "enough"]

    class Connection:
        send = staticmethod(sent.append)
        recv = staticmethod(lambda: asked.pop(0))

    taken = Turns(Connection, Stages(), lambda: None, turn_seconds=1.0)
    with pytest.raises(Enough):
        for _ in range(1000):
            time.sleep(0.05)
            taken.step(8)
    warm_up, first, last = sent
    assert warm_up[0] == 0
    for images, seconds, _ in (first, last):
        assert 1 <= seconds < 2
        assert images / 8 == pytest.approx(seconds / 0.05, rel=0.25)
