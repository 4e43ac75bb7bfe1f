"""The embedded sample and its teacher."""

import gzip
import struct

import numpy as np
import pytest
import torch

from kd.config import DistillConfig
from kd.data.images import open_picture
from kd.data.splits import load_splits
from kd.devtools import sample
from kd.evaluation.scoring import quality, score
from kd.models.teacher import load_teacher
from kd.runs.run import Run
from kd.system.files import ASSETS


def test_the_teacher_is_as_good_as_its_readme_says():
    splits = load_splits(DistillConfig())
    teacher = load_teacher("sample", splits.classes)
    said = teacher.warnings
    scores = score(teacher, teacher.processor, splits.test, torch.device("cpu"))
    found = quality(scores.logits, np.asarray(splits.test["label"]))
    assert not said and found["accuracy"] >= 0.935
    assert f"**{found['accuracy']:.2%}**" in (ASSETS / "sample-teacher" / "README.md").read_text()


def test_the_teacher_fits_in_eight_megabytes():
    assert (ASSETS / "sample-teacher" / "model.safetensors").stat().st_size < 8e6


def test_there_are_a_dozen_examples_and_the_sample_s_licence():
    examples = sorted((ASSETS / "examples").glob("*.png"))
    assert len(examples) == 12 and all(open_picture(path).size == (28, 28) for path in examples)
    assert "MIT License" in (ASSETS / "sample" / "LICENSE").read_text()


def test_idx_files_are_read(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    raw = bytes([0, 0, 8, 3]) + struct.pack(">3i", 2, 3, 4) + values.tobytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(raw))
    np.testing.assert_array_equal(sample.read_idx(tmp_path / "a.gz"), values)


def test_a_stratified_pick_has_as_many_of_each_class():
    labels = np.repeat(np.arange(5), [50, 60, 70, 80, 90])
    picked = sample.stratified(labels, 40, np.random.default_rng(0))
    assert len(set(picked)) == 40 and (np.bincount(labels[picked]) == 8).all()
    with pytest.raises(ValueError, match="do not divide"):
        sample.stratified(labels, 41, np.random.default_rng(0))


def test_jitter_moves_mirrors_and_blanks_and_nothing_else():
    pixels = torch.zeros(200, 1, 28, 28)
    pixels[:, 0, 14, 8] = 1.0
    found = sample.jitter(pixels, torch.Generator().manual_seed(0))[:, 0]
    seen = found.sum((1, 2))
    assert set(seen.tolist()) == {0.0, 1.0} and 100 < seen.sum() < 200
    _, rows, columns = found.nonzero(as_tuple=True)
    assert set(rows.tolist()) <= set(range(12, 17))
    assert set(columns.tolist()) <= {*range(6, 11), *range(17, 22)}


def test_where_debian_s_package_is_missing_the_message_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        sample.split(tmp_path / "nowhere")


@pytest.mark.skipif(not sample.SOURCE.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_sample_is_remade_to_the_byte_and_the_teacher_never_saw_its_test_pictures(tmp_path):
    splits = sample.split()
    teacher = {p.tobytes() for p in splits["teacher"][0]}
    held_out = [p.tobytes() for name in ("validation", "test") for p in splits[name][0]]
    assert len(splits["teacher"][0]) == 59_000
    assert sum(p in teacher for p in held_out) <= 2  # Fashion-MNIST itself repeats a few pictures
    sample.write_dataset(splits, tmp_path)
    ours, again = (load_splits(DistillConfig(dataset=str(path))) for path in (ASSETS / "sample", tmp_path))
    for name in ("train", "validation", "test"):
        assert getattr(ours, name)["label"] == getattr(again, name)["label"]
        assert [r["image"]["bytes"] for r in getattr(ours, name)] == [r["image"]["bytes"] for r in getattr(again, name)]


def test_of_a_run_the_example_keeps_what_the_page_reads_and_real_points(run, tmp_path):
    (run.path / "gallery").mkdir()
    (run.path / "gallery" / "0.webp").write_bytes(b"picture")
    for name in sample.OF_EXAMPLE[1:]:
        (run.path / name).write_text("{}")
    for arm in ("distilled", "baseline"):
        run.append("training", arm=arm, seed=0)
    for nth in range(500):
        run.append("progress", phase="targets", done=nth, of=500)
        for arm in ("distilled", "baseline"):
            run.append("step", step=nth, arm=arm, seed=0)
    run.append("done")
    sample.keep_example(run, tmp_path / "example")
    kept = Run(tmp_path / "example")
    assert {path.name for path in kept.path.iterdir()} == {*sample.OF_EXAMPLE, "events.jsonl", "gallery"}
    assert kept.config() == run.config() and (kept.path / "gallery" / "0.webp").exists()
    for arm in ("distilled", "baseline"):
        steps = [event for event in kept.events() if event["event"] == "step" and event["arm"] == arm]
        assert 0 < len(steps) <= sample.MOST_STEPS and all(step in run.events() for step in steps)
    assert not [event for event in kept.events() if event["event"] == "progress"] and kept.status() == "done"
