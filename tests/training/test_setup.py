"""What a run prepares before it trains."""

import dataclasses

import numpy as np
import pytest
from transformers import MobileNetV2ImageProcessorPil

from kd.config import PRETRAINED, DistillConfig
from kd.data.splits import load_splits
from kd.distill import distill
from kd.errors import UserError
from kd.training.batches import ViewBatches
from kd.training.plan import trials_of
from kd.training.setup import build_student, check_labels, kept_labels, load_job_splits, pretrained_advice, start_job
from tests.support import toys
from tests.support.runs import make_run


def test_every_arm_of_a_pretrained_student_sees_with_its_own_processor(small, tmp_path):
    toys.tiny_resnet(toys.CLASSES).save_pretrained(tmp_path / "base")
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "base"
    )
    run = make_run(small, tmp_path, student=str(tmp_path / "base"), image_size=None, baseline="yes")
    job = start_job(run)
    splits, trials = load_job_splits(job), trials_of(job.config)
    first, second = (build_student(job.config, splits, trial.seed).processor.to_dict() for trial in trials)
    assert first == second and first["size"]["shortest_edge"] == 40


def test_labels_that_are_kept_are_stratified_nested_and_seeded_like_the_splits():
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10 + [-1] * 7)[np.random.default_rng(0).permutation(107)]

    def kept(count: int, seed: int = 0) -> np.ndarray:
        return kept_labels(labels, 3, DistillConfig(labels=count, split_seed=seed))

    for count, each in ((3, [1, 1, 1]), (20, [12, 6, 2]), (99, [59, 30, 10]), (500, [60, 30, 10])):
        few = kept(count)
        assert np.bincount(few[few >= 0]).tolist() == each and (few[few >= 0] == labels[few >= 0]).all()
    assert set(np.flatnonzero(kept(20) >= 0)) < set(np.flatnonzero(kept(40) >= 0))
    assert (kept(20) == kept(20)).all() and (kept(20) != kept(20, seed=1)).any()
    with pytest.raises(UserError, match="labels is 2, and there are 3 classes") as refused:
        check_labels(DistillConfig(labels=2), 3)
    assert refused.value.setting == "labels"


def test_with_few_labels_the_baseline_learns_from_those_alone_in_as_many_steps(small, colours, tmp_path, monkeypatch):
    seen: dict[int, set[int]] = {}
    batch = ViewBatches.__getitems__

    def noted(batches: ViewBatches, indices: list[int]) -> dict:
        made = batch(batches, indices)
        if len(batches) > 20:  # the training images
            seen.setdefault(id(batches), set()).update(made["labels"].tolist())
        return made

    monkeypatch.setattr(ViewBatches, "__getitems__", noted)
    config = dataclasses.replace(DistillConfig.from_dict(small), labels=6, baseline="yes", lambda_=0.5)
    report = distill(config, tmp_path)
    assert sorted(map(min, seen.values())) == [-1, 0]  # with the teacher all, without it those with a label
    assert [trial["epochs"] for trial in report["trials"]] == [config.epochs] * 2
    run = tmp_path / report["run"]
    text = (run / "events.jsonl").read_text()
    assert '"labelled": 6' in text
    steps = {line.split('"steps": ')[1].split(",")[0] for line in text.splitlines() if '"event": "training"' in line}
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("student", "side", "changes", "advised"),
    [
        ("mobilenet_v2_1.0", 96, {}, True),
        ("mobilenet_v2_1.0", 64, {}, False),
        ("mobilenet_v2_1.0", 96, {"recipe": "guide"}, False),
        ("resnet_8", 96, {}, False),  # nobody has trained it on ImageNet
    ],
)
def test_for_photos_the_pretrained_twin_of_a_student_is_named(tmp_path, student, side, changes, advised):
    folder = toys.class_folders(tmp_path / "photos", each=10, size=side)
    config = DistillConfig(dataset=str(folder), student=student, **changes)
    told = pretrained_advice(config, load_splits(config))
    assert [f"--student {PRETRAINED['mobilenet_v2_1.0']}" in said for said in told] == [True] * advised
