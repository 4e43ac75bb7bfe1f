"""The benchmark on many pictures: what it makes, what it counts, and in the slow tests a whole run."""

import os

import pytest

from kd.cli.measure import _scale_sizes
from kd.cli.options import BadUsage
from kd.config import DistillConfig
from kd.data.splits import load_splits
from kd.devtools import scale


def test_the_pictures_are_small_jpegs_of_every_class_and_the_same_each_time(tmp_path):
    for name in ("one", "other"):
        scale.write_pictures(tmp_path / name, 60, held_out=20)
    splits = load_splits(DistillConfig(dataset=str(tmp_path / "one")))
    assert splits.sizes() == {"train": 60, "validation": 20, "test": 20}
    assert splits.classes == scale.class_names() and min(splits.counts("train")) > 0
    assert splits.train[0]["image"]["bytes"][:2] == b"\xff\xd8"
    first, again = ((tmp_path / name / "train-00000.parquet").read_bytes() for name in ("one", "other"))
    assert first == again


def test_cpu_seconds_between_two_samples_are_read_off_them():
    samples = scale.Samples(times=[10.0, 20.0, 30.0], cpu=[1.0, 2.0, 8.0])
    assert samples.cpu_at([10, 15, 25]) == [1.0, 1.5, 5.0]
    samples = scale.Samples()
    samples.take(os.getpid())
    assert samples.peak > 10 and samples.with_workers >= samples.peak and samples.cpu[0] > 0
    samples.take(2**22 + 1)
    assert len(samples.times) == 1, "a process that is gone is not seen"


@pytest.mark.parametrize(
    "asked, sizes",
    [
        (None, []),
        ("yes", [10_000, 200_000]),
        ("full", [10_000, 200_000, 1_000_000]),
        ("50000", [50_000]),
    ],
)
def test_on_how_many_pictures_the_recipe_is_run(asked, sizes):
    assert _scale_sizes(asked) == sizes


def test_fewer_pictures_than_make_sense_are_refused():
    for asked in ("many", "10", "-5"):
        with pytest.raises(BadUsage, match="full, or a number of pictures"):
            _scale_sizes(asked)


@pytest.mark.slow
def test_the_whole_recipe_is_measured_by_stage():
    (found,) = scale.measure_scale([1000], lambda text: None)
    assert set(found["stages"]) == set(scale.STAGES) and found["peak_mb"] < 3000
    assert sum(found["stages"].values()) == pytest.approx(found["seconds"], abs=1)
    assert found["images_per_second"] > 0 and found["streamed_per_cpu_second"] > 0
    head, *lines = scale.rows([found])
    assert {len(line) for line in lines} == {len(head)} and len(lines) == 2
